"""The law of a learning curve: recovery of known ones, and forecasts from pairs that follow one."""

import numpy as np
import pytest
from scipy.optimize import minimize

from training.label.power_law import PowerLaw, fit_power_laws, forecast

COUNTS = np.array([25, 50, 100, 200, 400])


def fit(losses, lowest_floor=0.0):
    """The law of one curve at `COUNTS`."""
    return PowerLaw(*(float(parameter[0]) for parameter in fit_power_laws(COUNTS, losses[None], lowest_floor)))


@pytest.mark.parametrize("law", [PowerLaw(2.0, 0.5, 0.2), PowerLaw(0.8, 0.25, 0.1), PowerLaw(30.0, 1.0, 0.3)])
def test_a_known_law_is_recovered(law):
    found = fit(law(COUNTS))
    assert tuple(found) == pytest.approx(tuple(law), rel=1e-6)
    assert found(800) == pytest.approx(law(800), rel=1e-3)


def test_more_votes_never_raise_the_loss():
    found = fit(np.array([0.30, 0.31, 0.32, 0.33, 0.34]))
    assert found(800) == pytest.approx(found(400))
    assert found(400) == pytest.approx(0.32, abs=1e-3)


def test_the_floor_is_bounded():
    law = PowerLaw(2.0, 0.5, 0.1)
    found = fit(law(COUNTS), 0.18)
    assert found.floor >= 0.18
    assert found(10**9) >= 0.18


def test_noisy_losses_have_the_least_squares():
    """Against a general minimiser, from many starts."""
    rng = np.random.default_rng(0)
    for lowest_floor in (0.0, 0.15):
        losses = PowerLaw(2.0, 0.5, 0.1)(COUNTS) + rng.normal(0, 0.01, 5)
        found = fit(losses, lowest_floor)

        def cost(parameters, losses=losses):
            scale, exponent, floor = parameters
            return np.square(PowerLaw(scale, exponent, floor)(COUNTS) - losses).sum()

        bounds = [(0, 100), (0.01, 2), (lowest_floor, 1)]
        best = min(minimize(cost, (scale, 0.5, 0.2), bounds=bounds).fun for scale in (0.5, 2, 5))
        assert cost(found) <= best + 1e-5  # exponents have steps of 0.01


def test_two_points_are_refused():
    with pytest.raises(ValueError, match=r"^counts: .*got 2$"):
        fit_power_laws(COUNTS[:2], np.array([[0.5, 0.4]]), 0.0)


def outcomes(law, pairs, seed=0):
    """Errors 0 or 1 of pairs in five folds, two pairs a prompt, that follow the law."""
    # The same uniform numbers for every count: a pair that is right stays right.
    uniform = np.random.default_rng(seed).random(pairs)
    losses = (uniform < law(COUNTS)[:, None]).astype(float)
    clusters = np.arange(pairs) // 2
    return losses, clusters, clusters % 5


def test_forecast_of_a_law_has_its_gain_in_the_interval():
    law = PowerLaw(2.0, 0.5, 0.2)
    found = forecast(COUNTS, *outcomes(law, 4000), votes=500, lowest_floor=0.0)
    gain = law(500) - law(1000)
    low, high = found["gain_interval"]
    assert low < gain < high
    assert high - low < 0.05
    assert found["gain"] == pytest.approx(found["now"] - found["doubled"])
    assert found["doubled"] == pytest.approx(law(1000), abs=0.02)
    assert found["doubled_interval"][0] < found["doubled"] < found["doubled_interval"][1]


def test_fewer_pairs_have_a_wider_interval():
    law = PowerLaw(2.0, 0.5, 0.2)
    widths = []
    for pairs in (200, 4000):
        low, high = forecast(COUNTS, *outcomes(law, pairs), votes=500, lowest_floor=0.0)["doubled_interval"]
        widths.append(high - low)
    assert widths[0] > 2 * widths[1]
