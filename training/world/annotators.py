"""Simulated annotators, who compare true utilities with normal noise of known standard deviation (Thurstone)."""

import numpy as np
from scipy.special import ndtr

# Standard deviation of one annotator's estimate of the utility of one picture.
IMPRESSION_NOISE = 0.5
ANNOTATORS = 9  # votes on each pair


def true_preference(utility_a: np.ndarray, utility_b: np.ndarray) -> np.ndarray:
    """P(one annotator prefers a) = Phi((u_a - u_b) / (sqrt(2) s)), Thurstone's case V."""
    return ndtr((np.asarray(utility_a) - np.asarray(utility_b)) / (np.sqrt(2) * IMPRESSION_NOISE))


def vote(utility_a: np.ndarray, utility_b: np.ndarray, annotators: int, rng: np.random.Generator) -> np.ndarray:
    """Share of `annotators` independent votes for a, in the shape of the utilities."""
    return rng.binomial(annotators, true_preference(utility_a, utility_b)) / annotators


def expected_agreement(prefers_a: np.ndarray, utility_a: np.ndarray, utility_b: np.ndarray) -> np.ndarray:
    """Probability that a new annotator agrees with each choice, in the shape of the utilities.

    Its mean is an accuracy without the sampling noise of an annotator. Choices by the true utilities reach the highest
    possible mean (Bayes). There are no ties: if `prefers_a` is False, b is preferred. With `scores_a > scores_b` as
    choices, equal scores therefore count as a preference for b.
    """
    preference = true_preference(utility_a, utility_b)
    return np.where(prefers_a, preference, 1 - preference)
