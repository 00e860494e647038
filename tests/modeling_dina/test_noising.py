"""Noise paths against their formulas, and noise that depends on nothing but its seed."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from hypothesis import given
from hypothesis import strategies as st

from modeling_dina.noising_dina import RectifiedFlow, VariancePreserving, path_from_scheduler, shared_noise

FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
DDPM = {
    "_class_name": "DDPMScheduler",
    "clip_sample": False,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
}


def test_rectified_flow_is_a_straight_line():
    latents, noise = torch.full((2, 1, 1, 1), 4.0), torch.full((2, 1, 1, 1), -2.0)
    noisy = path_from_scheduler(FLOW).add_noise(latents, noise, torch.tensor([0.25, 1.0]))
    assert noisy.flatten().tolist() == [0.75 * 4 - 0.25 * 2, -2.0]


def test_rectified_flow_timestep():
    assert path_from_scheduler(FLOW).timestep(torch.tensor([0.0, 0.25, 1.0])).tolist() == [0, 250, 1000]


def test_rectified_flow_levels_are_the_shifted_schedule():
    """shift s / (1 + (shift - 1) s) over s = 1/1000 ... 1 (arXiv 2403.03206, equation 23)."""
    levels = path_from_scheduler(FLOW).sigmas
    s = torch.arange(1, 1001) / 1000
    torch.testing.assert_close(levels, 3 * s / (1 + 2 * s))


def test_variance_preserving_keeps_the_variance():
    path = path_from_scheduler(DDPM)
    assert isinstance(path, VariancePreserving)
    latents, noise = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    signal = path.add_noise(latents, noise, torch.tensor([0.6]))
    torch.testing.assert_close(signal.flatten(), torch.tensor([0.8]))  # 0.8^2 + 0.6^2 = 1
    torch.testing.assert_close(path.add_noise(noise, latents, torch.tensor([0.6])).flatten(), torch.tensor([0.6]))


def test_variance_preserving_agrees_with_the_scheduler():
    path, scheduler = path_from_scheduler(DDPM), DDPMScheduler.from_config(DDPM)
    latents, noise = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    timesteps = torch.tensor([0, 400, 999])
    noisy = path.add_noise(latents, noise, path.sigmas[timesteps])
    torch.testing.assert_close(noisy, scheduler.add_noise(latents, noise, timesteps))
    assert path.timestep(path.sigmas[timesteps]).tolist() == [0, 400, 999]


def test_a_deterministic_step_of_a_variance_preserving_path_is_that_of_ddim():
    """Against the library's scheduler, for a prediction of the velocity."""
    path, scheduler = path_from_scheduler(DDPM), DDIMScheduler.from_config(DDPM, prediction_type="v_prediction")
    scheduler.set_timesteps(10)
    state, velocity = torch.randn(2, 1, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    sigma, sigma_next = path.sigmas[[700]], path.sigmas[[600]]
    expected = scheduler.step(velocity, 700, state, eta=0.0)
    clean = scheduler.step(velocity, 700, state).pred_original_sample
    torch.testing.assert_close(path.step(state, velocity, sigma, sigma_next), expected.prev_sample)
    torch.testing.assert_close(path.predict_clean(state, velocity, sigma), clean)
    latents, noise = torch.randn(2, 1, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    expected = scheduler.get_velocity(latents, noise, torch.tensor([700]))
    torch.testing.assert_close(path.velocity(latents, noise, sigma), expected)


@pytest.mark.parametrize("config", [FLOW, DDPM])
def test_a_step_stays_on_the_path(config):
    path, sigma = path_from_scheduler(config), torch.tensor([0.9, 0.4])
    latents, noise = torch.randn(2, 2, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    state, velocity = path.add_noise(latents, noise, sigma), path.velocity(latents, noise, sigma)
    torch.testing.assert_close(path.predict_clean(state, velocity, sigma), latents)
    expected = path.add_noise(latents, noise, sigma / 2)
    torch.testing.assert_close(path.step(state, velocity, sigma, sigma / 2), expected)


def test_levels_of_a_rectified_flow_have_the_same_signal_to_noise():
    levels = torch.tensor([0.0, 0.2, 0.5, 0.7, 1.0])
    assert path_from_scheduler(FLOW).from_flow(levels) is levels
    path = path_from_scheduler(DDPM)
    sigma = path.from_flow(levels)
    ones, zeros = torch.ones(5, 1, 1, 1), torch.zeros(5, 1, 1, 1)
    signal, noise = path.add_noise(ones, zeros, sigma), path.add_noise(zeros, ones, sigma)
    torch.testing.assert_close((noise / (signal + noise)).flatten(), levels)
    # By hand: s / sqrt(s^2 + (1 - s)^2) at s = 0.2 is 1 / sqrt(17).
    assert sigma[1].item() == pytest.approx(17**-0.5)
    assert path.timestep(sigma[1:4]).tolist() == [60, 354, 606]


def test_the_table_is_real_on_the_meta_device():
    with torch.device("meta"):
        assert path_from_scheduler(FLOW).sigmas.device.type == "cpu"
        assert path_from_scheduler(DDPM).sigmas.device.type == "cpu"


@given(st.lists(st.floats(0, 1), min_size=1, max_size=5))
def test_snapping_gives_the_nearest_level(asked):
    path = path_from_scheduler(FLOW)
    asked = torch.tensor(asked)
    snapped = path.snap(asked)
    assert torch.isin(snapped, path.sigmas).all()
    assert ((snapped - asked).abs()[:, None] <= (path.sigmas - asked[:, None]).abs()).all()
    assert torch.equal(path.snap(snapped), snapped)


def test_unknown_schedulers_are_refused():
    with pytest.raises(ValueError, match=r"scheduler_config: .*got _class_name='EDMEulerScheduler'"):
        path_from_scheduler({"_class_name": "EDMEulerScheduler"})


def test_noise_does_not_depend_on_how_much_is_asked_for():
    many = shared_noise((2, 3, 4), num_draws=3, seed=5)
    assert many.shape == (3, 1, 2, 3, 4)
    torch.testing.assert_close(shared_noise((2, 3, 4), num_draws=1, seed=5), many[:1], rtol=0, atol=0)
    per_sample = shared_noise((2, 3, 4), num_draws=3, seed=[7, 5])
    assert per_sample.shape == (3, 2, 2, 3, 4)
    torch.testing.assert_close(per_sample[:, 1:], many, rtol=0, atol=0)


def test_noise_ignores_the_global_generator_and_device():
    torch.manual_seed(0)
    first = shared_noise((2, 2), num_draws=1)
    torch.manual_seed(1)
    with torch.device("meta"):
        second = shared_noise((2, 2), num_draws=1)
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_draws_and_seeds_are_all_different():
    draws = torch.cat([shared_noise((64,), num_draws=8, seed=seed).flatten(1) for seed in range(8)])
    correlation = torch.corrcoef(draws) - torch.eye(64)
    assert correlation.abs().max() < 0.7


def test_noise_is_standard_normal():
    noise = shared_noise((16, 64, 64), num_draws=2)
    assert abs(noise.mean().item()) < 0.01
    assert abs(noise.std().item() - 1) < 0.01


def test_rectified_flow_is_chosen_for_flow_matching():
    assert isinstance(path_from_scheduler({**FLOW, "_class_name": "FlowMatchHeunDiscreteScheduler"}), RectifiedFlow)


def test_writing_into_noise_does_not_change_the_next():
    first = shared_noise((2, 3, 3), 2, seed=4)
    expected = first.clone()
    first.zero_()
    assert torch.equal(shared_noise((2, 3, 3), 2, seed=4), expected)
