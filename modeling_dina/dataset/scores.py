"""What is computed of a batch of a data set."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from modeling_dina.identity import scoring_settings
from modeling_dina.scoring_dina import DinaScorer

from .batches import Columns, process_batch
from .decoding import Decoder


class Wanted(NamedTuple):
    """What is computed of an image.

    Attributes:
        with_levels: also its score at each single noise level.
        with_samples: also the samples of its score, which win probabilities are computed from.
        seed: seed of the noise.
        ensemble: `sigmas`, `num_draws` and `mode` of `DinaScorer.score`.
    """

    with_levels: bool
    with_samples: bool
    seed: int
    ensemble: dict[str, Any]


class Description(NamedTuple):
    """What a run must know of its scorers.

    Attributes:
        settings: all settings that the results depend on, except for the source.
        decoder: decodes the images.
        batch_size: number of images that the scorers process at a time.
    """

    settings: dict[str, Any]
    decoder: Decoder
    batch_size: int


def describe(scorer: DinaScorer, wanted: Wanted, has_latents: bool) -> Description:
    """Describe a scorer to the process that has the rows."""
    settings = {
        "seed": wanted.seed,
        "levels": wanted.with_levels,
        **scoring_settings(scorer, **wanted.ensemble),
    }
    return Description(settings, Decoder(scorer, has_latents), scorer.batch_size)


def score_batch(scorer: DinaScorer, wanted: Wanted, prompts: Sequence[str], inputs: np.ndarray) -> list[Columns | str]:
    """Score a batch.

    Args:
        scorer: the scorer.
        wanted: what is computed.
        prompts: B prompts.
        inputs: pixels, uint8 [B, height, width, 3], or latents [B, C, h, w].

    Returns:
        For each input, its columns in the output, or its error.
    """

    def score(prompts: Sequence[str], inputs: np.ndarray) -> list[Columns]:
        is_pixels = inputs.dtype == np.uint8
        content: dict[str, Any] = (
            {"images": [Image.fromarray(each) for each in inputs]}
            if is_pixels
            else {"latents": torch.from_numpy(inputs)}
        )
        result = scorer.score(
            prompts=prompts, **content, with_levels=wanted.with_levels, seed=wanted.seed, **wanted.ensemble
        )
        columns: dict[str, Sequence] = {
            "score": result.scores.tolist(),
            # That of a single draw is NaN.
            "spread": [None if spread != spread else spread for spread in result.spread.tolist()],
        }
        if result.level_samples is not None:
            columns["level_scores"] = result.level_samples.mean(dim=1).T.tolist()
        if wanted.with_samples:
            count = len(prompts)
            columns |= {
                "samples": result.samples.flatten(0, 1).T.tolist(),
                "variance": [result.variance.tolist()] * count,
                "weights": [result.weights.tolist()] * count,
            }
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    return process_batch(score, prompts, inputs)
