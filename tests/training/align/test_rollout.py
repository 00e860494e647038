"""Steps and their log-probabilities against closed forms: the ODE limit, normal densities, known marginals."""

import pytest
import torch
from torch.distributions import Normal

from modeling_dina.noising_dina import RectifiedFlow
from training.align.rollout import CPS, SDE, per_sample, rollout

FLOW = RectifiedFlow({})
LEVELS = [(1.0, 0.9), (0.9, 0.6), (0.5, 0.1), (0.1, 0.0)]


@pytest.fixture
def states():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, 4, 5, 6, generator=generator).unbind(0)


def levels(sigma, sigma_next):
    return torch.full((3,), sigma), torch.full((3,), sigma_next)


def test_a_straight_path_is_followed_exactly(states):
    clean, noise = states
    sigma, sigma_next = torch.tensor([1.0, 0.7, 0.2]), torch.tensor([0.4, 0.1, 0.0])
    state = (1 - per_sample(sigma)) * clean + per_sample(sigma) * noise
    expected = (1 - per_sample(sigma_next)) * clean + per_sample(sigma_next) * noise
    torch.testing.assert_close(FLOW.step(state, noise - clean, sigma, sigma_next), expected)
    torch.testing.assert_close(FLOW.predict_clean(state, noise - clean, sigma), clean)


@pytest.mark.parametrize("dynamics", [SDE, CPS])
@pytest.mark.parametrize("sigmas", LEVELS)
def test_without_noise_it_is_the_ode(states, dynamics, sigmas):
    latents, velocity = states
    transition = dynamics(eta=0.0).transition(latents, velocity, *levels(*sigmas))
    torch.testing.assert_close(transition.mean, FLOW.step(latents, velocity, *levels(*sigmas)))
    assert not transition.std.any()


@pytest.mark.parametrize("dynamics", [SDE, CPS])
def test_the_ode_is_approached_linearly_in_the_noise_variance(states, dynamics):
    latents, velocity = states
    distances = []
    for eta in (1e-1, 1e-2):
        transition = dynamics(eta).transition(latents, velocity, *levels(0.6, 0.5))
        distances.append((transition.mean - FLOW.step(latents, velocity, *levels(0.6, 0.5))).norm())
    assert distances[0] / distances[1] == pytest.approx(100, rel=0.02)


def test_sde_worked_out_by_hand():
    """s = .5, s' = .4, eta = .5: scale^2 = .25, mean = x (1 - .025) + 1.125 v (-.1), std = .5 sqrt(.1)."""
    one = torch.ones(1, 1, 1, 1)
    transition = SDE(0.5).transition(2 * one, 3 * one, torch.tensor([0.5]), torch.tensor([0.4]))
    assert transition.mean.item() == pytest.approx(2 * 0.975 - 3 * 0.1125)
    assert transition.std.item() == pytest.approx(0.5 * 0.1**0.5)
    assert transition.scale.item() == pytest.approx(0.5)


def test_sde_takes_the_second_level_at_pure_noise():
    one = torch.ones(1, 1, 1, 1)
    transition = SDE(0.7).transition(one, one, torch.tensor([1.0]), torch.tensor([0.8]))
    assert transition.scale.item() == pytest.approx(0.7 * (1 / 0.2) ** 0.5)


def test_sde_log_probability_is_the_normal_density(states):
    latents, velocity = states
    transition = SDE(0.7).transition(latents, velocity, *levels(0.9, 0.6))
    outcome = transition.mean + 0.3 * velocity
    expected = Normal(transition.mean, transition.std).log_prob(outcome).mean(dim=(1, 2, 3))
    torch.testing.assert_close(SDE(0.7).log_probability(outcome, transition), expected)


