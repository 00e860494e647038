"""The loss of a pair is the likelihood of the model's own scores on noisy latents."""

import pytest
import torch

from modeling_dina.backbone_dina import is_adapter_key
from modeling_dina.options import EMBEDDED_MODEL
from modeling_dina.thurstone_dina import bradley_terry_loss, fidelity_loss, likelihood_loss
from modeling_dina.weights_dina import TransformerWeights
from training.reward.objective import LOSSES, PreferenceObjective
from training.train_reward import ModelArguments, build_objective


@pytest.fixture
def pairs():
    generator = torch.Generator().manual_seed(3)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    return {
        "latents": normal(2, 3, 4, 8, 6),
        "noise": normal(3, 4, 8, 6),
        "sigma": torch.tensor([0.1, 0.5, 0.9]),
        "prompt_embeds": normal(3, 7, 12),
        "pooled_prompt_embeds": normal(3, 10),
        "target": torch.tensor([1.0, 0.0, 0.7]),
    }


def scores_of(model, pairs, side):
    sigma = pairs["sigma"].view(-1, 1, 1, 1)
    noisy_latents = (1 - sigma) * pairs["latents"][side] + sigma * pairs["noise"]
    return model(noisy_latents, pairs["sigma"], pairs["prompt_embeds"], pairs["pooled_prompt_embeds"]).scores


def test_thurstone(tiny_model, pairs):
    a, b = scores_of(tiny_model, pairs, 0), scores_of(tiny_model, pairs, 1)
    variance = 2.0 * pairs["sigma"] ** 2 + 0.05
    for loss, law in (("fidelity", fidelity_loss), ("log_likelihood", likelihood_loss)):
        expected = law(a, b, variance, variance, pairs["target"])
        torch.testing.assert_close(PreferenceObjective(tiny_model, loss)(**pairs), expected)


def test_constant_variance_is_a_slope_of_zero(tiny_model, pairs):
    a, b = scores_of(tiny_model, pairs, 0), scores_of(tiny_model, pairs, 1)
    tiny_model.config.variance_slope, tiny_model.config.variance_floor = 0.0, 0.3
    expected = likelihood_loss(a, b, torch.tensor(0.3), torch.tensor(0.3), pairs["target"])
    torch.testing.assert_close(PreferenceObjective(tiny_model)(**pairs), expected)


def test_bradley_terry(tiny_model, pairs):
    a, b = scores_of(tiny_model, pairs, 0), scores_of(tiny_model, pairs, 1)
    losses = PreferenceObjective(tiny_model, "bradley_terry", margin=0.2)(**pairs)
    torch.testing.assert_close(losses[0], bradley_terry_loss(a[0], b[0], 0.2))
    torch.testing.assert_close(losses[1], bradley_terry_loss(b[1], a[1], 0.2))
    torch.testing.assert_close(
        losses[2], 0.7 * bradley_terry_loss(a[2], b[2], 0.2) + 0.3 * bradley_terry_loss(b[2], a[2], 0.2)
    )


@pytest.mark.parametrize("loss", LOSSES)
def test_sides_may_be_swapped(tiny_model, pairs, loss):
    objective = PreferenceObjective(tiny_model, loss)
    swapped = {**pairs, "latents": pairs["latents"].flip(0), "target": 1 - pairs["target"]}
    torch.testing.assert_close(objective(**swapped), objective(**pairs))


def test_variance_is_learnt(tiny_model, pairs):
    objective = PreferenceObjective(tiny_model, learn_variance=True)
    torch.testing.assert_close(objective(**pairs), PreferenceObjective(tiny_model)(**pairs))
    # Votes that contradict the scores at every level are better explained by a larger variance.
    agreed = scores_of(tiny_model, pairs, 0) > scores_of(tiny_model, pairs, 1)
    objective(**{**pairs, "target": 1 - agreed.float()}).sum().backward()
    assert (objective.log_variance.grad < 0).all()
    with torch.no_grad():
        objective.log_variance.copy_(torch.tensor([3.0, 0.5]).log())
    objective.write_variance(objective.log_variance)
    assert tiny_model.config.variance_slope == pytest.approx(3.0)
    assert tiny_model.config.variance_floor == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("options", "slope", "message"),
    [
        ({"loss": "hinge"}, 2.0, "loss: expected one of"),
        ({"loss": "fidelity", "margin": 0.1}, 2.0, "margin: expected 0"),
        ({"loss": "bradley_terry", "learn_variance": True}, 2.0, "learn_variance: expected"),
        ({"learn_variance": True}, 0.0, "learn_variance: expected"),
    ],
)
def test_refusals(tiny_model, options, slope, message):
    tiny_model.config.variance_slope = slope
    with pytest.raises(ValueError, match=message):
        PreferenceObjective(tiny_model, **options)


@pytest.mark.parametrize("backbone", ["lora", "frozen", "full"])
def test_weights_are_read_in_the_dtype_that_they_are_trained_in(backbone):
    fields = "{num_layers: 1, visual_layers: [1], text_layers: [1], head_width: 16}"
    arguments = ModelArguments(
        base_model=EMBEDDED_MODEL, reward_config=fields, backbone=backbone, backbone_dtype="bfloat16"
    )
    model = build_objective(arguments).model
    read = TransformerWeights(EMBEDDED_MODEL)
    for name, parameter in model.named_parameters():
        assert parameter.dtype == (torch.float32 if parameter.requires_grad else torch.bfloat16), name
    for name, value in model.backbone.state_dict().items():
        if not is_adapter_key(name):
            assert torch.equal(value, read[name.replace(".base_layer.", ".")].to(value.dtype)), name
