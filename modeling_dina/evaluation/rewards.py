"""Rewards of images at each noise level and of the ensemble, from a DiNa model or from any callable."""

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
from modeling_dina.evaluation.statistics import logistic_log_probabilities
from modeling_dina.identity import scoring_settings
from modeling_dina.thurstone_dina import log_probabilities, precision_weights


@dataclass(frozen=True)
class Rewards:
    """
    Rewards of N items, NaN for those without.

    Attributes:
        samples: [K, D, N] at K levels with D draws; K is 1 where levels are joined as features.
        weights: [K] of the levels, summing to one.
        variance: [K], the likelihood's variance of one sample; None for rewards that know none, whose preferences are
            taken to follow Bradley and Terry.
    """

    samples: np.ndarray
    weights: np.ndarray
    variance: np.ndarray | None

    @property
    def scores(self) -> np.ndarray:
        """[N]."""
        return np.tensordot(self.weights, self.samples.mean(axis=1), axes=1)

    def difference(self, pairs: Pairs) -> np.ndarray:
        """Score of a less score of b [pairs]; NaN for pairs without."""
        scores = self.scores
        return scores[pairs.a] - scores[pairs.b]

    def log_probabilities(self, pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
        """log P and log (1 - P) [pairs] of a's being preferred."""
        if self.variance is None:
            return logistic_log_probabilities(self.difference(pairs))
        a, b = self.samples[..., pairs.a], self.samples[..., pairs.b]
        log_win, log_loss = log_probabilities(*map(torch.from_numpy, (a, b, self.variance, self.weights)))
        return log_win.numpy(), log_loss.numpy()


class RewardEvaluator(Protocol):
    """What is evaluated.

    Attributes:
        settings: all that its rewards depend on, ready for JSON.
    """

    settings: dict[str, Any]

    def score(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> np.ndarray:
        """Rewards [R, D, B] of B images: R readings, D draws."""

    def ensemble(self, samples: np.ndarray) -> Rewards:
        """The rewards that count, given the readings [R, D, N] of all items."""

    def levels(self, samples: np.ndarray) -> dict[float, Rewards]:
        """The rewards of each noise level alone; empty where there are none."""


class DinaEvaluator:
    """
    Rewards of a DiNa model, with one pass of VAE and backbone for all levels and the ensemble.

    Args:
        scorer: the model with its pipeline.
        source: folder or Hub id that it was loaded from.
        sigmas, num_draws, mode: the ensemble; None takes the model's defaults.
        seed: of the noise.
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
        # Modes that average levels need no more than the levels' samples.
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
    """A scorer did not return one number for each image, for which no image is to blame."""


class CallableEvaluator:
    """
    Rewards of a callable on (prompts, images) that returns one number each.

    Args:
        source: "module:function".

    Raises:
        ValueError: there is no such callable.
    """

    def __init__(self, source: str):
        try:
            self.function: Callable[[list[str], list[Image.Image]], Sequence[float]] = resolve_name(source)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(f"scorer: expected module:function, got {source}: {error}") from error
        if ":" not in source or not callable(self.function):
            raise ValueError(f"scorer: expected module:function, got {source}")
        unknown = ("revision", "conditioning", "sigmas", "draws", "mode", "text_length")
        self.settings = {"model": source, **dict.fromkeys(unknown)}

    def score(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> np.ndarray:
        values = [float(value) for value in self.function(list(prompts), list(images))]
        if len(values) != len(images):
            raise WrongCountError(f"scorer: expected {len(images)} numbers for as many images, got {len(values)}")
        if not np.isfinite(values).all():
            raise ValueError(f"scorer: expected finite numbers, got {values}")
        return np.array(values)[None, None]

    def ensemble(self, samples: np.ndarray) -> Rewards:
        return Rewards(samples, np.ones(1), None)

    def levels(self, samples: np.ndarray) -> dict[float, Rewards]:
        return {}


def display_path(source: str) -> str:
    """A folder as seen from here where it lies below, so that reports do not depend on the machine; else as it is."""
    relative = os.path.relpath(source) if os.path.isdir(source) else source
    return source if relative.startswith("..") else relative
