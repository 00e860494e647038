"""The policy against the stock pipeline it is made of."""

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from diffusers.training_utils import EMAModel

from training.align.policy import Policy
from training.align.rollout import CPS
from training.run_control import averaged_weights


@pytest.fixture
def policy(tiny_folder):
    torch.manual_seed(0)
    return Policy(StableDiffusion3Pipeline.from_pretrained(tiny_folder), rank=4, alpha=8, max_sequence_length=14)


def disturb(policy):
    with torch.no_grad():
        for parameter in policy.parameters:
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_samples_are_those_of_the_stock_pipeline(tiny_folder, policy, guidance_scale):
    prompts = ["two purple stars", "a large red circle"]
    noise = policy.noise(2, torch.Generator().manual_seed(0))
    stock = StableDiffusion3Pipeline.from_pretrained(tiny_folder)
    stock.set_progress_bar_config(disable=True)
    expected = stock(
        prompts,
        height=64,
        width=64,
        latents=noise.clone(),
        num_inference_steps=4,
        guidance_scale=guidance_scale,
        max_sequence_length=14,
        output_type="latent",
    ).images
    path = policy.sample(policy.encode(prompts), noise, policy.sigmas(4), batch_size=1, guidance_scale=guidance_scale)
    torch.testing.assert_close(path.states[-1], expected, rtol=0, atol=1e-4)


def test_the_lora_is_all_that_is_trained(policy):
    """Eight projections a block, but six in the last, whose text has no output; two matrices each."""
    assert len(policy.parameters) == 2 * (5 * 8 + 7)
    assert all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in policy.parameters)
    trained = {parameter.data_ptr() for parameter in policy.parameters}
    parts = (policy.transformer, policy.pipeline.vae, policy.pipeline.text_encoder_3)
    for parameter in (parameter for part in parts for parameter in part.parameters()):
        assert parameter.requires_grad == (parameter.data_ptr() in trained)


def test_reference_and_averages_leave_the_weights_as_they_were(policy):
    conditioning, noise = policy.encode(["two purple stars"]), policy.noise(1, torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.6])
    with torch.no_grad():
        first = policy.velocity(noise, sigma, conditioning)
        average = EMAModel(policy.parameters, decay=0.9)
        disturb(policy)
        disturbed = policy.velocity(noise, sigma, conditioning)
        assert not torch.allclose(first, disturbed, atol=1e-3)
        with policy.reference():
            assert torch.equal(policy.velocity(noise, sigma, conditioning), first)
        with averaged_weights(average, policy.parameters):
            assert torch.equal(policy.velocity(noise, sigma, conditioning), first)
        assert torch.equal(policy.velocity(noise, sigma, conditioning), disturbed)
    policy.velocity(noise, sigma, conditioning).sum().backward()
    assert all(parameter.grad is not None for parameter in policy.parameters)


def test_a_reference_amid_a_loss_does_not_stop_the_gradient(policy):
    conditioning, noise = policy.encode(["two purple stars"]), policy.noise(1, torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.6])

    def reference():
        with torch.no_grad(), policy.reference():
            return policy.velocity(noise, sigma, conditioning)

    def gradients(velocity, held):
        loss = (velocity - held).square().mean()
        return torch.autograd.grad(loss, policy.parameters)

    disturb(policy)
    held = reference()
    expected = gradients(policy.velocity(noise, sigma, conditioning), held)
    amid = gradients(policy.velocity(noise, sigma, conditioning), reference())
    assert sum(gradient.any() for gradient in expected) > 80
    assert all(torch.equal(first, second) for first, second in zip(expected, amid, strict=True))


def test_state_is_taken_up_exactly(tiny_folder, policy):
    disturb(policy)
    torch.manual_seed(5)
    other = Policy(StableDiffusion3Pipeline.from_pretrained(tiny_folder), rank=4, alpha=8, max_sequence_length=14)
    other.load_state_dict(policy.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(policy.parameters, other.parameters, strict=True))


def test_rollouts_do_not_depend_on_the_batch_where_nothing_is_random(policy):
    conditioning, noise = policy.encode(["two purple stars"] * 3), policy.noise(3, torch.Generator().manual_seed(0))
    whole = policy.sample(conditioning, noise, policy.sigmas(3), batch_size=3)
    parts = policy.sample(conditioning, noise, policy.sigmas(3), batch_size=2)
    torch.testing.assert_close(whole.states, parts.states, rtol=0, atol=1e-5)
    stochastic = policy.sample(
        conditioning,
        noise,
        policy.sigmas(3),
        batch_size=2,
        dynamics=CPS(0.8),
        stochastic=[0],
        generator=torch.Generator().manual_seed(1),
    )
    assert stochastic.log_probabilities.shape == (3, 3)
    assert stochastic.states.shape == (4, 3, 16, 8, 8)
