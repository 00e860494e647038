"""How well predicted preferences agree with observed ones: plain functions on arrays with one entry a pair.

`difference` is the reward of a less that of b, `target` the observed probability that a is preferred: 1, 0, a share of
votes, or 0.5 for a tie.
"""

import numpy as np
from scipy import stats
from scipy.special import log_ndtr, logsumexp

CALIBRATION_BINS = 10
BOOTSTRAP_RESAMPLES = 1000
# The published search for Pick-a-Pic's threshold.
TIE_THRESHOLDS = tuple(step / 10 for step in range(11))


def agreement(difference: np.ndarray, target: np.ndarray) -> np.ndarray:
    """
    Probability [N] that an observer, who prefers a with probability `target`, shares the predicted preference.

    For a certain target that is 1 or 0. Equal rewards predict nothing and are given the less likely side: an error
    where the target is certain.
    """
    difference, target = np.asarray(difference, float), np.asarray(target, float)
    decided = np.where(difference > 0, target, 1 - target)
    return np.where(difference == 0, np.minimum(target, 1 - target), decided)


def agreement_with_ties(difference: np.ndarray, target: np.ndarray, threshold: float) -> np.ndarray:
    """
    Agreement [N] where ties are predicted too, as Pick-a-Pic defines it: 1 for a match, 0.5 if exactly one of
    prediction and observation is a tie, else 0.

    Args:
        difference: [N]; the softmax of two rewards differs by tanh(difference / 2).
        target: [N], each 0, 0.5 or 1.
        threshold: a tie is predicted where the two probabilities differ by at most this.
    """
    difference = np.asarray(difference, float)
    is_tie = np.abs(np.tanh(difference / 2)) <= threshold
    predicted = np.where(is_tie, 0.5, difference > 0)
    return 1 - np.abs(predicted - target)


def best_tie_threshold(difference: np.ndarray, target: np.ndarray) -> float:
    """The first of `TIE_THRESHOLDS` with the highest mean of `agreement_with_ties`."""
    means = [agreement_with_ties(difference, target, threshold).mean() for threshold in TIE_THRESHOLDS]
    return TIE_THRESHOLDS[int(np.argmax(means))]


def clustered_mean(values: np.ndarray, clusters: np.ndarray, *, equal_clusters: bool = False, seed: int = 0) -> dict:
    """
    A mean with its uncertainty where values come in clusters: pairs of one prompt share images and rewards.

    Args:
        values: [N].
        clusters: [N], which cluster each value belongs to.
        equal_clusters: the mean of the clusters' means instead of the mean of all values.
        seed: of the bootstrap.

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


def thurstone_log_probabilities(
    samples_a: np.ndarray, samples_b: np.ndarray, variance: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """
    log P and log (1 - P) [N] of P = sum_k w_k mean_draws Phi((r_a - r_b) / sqrt(2 v_k)), the ensemble's probability of
    `modeling_dina.thurstone_dina.pair_statistics`, exact where it would round to 0 or 1.

    Args:
        samples_a, samples_b: rewards [K, D, N] at K levels with D draws.
        variance: [K], of one reward.
        weights: [K], summing to one.
    """
    z = (samples_a - samples_b) / np.sqrt(2 * variance)[:, None, None]
    shares = (weights / samples_a.shape[1])[:, None, None]
    log_win, log_loss = (logsumexp(log_ndtr(sign * z), axis=(0, 1), b=shares) for sign in (1, -1))
    return log_win, log_loss


def logistic_log_probabilities(difference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log P and log (1 - P) [N] of Bradley and Terry's P = 1 / (1 + exp(-difference))."""
    return -np.logaddexp(0, -difference), -np.logaddexp(0, difference)


def negative_log_likelihood(log_win: np.ndarray, log_loss: np.ndarray, target: np.ndarray) -> float:
    """Mean of -q log P - (1 - q) log (1 - P), in nats, for P given as log P and log (1 - P)."""
    return float(-np.mean(target * log_win + (1 - target) * log_loss))


def brier_score(probability: np.ndarray, target: np.ndarray) -> float:
    """Mean of q (1 - P)^2 + (1 - q) P^2, the squared error of P against a single vote."""
    return float(np.mean(target * (1 - probability) ** 2 + (1 - target) * probability**2))


def calibration_error(probability: np.ndarray, target: np.ndarray) -> float:
    """
    Expected calibration error: the mean over pairs of |mean P - mean q| of the pair's bin, in ten bins of equal width.

    Which image is a should be random: where a always wins, the mean of q is 1 in every bin.
    """
    bins = np.minimum((np.asarray(probability) * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, np.asarray(probability) - target, CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(bins))
