"""Statistics of preferences against closed forms, and the `evaluate` module that wraps them."""

import math
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch
from scipy.special import log_ndtr, logsumexp, ndtr

from modeling_dina.evaluation.statistics import (
    agreement,
    best_tie_threshold,
    brier_score,
    calibration_error,
    clustered_mean,
    logistic_log_probabilities,
    negative_log_likelihood,
)
from modeling_dina.thurstone_dina import log_probabilities, pair_statistics

METRIC = Path(__file__).parents[3] / "modeling_dina" / "evaluation" / "preference_accuracy"


def test_agreement():
    difference = np.array([2.0, 2.0, -1.0, 0.0, 0.0, 0.0, 1.0, -1.0])
    assert np.isnan(agreement(np.array([np.nan]), np.ones(1), ties="half")).all()
    target = np.array([1.0, 0.0, 0.3, 1.0, 0.0, 0.5, 0.5, 1.0])
    assert agreement(difference, target, ties="wrong").tolist() == [1, 0, 0.7, 0, 0, 0.5, 0.5, 0]
    assert agreement(difference, target, ties="half").tolist() == [1, 0, 0.7, 0.5, 0.5, 0.5, 0.5, 0]


def test_agreement_where_ties_are_predicted():
    # Probabilities differ by tanh(0.5) = 0.46 and tanh(1) = 0.76.
    difference, target = np.array([1.0, 1.0, -1.0, 2.0, 2.0, -2.0]), np.array([0.5, 1.0, 0.0, 1.0, 0.5, 1.0])
    assert agreement(difference, target, ties="predicted", threshold=0.5).tolist() == [1, 0.5, 0.5, 1, 0.5, 0]
    assert agreement(difference, target, ties="predicted", threshold=0.4).tolist() == [0.5, 1, 1, 1, 0.5, 0]
    assert agreement(np.zeros(1), np.array([0.5]), ties="predicted", threshold=0.0).tolist() == [1]


def test_best_tie_threshold_is_the_first_of_the_best():
    assert best_tie_threshold(np.array([1.0, 3.0]), np.array([0.5, 1.0])) == 0.5
    assert best_tie_threshold(np.array([3.0]), np.array([1.0])) == 0.0


def test_standard_error_of_independent_pairs_is_the_binomial_one():
    values = np.array([1.0] * 30 + [0.0] * 10)
    measured = clustered_mean(values, np.arange(40))
    assert measured["mean"] == 0.75
    # With Bessel's correction: sqrt(p (1 - p) / (n - 1)).
    assert measured["standard_error"] == pytest.approx(math.sqrt(0.75 * 0.25 / 39))
    low, high = measured["interval"]
    # A bootstrap of many independent values is nearly normal.
    assert (high - low) / (2 * 1.96) == pytest.approx(measured["standard_error"], rel=0.15)


def test_pairs_of_one_prompt_count_as_one():
    """Twenty copies of every value tell nothing more."""
    values, clusters = np.tile([1.0, 0.0, 1.0, 1.0], 20), np.tile(np.arange(4), 20)
    alone, copied = clustered_mean(values[:4], clusters[:4]), clustered_mean(values, clusters)
    assert copied["standard_error"] == pytest.approx(alone["standard_error"])
    assert copied["interval"] == alone["interval"]


def test_mean_over_prompts():
    values, clusters = np.array([1.0, 0.0, 0.0, 1.0]), ["a", "a", "a", "b"]
    assert clustered_mean(values, clusters)["mean"] == 0.5
    measured = clustered_mean(values, clusters, equal_clusters=True)
    assert measured["mean"] == pytest.approx(2 / 3)
    assert measured["standard_error"] == pytest.approx(np.std([1 / 3, 1], ddof=1) / math.sqrt(2))


def test_one_prompt_has_no_standard_error():
    assert clustered_mean(np.ones(3), np.zeros(3)) == {"mean": 1.0, "standard_error": None, "interval": None}
    with pytest.raises(ValueError, match="values: expected at least one"):
        clustered_mean(np.ones(0), np.zeros(0))


def test_bootstrap_is_seeded():
    values = np.random.default_rng(0).random(50)
    intervals = [clustered_mean(values, np.arange(50), seed=seed)["interval"] for seed in (0, 0, 1)]
    assert intervals[0] == intervals[1] != intervals[2]


