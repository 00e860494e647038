"""The losses, against numbers worked out by hand and against what their formulas promise."""

import math

import pytest
import torch
from diffusers import DDIMScheduler
from torch.distributions import Normal, kl_divergence

from modeling_dina.noising_dina import RectifiedFlow
from tests.families import SCHEDULERS, tiny_transformer
from training.align.algorithm import group_advantages, seeded_noise
from training.align.dpo import dpo_loss
from training.align.generators import GENERATORS
from training.align.grpo import clipped_objective, transition_distance
from training.align.nft import nft_loss
from training.align.refl import differentiable_steps, held_loss
from training.align.rollout import CPS, SDE, rollout

FLOW = RectifiedFlow({})


def filled(value: float, count: int = 1) -> torch.Tensor:
    return torch.full((count, 2, 3, 3), value)


# ---- group advantages and the clipped objective ----


def test_advantages_by_hand():
    """Groups (1, 3) and (2, 6): means 2 and 4, divided by the deviation given."""
    scores, group = torch.tensor([1.0, 3.0, 2.0, 6.0]), torch.tensor([0, 0, 1, 1])
    advantages = group_advantages(scores, group, torch.tensor(2.0))
    torch.testing.assert_close(advantages, torch.tensor([-1.0, 1.0, -2.0, 2.0]) / 2.0001)


def test_a_sample_without_a_reward_has_no_part_in_its_group():
    scores, group = torch.tensor([1.0, 3.0, math.nan, 6.0, math.inf]), torch.tensor([0, 0, 0, 1, 1])
    advantages = group_advantages(scores, group, torch.tensor(1.0))
    torch.testing.assert_close(advantages[:2], torch.tensor([-1.0, 1.0]) / 1.0001)
    assert advantages[3] == 0
    assert not advantages[[2, 4]].isfinite().any()


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [(1.0, 2.0, -2.0), (1.5, 2.0, -2.2), (0.5, 2.0, -1.0), (1.5, -2.0, 3.0), (0.5, -2.0, 1.8)],
)
def test_clipped_objective_by_hand(ratio, advantage, expected):
    """e = .1: a ratio may help by no more than e, and may hurt by as much as it does."""
    loss = clipped_objective(torch.tensor([math.log(ratio)]), torch.zeros(1), torch.tensor([advantage]), 0.1)
    assert loss.item() == pytest.approx(expected)


def test_the_objective_begins_as_the_policy_gradient():
    """At ratio 1 its gradient is that of -A log p."""
    old = torch.tensor([-0.3, 0.2])
    new, advantage = old.clone().requires_grad_(), torch.tensor([1.5, -0.5])
    clipped_objective(new, old, advantage, 1e-4).sum().backward()
    torch.testing.assert_close(new.grad, -advantage)


def test_transition_distance_is_the_divergence_of_two_steps():
    sigma, sigma_next = torch.full((3,), 0.7), torch.full((3,), 0.5)
    latents, velocity, other = torch.randn(3, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    for dynamics, length in ((CPS(0.8), 1.0), (SDE(0.7), 0.2)):
        first, second = (dynamics.transition(latents, v, sigma, sigma_next) for v in (velocity, other))
        laws = (Normal(step.mean, step.std.expand_as(step.mean)) for step in (first, second))
        expected = kl_divergence(*laws).mean(dim=(1, 2, 3)) * length
        torch.testing.assert_close(transition_distance(first, second), expected)


# ---- DiffusionNFT ----


def test_nft_by_hand():
    """x = 1, s = .5, x0 = .2, v = 1, v_old = .4, b = .5: v+ = .7, v- = .1, errors .45 and .75, each squared over its
    absolute value; rho = .75: (.75 * .45 + .25 * .75) / .5."""
    loss = nft_loss(
        filled(1.0),
        filled(0.4),
        filled(1.0),
        filled(0.2),
        torch.tensor([0.5]),
        torch.tensor([0.75]),
        beta=0.5,
        path=FLOW,
    )
    assert loss.item() == pytest.approx((0.75 * 0.45 + 0.25 * 0.75) / 0.5)


@pytest.mark.parametrize("optimality", [0.0, 0.5, 1.0])
def test_nft_moves_towards_good_samples_and_from_bad_ones(optimality):
    """From v = v_old, the gradient is the flow-matching one times (2 rho - 1), over the error's scale."""
    generator = torch.Generator().manual_seed(0)
    latents, noise, old = torch.randn(3, 2, 4, 3, 3, generator=generator)
    sigma = torch.tensor([0.3, 0.8])
    state = FLOW.add_noise(latents, noise, sigma)
    velocity = old.clone().requires_grad_()
    nft_loss(velocity, old, state, latents, sigma, torch.full((2,), optimality), 1.0, FLOW).sum().backward()
    error = FLOW.predict_clean(state, old, sigma) - latents
    scale = error.abs().mean(dim=(1, 2, 3), keepdim=True)
    towards = -2 * sigma.reshape(2, 1, 1, 1) * error / error[0].numel() / scale
    torch.testing.assert_close(velocity.grad, (2 * optimality - 1) * towards)


def test_nft_of_an_exact_prediction_is_finite():
    latents, noise, sigma = filled(0.2), filled(1.0), torch.tensor([0.5])
    velocity = (noise - latents).requires_grad_()
    state = FLOW.add_noise(latents, noise, sigma)
    loss = nft_loss(velocity, noise - latents, state, latents, sigma, torch.ones(1), 1.0, FLOW)
    loss.sum().backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert velocity.grad.isfinite().all()


# ---- Diffusion-DPO ----


def test_dpo_by_hand():
    """beta = 10, margin (.3 - .5) - (.4 - .45) = -.15: -log sigmoid(.75)."""
    loss = dpo_loss(*(torch.tensor([value]) for value in (0.3, 0.5, 0.4, 0.45)), beta=10.0)
    assert loss.item() == pytest.approx(math.log1p(math.exp(-0.75)))


def test_dpo_begins_at_log_two_with_slope_of_half_beta():
    chosen = torch.tensor([0.3], requires_grad=True)
    loss = dpo_loss(chosen, torch.tensor([0.5]), torch.tensor([0.3]), torch.tensor([0.5]), beta=5000.0)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2))
    assert chosen.grad.item() == pytest.approx(5000 / 4)


