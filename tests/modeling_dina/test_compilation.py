"""`torch.compile` and `torch.export` see the model as one graph that computes the same numbers; eager calls go on
checking their inputs."""

import math

import pytest
import torch

from modeling_dina import DinaConfig, DinaRewardModel

DDPM = {"_class_name": "DDPMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


@pytest.fixture
def tiny_config(tiny_config):
    """With one block of each kind: tracing takes the longer the more there are."""
    return {**tiny_config, "num_layers": 2, "visual_layers": [1, 2]}


@pytest.fixture(autouse=True)
def fresh_compiler():
    yield
    torch._dynamo.reset()


@pytest.fixture
def state(tiny_inputs):
    """Positional arguments of the forward pass."""
    latents, prompt_embeds, pooled_prompt_embeds = tiny_inputs.values()
    return latents, torch.tensor([0.1, 0.3, 0.5, 0.7, 1.0]), prompt_embeds, pooled_prompt_embeds


@torch.no_grad()
@pytest.mark.slow
def test_forward_is_one_graph_and_eager_calls_check_their_numbers(tiny_model, state):
    compiled = torch.compile(tiny_model, fullgraph=True, backend="eager")(*state)
    expected = tiny_model(*state)
    torch.testing.assert_close(compiled.scores, expected.scores)
    torch.testing.assert_close(compiled.variance, expected.variance)
    latents, sigma, *conditioning = state
    with pytest.raises(ValueError, match="noisy_latents: expected finite numbers"):
        tiny_model(latents * math.nan, sigma, *conditioning)
    with pytest.raises(ValueError, match=r"sigma: expected noise levels in \[0, 1\]"):
        tiny_model(latents, 2 * sigma, *conditioning)


@pytest.mark.parametrize("mode", ["features", "precision"])
@torch.no_grad()
@pytest.mark.slow
def test_reward_of_given_noise_is_one_graph(tiny_model, tiny_inputs, mode):
    options = {"noise": torch.randn(2, 1, 4, 8, 6), "sigmas": [0.2, 0.7], "mode": mode}
    compiled = torch.compile(tiny_model.reward, fullgraph=True, backend="eager")(**tiny_inputs, **options)
    expected = tiny_model.reward(**tiny_inputs, **options)
    torch.testing.assert_close(compiled.scores, expected.scores)
    torch.testing.assert_close(compiled.samples, expected.samples)


@torch.no_grad()
@pytest.mark.slow
def test_reward_of_a_seed_is_several_graphs(tiny_model, tiny_inputs):
    options = {"seed": 5, "sigmas": [0.5], "mode": "mean"}
    compiled = torch.compile(tiny_model.reward, backend="eager")(**tiny_inputs, **options)
    torch.testing.assert_close(compiled.scores, tiny_model.reward(**tiny_inputs, **options).scores)


@pytest.mark.parametrize("scheduler_config", [{}, {"scheduler_config": DDPM}])
@torch.no_grad()
@pytest.mark.slow
def test_export(tiny_config, state, scheduler_config):
    model = DinaRewardModel(DinaConfig(**tiny_config, **scheduler_config)).eval()
    exported = torch.export.export(model, state, strict=False).module()
    others = tuple(values.flip(0) for values in state)
    torch.testing.assert_close(exported(*others).scores, model(*others).scores)
