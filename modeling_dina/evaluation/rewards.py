"""Rewards of images for an evaluation, from a DiNa model (each noise level and the ensemble) or from a callable."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from modeling_dina import DinaScorer
from modeling_dina.evaluation.benchmarks.preference_set import Pairs
from modeling_dina.evaluation.lrm import LRM, PREFIX
from modeling_dina.evaluation.statistics import logistic_log_probabilities
from modeling_dina.identity import scoring_settings
from modeling_dina.thurstone_dina import PairStatistics, log_probabilities, pair_statistics, precision_weights


@dataclass(frozen=True)
class Rewards:
    """
    Rewards of N items; NaN for items without a reward.

    Attributes:
        samples: [K, D, N] at K levels with D draws; K is 1 if the features of the levels are combined.
        weights: [K], weights of the levels, whose sum is 1.
        variance: [K], variance of one sample in the Thurstone likelihood; None selects the Bradley-Terry likelihood.
    """

    samples: np.ndarray
    weights: np.ndarray
    variance: np.ndarray | None

    @property
    def scores(self) -> np.ndarray:
        """Weighted means over levels and draws, [N]."""
        return np.tensordot(self.weights, self.samples.mean(axis=1), axes=1)

    @property
    def known_variance(self) -> np.ndarray:
        """The variance; raises a TypeError if there is none."""
        if self.variance is None:
            raise TypeError("rewards: expected rewards with a variance, got None")
        return self.variance

    def difference(self, pairs: Pairs) -> np.ndarray:
        """Score of a minus score of b, [pairs]; NaN without both scores."""
        scores = self.scores
        return scores[pairs.a] - scores[pairs.b]

    def log_probabilities(self, pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
        """log P and log (1 - P), [pairs], for the probability P that a is preferred."""
        if self.variance is None:
            return logistic_log_probabilities(self.difference(pairs))
        a, b = self.samples[..., pairs.a], self.samples[..., pairs.b]
        log_win, log_loss = log_probabilities(*map(torch.from_numpy, (a, b, self.variance, self.weights)))
        return log_win.numpy(), log_loss.numpy()

    def statistics(self, pairs: Pairs) -> PairStatistics:
        """Win probability and uncertainty of pairs, tensors [pairs]; NaN without both scores. Needs a variance."""
        a, b = self.samples[..., pairs.a], self.samples[..., pairs.b]
        return pair_statistics(*map(torch.from_numpy, (a, b, self.known_variance, self.weights)))


class RewardEvaluator(Protocol):
    """The interface of rewards to evaluate.

    Attributes:
        settings: everything that the rewards depend on, as JSON values.
    """

    settings: dict[str, Any]

    def score(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> np.ndarray:
        """Rewards [R, D, B] of B images with D draws. The meaning of the R rows depends on the class."""

    def ensemble(self, samples: np.ndarray) -> Rewards:
        """The rewards to evaluate, from the results [R, D, N] of `score` for all items."""

    def levels(self, samples: np.ndarray) -> dict[float, Rewards]:
        """The rewards at each noise level; empty without noise levels."""


class DinaEvaluator:
    """
    Rewards of a DiNa model, with one pass of VAE and backbone for all levels and the ensemble.

    Args:
        scorer: scorer of the model.
        source: folder or Hub id of the model.
        sigmas, num_draws, mode: options of the ensemble; None uses the model's defaults.
        seed: seed of the noise.
    """

    def __init__(
        self,
        scorer: DinaScorer,
        source: str,
        *,
        sigmas: Sequence[float] | None = None,
        num_draws: int | None = None,
        mode: str | None = None,
        seed: int = 0,
    ):
        model = scorer.model
        settings = scoring_settings(scorer, sigmas=sigmas, num_draws=num_draws, mode=mode)
        self.settings = {"model": display_path(source), **settings}
        self.sigmas, self.num_draws, self.mode = settings["sigmas"], settings["draws"], settings["mode"]
        self.seed = seed
        levels = model.noise_path.snap(torch.tensor(self.sigmas))
        self.variance = model.variance(levels).double().numpy()
        self.scorer = scorer

    def score(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> np.ndarray:
        # Modes that average over levels need only the samples of the levels.
        mode = "features" if self.mode == "features" else "mean"
        options = {"sigmas": self.sigmas, "num_draws": self.num_draws, "mode": mode, "seed": self.seed}
        scores = self.scorer.score(prompts=prompts, images=images, with_levels=True, **options)
        parts = scores.level_samples, scores.samples if mode == "features" else None
        return torch.cat([part for part in parts if part is not None]).double().numpy()

    def ensemble(self, samples: np.ndarray) -> Rewards:
        if self.mode == "features":
            return Rewards(samples[-1:], np.ones(1), self.variance.mean(keepdims=True))
        weights = np.full(len(self.sigmas), 1 / len(self.sigmas))
        if self.mode == "precision":
            weights = precision_weights(torch.from_numpy(self.variance)).numpy()
        return Rewards(samples, weights, self.variance)

    def levels(self, samples: np.ndarray) -> dict[float, Rewards]:
        return {
            sigma: Rewards(samples[[level]], np.ones(1), self.variance[[level]])
            for level, sigma in enumerate(self.sigmas)
        }


class WrongCountError(TypeError):
    """A scorer did not return one number per image, which is not the fault of any image."""


class CallableEvaluator:
    """
    Rewards of a callable that maps (prompts, images) to one number per image.

    Args:
        source: "module:function", or "lrm:" and the folder of an `LRM`.
        options: further arguments of `LRM`.

    Raises:
        OSError, ValueError: there is no such callable, or no such model.
    """

    def __init__(self, source: str, **options):
        unknown = ("revision", "conditioning", "sigmas", "draws", "mode", "text_length")
        self.settings = {"model": source, **dict.fromkeys(unknown)}
        self.function: Callable[[list[str], list[Image.Image]], Sequence[float]]
        if source.startswith(PREFIX):
            folder = source.removeprefix(PREFIX)
            self.function = LRM(folder, **options)
            self.settings |= {"model": PREFIX + display_path(folder), "revision": self.function.revision}
            return
        try:
            self.function = resolve_name(source)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(f"scorer: expected module:function, got {source}: {error}") from error
        if ":" not in source or not callable(self.function):
            raise ValueError(f"scorer: expected module:function, got {source}")

    def score(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> np.ndarray:
        values = [float(value) for value in self.function(list(prompts), list(images))]
        if len(values) != len(images):
            raise WrongCountError(
                f"scorer: expected {len(images)} numbers for {len(images)} images, got {len(values)}"
            )
        if not np.isfinite(values).all():
            raise ValueError(f"scorer: expected finite numbers, got {values}")
        return np.array(values)[None, None]

    def ensemble(self, samples: np.ndarray) -> Rewards:
        return Rewards(samples, np.ones(1), None)

    def levels(self, samples: np.ndarray) -> dict[float, Rewards]:
        return {}


def display_path(source: str) -> str:
    """The relative path of a folder below the working directory, for reports; any other source unchanged."""
    relative = os.path.relpath(source) if os.path.isdir(source) else source
    return source if relative.startswith("..") else relative
