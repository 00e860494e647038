"""Calibration of a model's probabilities and of its scores' unit, fitted to observed preferences.

Scores become (raw - mean) / std, which changes no probability; the temperature multiplies the likelihood's standard
deviations, which changes probabilities and nothing else (`DinaRewardModel.variance`).
"""

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import minimize_scalar

from modeling_dina.evaluation.benchmarks.preference_set import Pairs
from modeling_dina.evaluation.rewards import Rewards
from modeling_dina.evaluation.statistics import negative_log_likelihood
from modeling_dina.files import atomic_path, write_text

# Natural logarithm of the smallest and of the largest factor on the temperature that is looked at.
LARGEST_LOG_FACTOR = math.log(1000)


@dataclass(frozen=True)
class Calibration:
    """Values for the fields of `DinaConfig` of the same names."""

    temperature: float
    score_mean: float
    score_std: float


def fit_calibration(rewards: Rewards, pairs: Pairs, current: Calibration) -> Calibration:
    """
    The temperature of the highest likelihood, and mean and standard deviation of the raw scores.

    Args:
        rewards: under the calibration `current`; NaN for items that could not be scored.
        pairs: to fit to; the scores are those of their images.
        current: what the model was calibrated by.

    Raises:
        ValueError: the pairs tell no temperature apart (all agree with the rewards, or none does), or all scores are
            equal.
    """
    rewarded = np.isfinite(rewards.difference(pairs))
    pairs = pairs[rewarded]
    scores = rewards.scores[np.unique([pairs.a, pairs.b])]
    if not len(scores) or not scores.std() > 0:
        raise ValueError(f"data: expected images of different scores, got {len(scores)} images of one score")

    def loss(log_factor: float) -> float:
        scaled = Rewards(rewards.samples, rewards.weights, rewards.variance * math.exp(2 * log_factor))
        return negative_log_likelihood(*scaled.log_probabilities(pairs), pairs.target)

    found = minimize_scalar(
        loss, bounds=(-LARGEST_LOG_FACTOR, LARGEST_LOG_FACTOR), method="bounded", options={"xatol": 1e-6}
    )
    for bound, reason in ((-LARGEST_LOG_FACTOR, "agree with every reward"), (LARGEST_LOG_FACTOR, "agree with none")):
        if loss(bound) <= found.fun:
            raise ValueError(f"data: expected preferences that tell a temperature, got {len(pairs)} that {reason}")
    return Calibration(
        temperature=current.temperature * math.exp(found.x),
        score_mean=float(current.score_mean + current.score_std * scores.mean()),
        score_std=float(current.score_std * scores.std()),
    )


def recalibrated(rewards: Rewards, old: Calibration, new: Calibration) -> Rewards:
    """Rewards under another calibration."""
    raw = rewards.samples * old.score_std + old.score_mean
    factor = (new.temperature / new.score_std) / (old.temperature / old.score_std)
    return Rewards((raw - new.score_mean) / new.score_std, rewards.weights, rewards.variance * factor**2)


def split_by_cluster(pairs: Pairs, seed: int) -> tuple[Pairs, Pairs]:
    """Two halves that share no prompt."""
    names = np.unique(pairs.cluster)
    half = np.random.default_rng(seed).permutation(names)[: len(names) // 2]
    first = np.isin(pairs.cluster, half)
    return pairs[first], pairs[~first]


def write_calibration(folder: Path, calibration: Calibration, out: Path | None) -> None:
    """
    Puts a calibration into a model folder's `config.json`, or into a copy of the folder; nothing else changes, and
    nothing is ever half written.

    Args:
        folder: of the model.
        calibration: to write.
        out: a new folder for the copy; None changes `folder`.
    """
    if out is None:
        return _write_config(folder, calibration)
    with atomic_path(out) as partial:
        shutil.copytree(folder, partial)
        _write_config(partial, calibration)


def _write_config(folder: Path, calibration: Calibration) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text("utf-8")) | vars(calibration)
    # As transformers writes it.
    write_text(path, json.dumps(config, indent=2, sort_keys=True) + "\n")
