"""Annotators of the small world: they see a picture's true utility through normal noise of known size (Thurstone)."""

import numpy as np
from scipy.special import ndtr

# Standard deviation of one annotator's impression of one picture, in units of utility.
IMPRESSION_NOISE = 0.5
ANNOTATORS = 9  # votes on each pair


def true_preference(utility_a: np.ndarray, utility_b: np.ndarray) -> np.ndarray:
    """P(one annotator prefers a) = Phi((u_a - u_b) / (sqrt(2) s)), Thurstone's case V."""
    return ndtr((np.asarray(utility_a) - np.asarray(utility_b)) / (np.sqrt(2) * IMPRESSION_NOISE))


def vote(utility_a: np.ndarray, utility_b: np.ndarray, annotators: int, rng: np.random.Generator) -> np.ndarray:
    """Share of `annotators` independent votes that go to a, in the shape of the utilities."""
    return rng.binomial(annotators, true_preference(utility_a, utility_b)) / annotators


def expected_agreement(prefers_a: np.ndarray, utility_a: np.ndarray, utility_b: np.ndarray) -> np.ndarray:
    """Probability that one fresh annotator shares each choice, in the shape of the utilities.

    Its mean is an accuracy without the noise of a sampled annotator. Choices by the utilities themselves give the best
    that can be reached (Bayes). There are no ties: what does not prefer a prefers b, so that choices of the larger of
    two scores, `scores_a > scores_b`, count equal scores as a preference for b.
    """
    preference = true_preference(utility_a, utility_b)
    return np.where(prefers_a, preference, 1 - preference)
