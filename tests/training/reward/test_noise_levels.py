"""Noise levels follow their densities, and every pair's noise is its own whatever it is batched with."""

import numpy as np
import pytest
import torch
from diffusers.training_utils import compute_density_for_timestep_sampling
from scipy.stats import beta, kstest

from training.reward.noise_levels import DENSITIES, NoiseLevels, seeded_draws

UNIFORM = torch.from_numpy(np.random.default_rng(0).random(4000)).float()


@pytest.mark.parametrize(
    ("density", "parameters", "options"),
    [
        ("uniform", [], {}),
        ("logit_normal", [-0.5, 0.8], {"logit_mean": -0.5, "logit_std": 0.8}),
        ("mode", [1.29], {"mode_scale": 1.29}),
    ],
)
def test_the_densities_of_stable_diffusion_3(density, parameters, options):
    generator = torch.Generator().manual_seed(1)
    expected = compute_density_for_timestep_sampling(density, 4000, generator=generator, **options)
    assert kstest(NoiseLevels(density, parameters)(UNIFORM), expected).pvalue > 0.01


def test_closed_forms():
    u = torch.tensor([0.1, 0.5, 0.9])
    torch.testing.assert_close(NoiseLevels("power", [2.0])(u), torch.tensor([0.01, 0.25, 0.81]))
    # The quantile of Beta(1, b) is 1 - (1 - u)^(1 / b).
    torch.testing.assert_close(NoiseLevels("beta", [1.0, 3.0])(u), 1 - (1 - u) ** (1 / 3))
    torch.testing.assert_close(NoiseLevels("constant", [0.3])(u), torch.full((3,), 0.3))
    assert NoiseLevels("logit_normal")(torch.tensor([0.5])) == 0.5
    assert kstest(NoiseLevels("beta", [2.0, 5.0])(UNIFORM), beta(2, 5).cdf).pvalue > 0.01


@pytest.mark.parametrize("density", DENSITIES)
def test_levels_stay_on_the_path(density):
    u, _ = seeded_draws(0, 0, range(2000), (1,))
    levels = NoiseLevels(density)(u)
    assert levels.dtype == torch.float32
    assert (levels >= 0).all()
    assert (levels <= 1).all()


@pytest.mark.parametrize(
    ("density", "parameters", "message"),
    [
        ("gauss", [], "sigma_density: expected one of"),
        ("uniform", [1.0], "sigma_parameters: expected"),
        ("beta", [0.0, 1.0], "sigma_parameters: expected"),
        ("power", [-1.0], "sigma_parameters: expected"),
        ("constant", [1.5], "sigma_parameters: expected"),
        ("mode", [9.0], "sigma_parameters: expected"),
        ("logit_normal", [0.0, float("nan")], "sigma_parameters: expected"),
    ],
)
def test_refusals(density, parameters, message):
    with pytest.raises(ValueError, match=message):
        NoiseLevels(density, parameters)


def test_draws_depend_on_seed_step_and_row_alone():
    u, noise = seeded_draws(7, 3, [10, 11, 12, 13], (2, 4, 4))
    for rows in ([13, 10], [11]):
        again_u, again_noise = seeded_draws(7, 3, rows, (2, 4, 4))
        chosen = [row - 10 for row in rows]
        assert torch.equal(again_u, u[chosen])
        assert torch.equal(again_noise, noise[chosen])
    for other in ((8, 3), (7, 4)):
        other_u, other_noise = seeded_draws(*other, [10, 11, 12, 13], (2, 4, 4))
        assert not (other_u == u).any()
        assert not (other_noise == noise).any()


def test_draws_are_uniform_and_normal():
    u, noise = seeded_draws(0, 0, range(2000), (3,))
    assert kstest(u, "uniform").pvalue > 0.01
    assert kstest(noise.flatten(), "norm").pvalue > 0.01
    assert abs(np.corrcoef(u, noise[:, 0])[0, 1]) < 0.08
