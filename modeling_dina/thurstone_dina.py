"""The Thurstone likelihood of preferences (arXiv 2602.11146), as pure functions on tensors. The utility of an image is
normally distributed around its reward, with a variance that grows with the noise level.

Every loss is returned per pair, without reduction. Tails are computed in logarithms (`log_ndtr`), so that losses and
gradients stay finite and exact where a probability would round to 0 or 1.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.special import log_ndtr


def noise_variance(sigma: torch.Tensor, slope: float = 2.0, floor: float = 0.05) -> torch.Tensor:
    """Variance of one image's utility at noise level `sigma` in [0, 1] (any shape): slope sigma^2 + floor."""
    return slope * sigma.square() + floor


def standardized_difference(scores_a, scores_b, variance_a, variance_b) -> torch.Tensor:
    """(r_a - r_b) / sqrt(v_a + v_b). For a constant variance c per image, `variance_a = variance_b = tensor(c)`.

    Args:
        scores_a, scores_b: rewards, of shapes that broadcast together.
        variance_a, variance_b: variance of each reward, tensors that broadcast with them.
    """
    return (scores_a - scores_b) / (variance_a + variance_b).sqrt()


def win_probability(scores_a, scores_b, variance_a, variance_b) -> torch.Tensor:
    """P(a beats b) = Phi((r_a - r_b) / sqrt(v_a + v_b)); arguments as in `standardized_difference`."""
    # exp(log_ndtr) keeps its relative precision in the lower tail, where ndtr = (1 + erf) / 2 cancels.
    return log_ndtr(standardized_difference(scores_a, scores_b, variance_a, variance_b)).exp()


def fidelity_loss(scores_chosen, scores_rejected, variance_chosen, variance_rejected, target=None) -> torch.Tensor:
    """Fidelity between the predicted and the observed preference: 1 - sqrt(P q) - sqrt((1 - P)(1 - q)).

    Args:
        target: q, the observed probability in [0, 1] that `chosen` wins; None means 1, where the loss is 1 - sqrt(P).
    """
    z = standardized_difference(scores_chosen, scores_rejected, variance_chosen, variance_rejected)
    if target is None:
        return -torch.expm1(0.5 * log_ndtr(z))  # 1 - sqrt(P), to full precision where P is near 1
    return 1 - target.sqrt() * torch.exp(0.5 * log_ndtr(z)) - (1 - target).sqrt() * torch.exp(0.5 * log_ndtr(-z))


def likelihood_loss(scores_chosen, scores_rejected, variance_chosen, variance_rejected, target=None) -> torch.Tensor:
    """Negative log-likelihood -q log P - (1 - q) log(1 - P); `target` is q as in `fidelity_loss`."""
    z = standardized_difference(scores_chosen, scores_rejected, variance_chosen, variance_rejected)
    if target is None:
        return -log_ndtr(z)
    return -target * log_ndtr(z) - (1 - target) * log_ndtr(-z)


def bradley_terry_loss(scores_chosen, scores_rejected, margin: float = 0.0) -> torch.Tensor:
    """-log sigmoid(r_chosen - r_rejected - margin), the logistic (Bradley-Terry) model of a comparison."""
    return F.softplus(scores_rejected - scores_chosen + margin)


def precision_weights(variance: torch.Tensor) -> torch.Tensor:
    """Weights [K] proportional to 1 / variance [K] that sum to one."""
    return F.normalize(1 / variance, p=1, dim=0)


def binary_entropy(probability: torch.Tensor) -> torch.Tensor:
    """-p log p - (1 - p) log(1 - p), in nats, for p of any shape; 0 at 0 and 1."""
    return torch.special.entr(probability) + torch.special.entr(1 - probability)


class PairStatistics(NamedTuple):
    """Win probability and uncertainty of a pair from an ensemble; each has the shape of the samples without [K, N].

    Attributes:
        win_probability: P, the mean over samples of the probability that a beats b.
        entropy: H(P), the predictive entropy in nats; the sum of the next two values.
        disagreement: H(P) - mean H(P_s), the entropy in nats that comes from differences between samples.
        likelihood_entropy: mean H(P_s), the mean entropy of a single sample in nats.
        difference_error: standard error over draws of the mean difference r_a - r_b; NaN for a single draw.
    """

    win_probability: torch.Tensor
    entropy: torch.Tensor
    disagreement: torch.Tensor
    likelihood_entropy: torch.Tensor
    difference_error: torch.Tensor


def pair_statistics(samples_a, samples_b, variance, weights=None) -> PairStatistics:
    """Compute win probability and uncertainty of pairs from ensembles with the same noise levels and the same noise.

    Args:
        samples_a, samples_b: rewards [K, N, ...] at K noise levels with N draws each.
        variance: [K], variance of one reward at each level; the variance of a difference is twice this.
        weights: [K], weights of the levels, which sum to one; None weights them equally.
    """
    levels, _draws = samples_a.shape[:2]
    per_level = (levels, *[1] * (samples_a.ndim - 1))
    weights = torch.full_like(variance, 1 / levels) if weights is None else weights
    weights = weights.reshape(per_level)
    variance = variance.reshape(per_level)

    probabilities = win_probability(samples_a, samples_b, variance, variance)
    mean_probability = (weights * probabilities).sum(dim=0).mean(dim=0)
    entropy = binary_entropy(mean_probability)
    likelihood_entropy = (weights * binary_entropy(probabilities)).sum(dim=0).mean(dim=0)
    differences = (weights * (samples_a - samples_b)).sum(dim=0)
    return PairStatistics(
        win_probability=mean_probability,
        entropy=entropy,
        disagreement=entropy - likelihood_entropy,
        likelihood_entropy=likelihood_entropy,
        difference_error=_deviation(differences, dim=0) / differences.shape[0] ** 0.5,
    )


def log_probabilities(samples_a, samples_b, variance, weights) -> tuple[torch.Tensor, torch.Tensor]:
    """log P and log(1 - P) of the ensemble's P, `pair_statistics(...).win_probability`, finite where P would round to
    0 or 1. Arguments and shapes as there."""
    draws = samples_a.shape[1]
    variance, shares = (each.reshape(-1, *[1] * (samples_a.ndim - 1)) for each in (variance, weights / draws))
    z = standardized_difference(samples_a, samples_b, variance, variance)
    log_win, log_loss = (torch.logsumexp(log_ndtr(each) + shares.log(), dim=(0, 1)) for each in (z, -z))
    return log_win, log_loss


def spread_over_draws(samples: torch.Tensor) -> torch.Tensor:
    """Standard deviation of a score over draws, as root mean square over levels: [K, N, ...] to [...].

    It is NaN for a single draw, because 0 would claim certainty.
    """
    return _deviation(samples, dim=1).square().mean(dim=0).sqrt()


def _deviation(values: torch.Tensor, dim: int) -> torch.Tensor:
    if values.shape[dim] == 1:
        return torch.full_like(values.select(dim, 0), torch.nan)
    return values.std(dim=dim)


__all__ = [
    "PairStatistics",
    "binary_entropy",
    "bradley_terry_loss",
    "fidelity_loss",
    "likelihood_loss",
    "log_probabilities",
    "noise_variance",
    "pair_statistics",
    "precision_weights",
    "spread_over_draws",
    "standardized_difference",
    "win_probability",
]