# ---- reward feedback learning ----


def test_differentiable_steps_are_the_samplers_with_gradient():
    scale = torch.tensor(0.7, requires_grad=True)
    sigmas = torch.tensor([0.9, 0.6, 0.4])
    noise = torch.randn(2, 2, 3, 3, generator=torch.Generator().manual_seed(0))

    def velocity(latents, sigma):
        return scale * latents + sigma.reshape(-1, 1, 1, 1)

    state, clean = differentiable_steps(velocity, noise, sigmas.expand(2, 3), FLOW)
    path = rollout(velocity, noise, sigmas, FLOW)
    torch.testing.assert_close(state, path.states[-1])
    torch.testing.assert_close(
        clean, FLOW.predict_clean(path.states[1], velocity(path.states[1], sigmas[1:2]), torch.full((2,), 0.6))
    )
    state.sum().backward()
    # d/da of x (1 - .3 a - …) by finite differences.
    step = 1e-3
    moved = [
        rollout(lambda x, s, a=a: a * x + s.reshape(-1, 1, 1, 1), noise.double(), sigmas.double(), FLOW)
        .states[-1]
        .sum()
        for a in (0.7 - step, 0.7 + step)
    ]
    assert scale.grad.item() == pytest.approx(((moved[1] - moved[0]) / (2 * step)).item(), rel=1e-4)


def test_samples_may_be_at_levels_of_their_own():
    noise = torch.randn(2, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    ladders = torch.tensor([[0.9, 0.5], [0.3, 0.0]])

    def velocity(latents, sigma):
        return latents * sigma.reshape(-1, 1, 1, 1)

    together = differentiable_steps(velocity, noise, ladders, FLOW)
    for row in range(2):
        alone = differentiable_steps(velocity, noise[row : row + 1], ladders[row : row + 1], FLOW)
        torch.testing.assert_close(together[0][row : row + 1], alone[0])
        torch.testing.assert_close(together[1][row : row + 1], alone[1])


def test_held_loss_by_hand():
    assert held_loss(torch.tensor(2.0), torch.tensor(5.0), 0.5).item() == pytest.approx((2 + 2.5) / 1.5)


# ---- denoising errors ----


def generator(family: str, **scheduler):
    kind = "FlowMatchEulerDiscreteScheduler" if family == "sd3" else "DDIMScheduler"
    config = {"_class_name": kind, **SCHEDULERS[family], **scheduler}
    return GENERATORS[family](tiny_transformer(family), config)


def test_flow_matching_error_by_hand():
    target = FLOW.velocity(filled(1.0), filled(2.0), torch.tensor([0.25]))
    assert generator("sd3").error(filled(0.5), target, torch.tensor([0.25])).tolist() == [0.25]
    assert FLOW.add_noise(filled(1.0), filled(2.0), torch.tensor([0.25])).mean().item() == 1.25


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_error_of_variance_preserving_families_is_that_of_their_prediction(prediction):
    """Against the targets of the library's scheduler."""
    sd = generator("sd", prediction_type=prediction)
    scheduler = DDIMScheduler(**SCHEDULERS["sd"])
    latents, noise, predicted = torch.randn(3, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    timesteps = torch.tensor([40, 800])
    sigma = sd.path.sigmas[timesteps]
    state = scheduler.add_noise(latents, noise, timesteps)
    torch.testing.assert_close(sd.path.add_noise(latents, noise, sigma), state)
    expected = noise if prediction == "epsilon" else scheduler.get_velocity(latents, noise, timesteps)
    error = sd.error(sd.as_velocity(predicted, state, sigma), sd.path.velocity(latents, noise, sigma), sigma)
    torch.testing.assert_close(error, (predicted - expected).square().mean(dim=(1, 2, 3)))


def test_noise_depends_on_its_seed_alone():
    latents = torch.zeros(3, 2, 4, 4)
    together = seeded_noise(torch.tensor([5, 6, 5]), latents)
    assert torch.equal(together[0], together[2])
    assert not torch.equal(together[0], together[1])
    assert torch.equal(together[1:2], seeded_noise(torch.tensor([6]), latents[:1]))


def test_levels_of_variance_preserving_families_are_those_of_uniform_timesteps():
    sd = generator("sd")
    timesteps = sd.path.timestep(sd.training_levels(20_000, torch.Generator().manual_seed(0))).float()
    assert timesteps.mean().item() == pytest.approx(499.5, abs=8)
    assert timesteps.std().item() == pytest.approx(1000 / 12**0.5, rel=0.02)


def test_levels_of_flows_are_logit_normal():
    levels = generator("sd3").training_levels(20_000, torch.Generator().manual_seed(0))
    logits = levels.logit()
    assert logits.mean().item() == pytest.approx(0, abs=0.02)
    assert logits.std().item() == pytest.approx(1, abs=0.02)
