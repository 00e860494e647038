"""Agreement of predicted with observed preferences, with one array element per pair, and the uncertainty of means.

`difference` is the reward of a minus that of b. `target` is the observed probability that a is preferred: 1, 0, a
share of votes, or 0.5 for a tie.
"""

from typing import Literal

import numpy as np
from scipy import stats

BINS = 10
BOOTSTRAP_RESAMPLES = 1000
# The grid of the published search for Pick-a-Pic's threshold.
TIE_THRESHOLDS = tuple(step / 10 for step in range(11))


def agreement(
    difference: np.ndarray, target: np.ndarray, *, ties: Literal["wrong", "half", "predicted"], threshold: float = 0.0
) -> np.ndarray:
    """
    Probability [N] that an observer, who prefers a with probability `target`, has the predicted preference.

    Args:
        difference: [N]; positive if a is predicted. For NaN, the result is NaN.
        target: [N].
        ties: value for two equal rewards. "wrong": that of the less likely preference, 0 if the target is 0 or 1.
            "half": one half, the value of a guess. "predicted": that of a predicted tie, defined by Pick-a-Pic for
            targets 0, 0.5 and 1: 1 if a tie was observed, otherwise one half.
        threshold: two rewards count as equal if their softmax probabilities differ by at most this. The difference is
            tanh(difference / 2).
    """
    difference, target = np.asarray(difference, float), np.asarray(target, float)
    is_tie = np.abs(np.tanh(difference / 2)) <= threshold
    of_tie = {"wrong": np.minimum(target, 1 - target), "half": 0.5, "predicted": 1 - np.abs(0.5 - target)}[ties]
    return np.select([is_tie, difference > 0, difference < 0], [of_tie, target, 1 - target], np.nan)


def best_tie_threshold(difference: np.ndarray, target: np.ndarray) -> float:
    """The first of `TIE_THRESHOLDS` with the highest mean agreement where ties are predicted."""
    means = [agreement(difference, target, ties="predicted", threshold=each).mean() for each in TIE_THRESHOLDS]
    return TIE_THRESHOLDS[int(np.argmax(means))]


def clustered_mean(values: np.ndarray, clusters: np.ndarray, *, equal_clusters: bool = False, seed: int = 0) -> dict:
    """
    A mean with its uncertainty for clustered values, because pairs of one prompt share images and rewards.

    Args:
        values: [N].
        clusters: [N], cluster of each value.
        equal_clusters: whether all clusters have the same weight, instead of all values.
        seed: seed of the bootstrap.

    Returns:
        "mean"; "standard_error", robust to clusters (Liang and Zeger, 1986, with G / (G - 1) for G clusters); and
        "interval", the 2.5 and 97.5 percentiles of a bootstrap over clusters. The last two are None for one cluster.

    Raises:
        ValueError: there are no values.
    """
    values = np.asarray(values, float)
    if not len(values):
        raise ValueError("values: expected at least one, got none")
    _, members, sizes = np.unique(clusters, return_inverse=True, return_counts=True)
    weights = 1 / sizes[members] if equal_clusters else np.ones(len(values))
    sums, totals = np.bincount(members, weights * values), np.bincount(members, weights)
    mean = sums.sum() / totals.sum()
    if len(sizes) == 1:
        return {"mean": float(mean), "standard_error": None, "interval": None}
    residuals = sums - mean * totals
    scale = len(sizes) / (len(sizes) - 1)
    bootstrap = stats.bootstrap(
        (sums, totals),
        lambda sums, totals, axis: sums.sum(axis) / totals.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=BOOTSTRAP_RESAMPLES,
        batch=100,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return {
        "mean": float(mean),
        "standard_error": float(np.sqrt(scale * np.square(residuals).sum()) / totals.sum()),
        "interval": [float(bound) for bound in bootstrap.confidence_interval],
    }


def estimate(values: np.ndarray) -> dict:
    """
    A mean over training seeds and test groups, with the uncertainty from both.

    Args:
        values: [S, G], results of S trainings on the same G groups.

    Returns:
        "mean"; "standard_error", whose square is the variance of the groups' means over G plus that of the seeds'
        means over S (only the former for a single seed); "interval" of 95 % by Student's t with the degrees
        of freedom of Welch and Satterthwaite; "by_seed".
    """
    seeds, groups = values.shape
    parts = [(values.mean(axis=0).var(ddof=1) / groups, groups - 1)]
    if seeds > 1:
        parts.append((values.mean(axis=1).var(ddof=1) / seeds, seeds - 1))
    variance = sum(part for part, _ in parts)
    freedom = variance**2 / sum(part**2 / degrees for part, degrees in parts) if variance > 0 else groups - 1
    mean, error = float(values.mean()), float(variance**0.5)
    margin = float(stats.t.ppf(0.975, freedom)) * error
    return {
        "mean": mean,
        "standard_error": error,
        "interval": [mean - margin, mean + margin],
        "by_seed": values.mean(axis=1).tolist(),
    }


def verdict(difference: dict) -> str:
    """Verdict on the claim that a difference is positive, by its interval: "held", "reversed" or "undecided"."""
    low, high = difference["interval"]
    return "held" if low > 0 else "reversed" if high < 0 else "undecided"


def logistic_log_probabilities(difference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log P and log (1 - P), [N], for the Bradley-Terry probability P = 1 / (1 + exp(-difference))."""
    return -np.logaddexp(0, -difference), -np.logaddexp(0, difference)


def negative_log_likelihood(log_win: np.ndarray, log_loss: np.ndarray, target: np.ndarray) -> float:
    """Mean of -q log P - (1 - q) log (1 - P) for targets q, in nats."""
    return float(-np.mean(target * log_win + (1 - target) * log_loss))


def brier_score(probability: np.ndarray, target: np.ndarray) -> float:
    """Mean of q (1 - P)^2 + (1 - q) P^2 for targets q: the expected squared error of P against a single vote."""
    return float(np.mean(target * (1 - probability) ** 2 + (1 - target) * probability**2))


def bins(by: np.ndarray, values: np.ndarray) -> list[dict]:
    """
    Statistics of `values` [N] in ten bins of equal width for `by` [N] in [0, 1].

    Returns:
        For each bin, the number of pairs, the means of `by` and `values`, and the 10th and 90th percentiles of
        `values`; None for empty bins.
    """
    index = np.minimum((by * BINS).astype(int), BINS - 1)
    found = []
    for place in range(BINS):
        inside = index == place
        count = int(inside.sum())
        numbers = [by[inside].mean(), values[inside].mean(), *np.percentile(values[inside], [10, 90])] if count else []
        names = ("by", "mean", "low", "high")
        found.append({"pairs": count, **dict.fromkeys(names), **dict(zip(names, map(float, numbers), strict=False))})
    return found


def calibration_error(probability: np.ndarray, target: np.ndarray) -> float:
    """
    Expected calibration error: the mean over pairs of |mean P - mean q| in the pair's bin, with ten equal bins.

    The order of a and b should be random: if a is always preferred, the mean of q is 1 in every bin.
    """
    filled = [each for each in bins(probability, target) if each["pairs"]]
    return sum(each["pairs"] * abs(each["by"] - each["mean"]) for each in filled) / len(probability)
