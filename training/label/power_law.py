"""A power law with a floor, the usual law of learning curves, and what it says about more votes."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

EXPONENTS = np.arange(1, 201) / 100  # among which a fit chooses
RESAMPLES = 1000


class PowerLaw(NamedTuple):
    """
    The loss after n votes, `scale * n ** -exponent + floor`; the parameters are numbers or [R] for R laws.

    This is the law ε(m) = α m^β + γ of Hestness et al. (arXiv 1712.00409), and POW3 in the review of learning curves
    by Viering and Loog (arXiv 2103.10948).
    """

    scale: Any
    exponent: Any
    floor: Any

    def __call__(self, count: Any) -> Any:
        """The loss after `count` votes, a number or an array."""
        return self.scale * count**-self.exponent + self.floor


def fit_power_laws(counts: np.ndarray, losses: np.ndarray, lowest_floor: float) -> PowerLaw:
    """
    Fit a law to each of R curves by least squares. For each exponent, scale and floor have a closed form. The scale is
    not negative: a law never rises.

    Args:
        counts: [S], numbers of votes.
        losses: [R, S], losses after them.
        lowest_floor: loss that no number of votes can fall below.

    Raises:
        ValueError: there are fewer than three points, which do not determine the law.
    """
    if len(counts) < 3:
        raise ValueError(f"counts: expected at least 3 numbers of votes, got {len(counts)}")
    # Relative to the largest count, the scale is a difference of losses, whatever the exponent.
    powers = (counts / counts.max()) ** -EXPONENTS[:, None]
    centred, mean = powers - powers.mean(axis=1, keepdims=True), losses.mean(axis=1, keepdims=True)
    scale = losses @ (centred / np.square(centred).sum(axis=1, keepdims=True)).T  # [R, exponents]
    floor = mean - scale * powers.mean(axis=1)
    # The least squares within the bounds are those without bounds, or lie on one of the two bounds.
    flat = np.zeros_like(scale), np.maximum(mean, lowest_floor) + np.zeros_like(scale)
    rise = (losses - lowest_floor) @ (powers / np.square(powers).sum(axis=1, keepdims=True)).T
    lowest = np.maximum(rise, 0), np.full_like(scale, lowest_floor)
    scales, floors = (np.stack(each) for each in zip((scale, floor), flat, lowest, strict=True))
    residuals = scales[..., None] * powers + floors[..., None] - losses[:, None]
    costs = np.square(residuals).sum(axis=-1)
    costs[0, (scale < 0) | (floor < lowest_floor)] = np.inf
    kind, exponent = np.unravel_index(costs.swapaxes(0, 1).reshape(len(losses), -1).argmin(axis=1), costs.shape[::2])
    rows = np.arange(len(losses))
    scale, floor, exponent = scales[kind, rows, exponent], floors[kind, rows, exponent], EXPONENTS[exponent]
    return PowerLaw(scale * counts.max() ** exponent, exponent, floor)


def forecast(
    counts: np.ndarray,
    losses: np.ndarray,
    clusters: np.ndarray,
    folds: np.ndarray,
    *,
    votes: float,
    lowest_floor: float,
    seed: int = 0,
) -> dict[str, Any]:
    """
    What twice as many votes would bring.

    Args:
        counts: [S], numbers of votes of S trainings in each fold.
        losses: [S, N], losses of N pairs that were held out.
        clusters: [N], index of the prompt of each pair.
        folds: [N], index of the fold of each pair.
        votes: number of all votes, which is larger than `counts` because some of them are held out.
        lowest_floor: as in `fit_power_laws`.
        seed: seed of the bootstrap.

    Returns:
        "law" as a list; the losses "now", with all votes, and "doubled", with twice as many, both by the law; the
        "gain", by which the loss falls; and the intervals "doubled_interval" and "gain_interval", the 2.5 and 97.5
        percentiles of a bootstrap over folds, which have different trainings, and over the prompts in them.
    """

    rng = np.random.default_rng(seed)
    parts = [np.unique(clusters[folds == fold]) for fold in np.unique(folds)]
    drawn = [np.ones(clusters.max() + 1), *(_draw(parts, rng) for _ in range(RESAMPLES))]
    weights = np.stack([times[clusters] / times[clusters].sum() for times in drawn])
    laws = fit_power_laws(counts, weights @ losses.T, lowest_floor)
    now, doubled = laws(votes), laws(2 * votes)
    gain = now - doubled

    def interval(values: np.ndarray) -> list[float]:
        return np.percentile(values[1:], [2.5, 97.5]).tolist()

    return {
        "law": [float(parameter[0]) for parameter in laws],
        "now": float(now[0]),
        "doubled": float(doubled[0]),
        "doubled_interval": interval(doubled),
        "gain": float(gain[0]),
        "gain_interval": interval(gain),
    }


def _draw(parts: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """How often each prompt is drawn if folds, given by their prompts, are drawn with replacement, and so are the
    prompts of each."""
    times = np.zeros(max(part.max() for part in parts) + 1)
    for fold in rng.integers(len(parts), size=len(parts)):
        np.add.at(times, rng.choice(parts[fold], len(parts[fold])), 1)
    return times