def thurstone(*arrays):
    return [each.numpy() for each in log_probabilities(*map(torch.from_numpy, arrays))]


def test_thurstone_probability_is_the_models():
    rng = np.random.default_rng(0)
    a, b = 3 * rng.normal(size=(2, 3, 4, 50))
    variance, weights = np.array([0.1, 0.5, 1.0]), np.array([0.5, 0.3, 0.2])
    log_win, log_loss = thurstone(a, b, variance, weights)
    expected = pair_statistics(*map(torch.from_numpy, (a, b, variance, weights))).win_probability.numpy()
    np.testing.assert_allclose(np.exp(log_win), expected, atol=1e-12)
    np.testing.assert_allclose(np.exp(log_win) + np.exp(log_loss), 1, atol=1e-12)
    # By scipy's functions, in the tails too.
    z, shares = (a - b) / np.sqrt(2 * variance)[:, None, None], (weights / 4)[:, None, None]
    for found, sign in ((log_win, 1), (log_loss, -1)):
        np.testing.assert_allclose(found, logsumexp(log_ndtr(sign * z), axis=(0, 1), b=shares), rtol=1e-12)
    one = thurstone(np.ones((1, 1, 1)), np.zeros((1, 1, 1)), np.array([0.5]), np.ones(1))[0]
    assert np.exp(one) == pytest.approx(ndtr(1.0))


def test_sure_mistakes_have_a_finite_likelihood():
    far = np.array([1000.0])
    for log_win, log_loss in (
        thurstone(far[None, None], np.zeros((1, 1, 1)), np.array([0.5]), np.ones(1)),
        logistic_log_probabilities(far),
    ):
        assert log_win == pytest.approx(0)
        assert log_loss < -900
        assert np.isfinite(log_loss).all()


def test_likelihood_and_brier_of_known_probabilities():
    probability, target = np.array([0.8, 0.5, 0.25]), np.array([1.0, 0.5, 0.0])
    expected = -(math.log(0.8) + math.log(0.5) + math.log(0.75)) / 3
    assert negative_log_likelihood(np.log(probability), np.log(1 - probability), target) == pytest.approx(expected)
    assert brier_score(probability, target) == pytest.approx((0.2**2 + 0.5**2 + 0.25**2) / 3)


def test_calibration_error():
    # The bins of 0.25 (mean of q: 0.5) and 0.95 (mean of q: 1), and a probability of exactly 1.
    probability, target = np.array([0.25, 0.25, 0.95, 1.0]), np.array([1.0, 0.0, 1.0, 1.0])
    assert calibration_error(probability, target) == pytest.approx((2 * 0.25 + 0.05) / 4)
    calibrated = np.linspace(0, 1, 1001)
    assert calibration_error(calibrated, calibrated) == pytest.approx(0)


# The module for `evaluate`


@pytest.fixture(scope="module")
def metric():
    return evaluate.load(str(METRIC))


def test_metric(metric):
    result = metric.compute(
        predictions=[0.3, -1.2, 0.0, 1.0], references=[1, 1, 0, 0.5], prompts=["a", "a", "b", "b"], drop_ties=True
    )
    assert result["accuracy"] == pytest.approx(1 / 3)
    assert result["pairs"] == 3
    expected = clustered_mean(np.array([1.0, 0, 0]), ["a", "a", "b"])
    assert result["standard_error"] == expected["standard_error"]
    assert metric.compute(predictions=[0.3, -1.2, 0.0], references=[1, 1, 0])["accuracy"] == pytest.approx(1 / 3)


def test_metric_of_nothing(metric):
    nothing = {"accuracy": None, "standard_error": None, "interval": None, "pairs": 0}
    assert metric.compute(predictions=[], references=[]) == nothing
    assert metric.compute(predictions=[1.0], references=[0.5], drop_ties=True) == nothing


@pytest.mark.slow
def test_metric_refusals(metric):
    for wrong in ({"references": [2.0]}, {"references": [float("nan")]}, {"predictions": [float("inf")]}):
        with pytest.raises(ValueError, match="predictions, references: expected finite numbers"):
            metric.compute(**({"predictions": [1.0], "references": [1.0]} | wrong))
    with pytest.raises(ValueError, match="prompts: expected one for each of 1 pairs, got 2"):
        metric.compute(predictions=[1.0], references=[1.0], prompts=["a", "b"])