def test_cps_log_probability_is_the_normal_density_up_to_scale_and_constant(states):
    latents, velocity = states
    transition = CPS(0.8).transition(latents, velocity, *levels(0.9, 0.6))
    law = Normal(transition.mean, transition.std)
    outcomes = [transition.mean + shift * velocity for shift in (0.3, -0.1)]
    expected = law.log_prob(outcomes[0]).mean(dim=(1, 2, 3)) - law.log_prob(outcomes[1]).mean(dim=(1, 2, 3))
    first, second = (CPS(0.8).log_probability(outcome, transition) for outcome in outcomes)
    torch.testing.assert_close((first - second) / (2 * transition.std.flatten() ** 2), expected)


@pytest.mark.parametrize("dynamics", [SDE, CPS])
def test_log_probability_moves_the_mean_and_not_the_outcome(states, dynamics):
    latents, velocity = states
    velocity.requires_grad_()
    transition = dynamics(0.7).transition(latents, velocity, *levels(0.9, 0.6))
    outcome = transition.mean.detach() + 0.1
    outcome.requires_grad_()
    dynamics(0.7).log_probability(outcome, transition).sum().backward()
    assert outcome.grad is None
    assert velocity.grad.abs().sum() > 0


@pytest.mark.parametrize(("dynamics", "steps"), [(None, 200), (SDE(0.3), 400), (SDE(0.7), 400)])
def test_marginals_of_a_normal_distribution(dynamics, steps):
    """Data N(m, c^2): the velocity is known, and a path must end with the data's mean and deviation."""
    mean, deviation = 1.5, 0.4

    def velocity(latents, sigma):
        sigma = per_sample(sigma)
        variance = (1 - sigma) ** 2 * deviation**2 + sigma**2
        gain = (sigma - (1 - sigma) * deviation**2) / variance
        return -mean + gain * (latents - (1 - sigma) * mean)

    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(64, 1, 16, 16, generator=generator)
    sigmas = torch.linspace(1, 0, steps + 1)
    path = rollout(velocity, noise, sigmas, FLOW, dynamics, range(steps - 1), generator)
    assert path.states[-1].mean().item() == pytest.approx(mean, abs=0.02)
    assert path.states[-1].std().item() == pytest.approx(deviation, abs=0.02)


def test_cps_keeps_the_coefficients_exactly(states):
    """With one possible clean latent the next state is (1 - s') x0 + s' times unit noise, in one step of any size."""
    clean = states[0][:1]
    noise = torch.randn(4000, *clean.shape[1:], generator=torch.Generator().manual_seed(1))
    sigma, sigma_next = torch.full((4000,), 0.9), torch.full((4000,), 0.3)
    state = 0.1 * clean + 0.9 * noise
    transition = CPS(0.7).transition(state, noise - clean, sigma, sigma_next)
    torch.testing.assert_close(transition.mean.mean(0), 0.7 * clean[0], atol=0.02, rtol=0)
    total = transition.mean.var() - (0.7 * clean).var(unbiased=False) + transition.std[0].item() ** 2
    assert total.item() == pytest.approx(0.09, rel=0.03)


def test_rollout_is_reproducible_and_stochastic_only_in_its_window():
    def velocity(latents, sigma):
        return 0.5 * latents

    noise = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    sigmas = torch.linspace(1, 0, 6)
    paths = [
        rollout(velocity, noise, sigmas, FLOW, CPS(0.8), [1, 2], torch.Generator().manual_seed(7)) for _ in range(2)
    ]
    assert torch.equal(paths[0].states, paths[1].states)
    plain = rollout(velocity, noise, sigmas, FLOW)
    assert torch.equal(paths[0].states[:2], plain.states[:2])
    assert not torch.allclose(paths[0].states[2], plain.states[2])
    assert paths[0].log_probabilities.any(dim=1).tolist() == [False, True, True, False, False]
    # The log-probabilities are those of the steps that were taken.
    for step in (1, 2):
        before, after = paths[0].states[step : step + 2]
        transition = CPS(0.8).transition(before, 0.5 * before, sigmas[step].expand(2), sigmas[step + 1].expand(2))
        assert torch.equal(CPS(0.8).log_probability(after, transition), paths[0].log_probabilities[step])
