"""Means over seeds and what else varies, with their uncertainty, and what they say of a claim."""

import numpy as np
from scipy import stats


def estimate(values: np.ndarray) -> dict:
    """
    A mean over seeds and groups, uncertain by both.

    Args:
        values: [S, G], of S trainings measured on the same G groups.

    Returns:
        "mean"; "standard_error", whose square is the variance of the groups' means over G plus that of the seeds'
        means over S (no more than the former for a single seed); "interval" of 95 % by Student's t with the degrees
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
    """What an interval of a difference says of a claim that it is positive: "held", "reversed" or "undecided"."""
    low, high = difference["interval"]
    return "held" if low > 0 else "reversed" if high < 0 else "undecided"
