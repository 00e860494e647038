"""Annotators of the small world: they see a picture's true utility through normal noise of known size (Thurstone)."""

import numpy as np
from scipy.special import ndtr

# Standard deviation of one annotator's impression of one picture, in units of utility.
IMPRESSION_NOISE = 0.5


def true_preference(utility_a: np.ndarray, utility_b: np.ndarray) -> np.ndarray:
    """P(one annotator prefers a) = Phi((u_a - u_b) / (sqrt(2) s)), Thurstone's case V."""
    return ndtr((np.asarray(utility_a) - np.asarray(utility_b)) / (np.sqrt(2) * IMPRESSION_NOISE))


def vote(utility_a: np.ndarray, utility_b: np.ndarray, annotators: int, rng: np.random.Generator) -> np.ndarray:
    """Share of `annotators` independent votes that go to a, in the shape of the utilities."""
    return rng.binomial(annotators, true_preference(utility_a, utility_b)) / annotators


def best_accuracy(utility_a: np.ndarray, utility_b: np.ndarray) -> float:
    """Accuracy of whoever knows the utilities against one fresh annotator: the best that can be reached."""
    preference = true_preference(utility_a, utility_b)
    return float(np.maximum(preference, 1 - preference).mean())


def expected_accuracy(prefers_a: np.ndarray, utility_a: np.ndarray, utility_b: np.ndarray) -> float:
    """Accuracy of choices against one fresh annotator, in expectation over that annotator's noise."""
    preference = true_preference(utility_a, utility_b)
    return float(np.where(prefers_a, preference, 1 - preference).mean())
