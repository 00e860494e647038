"""Calibration of a model's probabilities and of the scale of its scores, fitted to observed preferences.

Scores become (raw - mean) / std, which does not change probabilities. The temperature multiplies the standard
deviations of the likelihood, which changes only probabilities (`DinaRewardModel.variance`).
"""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar

from modeling_dina import DinaRewardModel
from modeling_dina.evaluation.benchmarks import Ties, find_benchmark
from modeling_dina.evaluation.benchmarks.preference_set import Pairs, PreferenceSet
from modeling_dina.evaluation.evaluate import content_of, likelihood, run_settings, score_items, scored
from modeling_dina.evaluation.rewards import DinaEvaluator, Rewards
from modeling_dina.evaluation.statistics import negative_log_likelihood
from modeling_dina.files import Journal, atomic_path, write_text
from modeling_dina.official_dina import is_official

# The search for the factor on the temperature is limited to exp(-LARGEST_LOG_FACTOR) .. exp(LARGEST_LOG_FACTOR).
LARGEST_LOG_FACTOR = math.log(1000)


@dataclass(frozen=True)
class Calibration:
    """Values for the fields of `DinaConfig` with the same names."""

    temperature: float
    score_mean: float
    score_std: float


def calibrate(
    name: str,
    preferences: PreferenceSet,
    evaluator: DinaEvaluator,
    model: str | Path,
    out: Path | None,
    *,
    batch_size: int,
    data_folder: Path | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """
    Fit a model's calibration to one half of a benchmark's prompts, evaluate it on the other half, and write it.

    The pairs are those of the validation split if the benchmark has one, otherwise those of the test split.

    Args:
        name: name of the benchmark.
        preferences: preferences from its `read`.
        evaluator: evaluator of the model.
        model: folder or Hub id of the model.
        out: new folder for a calibrated copy; None changes the config of the model, which requires `has_own_config`.
        batch_size: number of images scored at a time; it does not affect results.
        data_folder: folder that the benchmark was read from.
        seed: seed of the split and of the shuffled sides.
        progress: called with the numbers of finished and of all images.

    Returns:
        The fields of `Calibration`, "benchmark", the numbers "pairs_fitted", "pairs_held_out" and "failures", and the
        `likelihood` of the held-out pairs "before" and "after".

    Raises:
        ValueError: fewer than two prompts could be scored, the calibration cannot be determined, or an interrupted run
            had other settings.
    """
    benchmark = find_benchmark(name)
    pairs = preferences.pairs("validation" if benchmark.ties is Ties.predicted else "test").shuffled_sides(seed)
    if benchmark.ties is Ties.dropped:
        pairs = pairs[pairs.label != 0.5]
    place = Path(out or model).absolute()
    journal = Journal(
        place.with_name(f"{place.name}.calibration.partial"),
        content_of(name, preferences, data_folder) | run_settings(evaluator, seed),
    )
    samples, failures = score_items(preferences.items, evaluator, journal, batch_size, progress)
    rewards = evaluator.ensemble(samples)
    fitted, held_out = split_by_cluster(pairs[scored(rewards, pairs)], seed)
    if not len(fitted) or not len(held_out):
        raise ValueError(
            f"data: expected preferences for two prompts or more, got {len(fitted) + len(held_out)} pairs"
        )
    config = evaluator.scorer.model.config
    current = Calibration(config.temperature, config.score_mean, config.score_std)
    found = fit_calibration(rewards, fitted, current)
    reports = {
        when: likelihood(*used.log_probabilities(held_out), held_out.target)
        for when, used in {"before": rewards, "after": recalibrated(rewards, current, found)}.items()
    }
    if has_own_config(model):
        write_calibration(Path(model), found, out)
    elif out is not None:
        save_calibrated(evaluator.scorer.model, found, out)
    journal.remove()
    return {
        **vars(found),
        "benchmark": name,
        "pairs_fitted": len(fitted),
        "pairs_held_out": len(held_out),
        "failures": len(failures) + len(preferences.failures),
        **reports,
    }


def fit_calibration(rewards: Rewards, pairs: Pairs, current: Calibration) -> Calibration:
    """
    Fit the temperature by maximum likelihood, and the mean and standard deviation of the raw scores.

    Args:
        rewards: rewards with the calibration `current`; NaN for items that could not be scored.
        pairs: pairs to fit to; mean and standard deviation are those of their images' scores.
        current: present calibration of the model.

    Raises:
        ValueError: the pairs do not determine the temperature, because all or none agree with the rewards, or all
            scores are equal.
    """
    rewarded = np.isfinite(rewards.difference(pairs))
    pairs = pairs[rewarded]
    scores = rewards.scores[np.unique([pairs.a, pairs.b])]
    if not len(scores) or not scores.std() > 0:
        raise ValueError(f"data: expected images with different scores, got {len(scores)} images with equal scores")

    variance = rewards.known_variance

    def loss(log_factor: float) -> float:
        scaled = Rewards(rewards.samples, rewards.weights, variance * math.exp(2 * log_factor))
        return negative_log_likelihood(*scaled.log_probabilities(pairs), pairs.target)

    found = minimize_scalar(
        loss, bounds=(-LARGEST_LOG_FACTOR, LARGEST_LOG_FACTOR), method="bounded", options={"xatol": 1e-6}
    )
    for bound, share in ((-LARGEST_LOG_FACTOR, "all"), (LARGEST_LOG_FACTOR, "none")):
        if loss(bound) <= found.fun:
            raise ValueError(
                f"data: expected pairs of which some but not all agree with the rewards, got {len(pairs)} pairs of "
                f"which {share} agree"
            )
    return Calibration(
        temperature=current.temperature * math.exp(found.x),
        score_mean=float(current.score_mean + current.score_std * scores.mean()),
        score_std=float(current.score_std * scores.std()),
    )


def recalibrated(rewards: Rewards, old: Calibration, new: Calibration) -> Rewards:
    """Convert rewards from one calibration to another."""
    raw = rewards.samples * old.score_std + old.score_mean
    factor = (new.temperature / new.score_std) / (old.temperature / old.score_std)
    return Rewards((raw - new.score_mean) / new.score_std, rewards.weights, rewards.known_variance * factor**2)


def split_by_cluster(pairs: Pairs, seed: int) -> tuple[Pairs, Pairs]:
    """Split pairs into two halves without common clusters."""
    names = np.unique(pairs.cluster)
    half = np.random.default_rng(seed).permutation(names)[: len(names) // 2]
    first = np.isin(pairs.cluster, half)
    return pairs[first], pairs[~first]


def write_calibration(folder: Path, calibration: Calibration, out: Path | None) -> None:
    """
    Write a calibration to `config.json` in a model folder, or in a copy of the folder. Writing is atomic.

    Args:
        folder: folder of the model.
        calibration: calibration to write.
        out: new folder for the copy; None changes `folder`.
    """
    if out is None:
        return _write_config(folder, calibration)
    with atomic_path(out) as partial:
        shutil.copytree(folder, partial)
        _write_config(partial, calibration)


def has_own_config(model: str | Path) -> bool:
    """Whether a model is a local folder whose config has the fields of a calibration, which the published layout has
    not."""
    return Path(model, "config.json").is_file() and not is_official(str(model))


def save_calibrated(model: DinaRewardModel, calibration: Calibration, out: Path) -> None:
    """Save a loaded model with another calibration to a new folder."""
    model.config.update(vars(calibration))
    with atomic_path(out) as partial:
        model.save_pretrained(partial)


def _write_config(folder: Path, calibration: Calibration) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text("utf-8")) | vars(calibration)
    # The same format as written by transformers.
    write_text(path, json.dumps(config, indent=2, sort_keys=True) + "\n")
