"""Rewards and the gate in the small world: what they score, what they leave alone, what flows back."""

import math

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from safetensors.torch import load_file, save_file

from modeling_dina import DinaRewardModel
from training.align.policy import Policy
from training.align.prompts import Prompts
from training.align.rewards import DinaReward, Gate, PixelReward, Reward, RewardOutput, UtilityReward, WeightedReward
from training.reward.pixel_model import PixelRewardModel
from training.world.annotators import IMPRESSION_NOISE
from training.world.latents import decode
from training.world.scenes import describe
from training.world.utility import true_utility

CAPTIONS = ["two purple stars", "a large red circle left of a small blue square", "a red square and a cyan circle"]


@pytest.fixture(scope="module")
def model(tiny_folder):
    return DinaRewardModel.from_pretrained(tiny_folder)


@pytest.fixture(scope="module")
def policy(tiny_folder):
    torch.manual_seed(0)
    return Policy(StableDiffusion3Pipeline.from_pretrained(tiny_folder), rank=4, alpha=8, max_sequence_length=14)


@pytest.fixture(scope="module")
def conditioning(policy):
    return policy.encode(CAPTIONS)


@pytest.fixture(scope="module")
def latents(policy, conditioning):
    noise = policy.noise(3, torch.Generator().manual_seed(0))
    return policy.sample(conditioning, noise, policy.sigmas(4), batch_size=2).states[-1]


@pytest.fixture(scope="module")
def pixel(policy):
    torch.manual_seed(0)
    return PixelReward(policy.decode, PixelRewardModel(dict(policy.pipeline.vae.config), 128))


def test_dina_is_the_model_itself(model, policy, conditioning, latents):
    embeds = conditioning.embeddings
    output = DinaReward(model, [0.2, 0.4], 3)(latents, conditioning, seed=5)
    ensemble = model.reward(latents, *embeds, sigmas=[0.2, 0.4], num_draws=3, seed=5)
    assert torch.equal(output.scores, ensemble.scores)
    torch.testing.assert_close(output.spread, ensemble.samples[0].std(dim=0))
    sigma = torch.tensor([0.3, 0.6, 0.9])
    noisy = DinaReward(model)(latents, conditioning, sigma)
    assert torch.equal(noisy.scores, model(latents, sigma, *embeds).scores)
    torch.testing.assert_close(noisy.variance, 2 * sigma**2 + 0.05)


def test_policy_and_reward_share_nothing(model, policy, conditioning, latents):
    ours = {parameter.data_ptr() for parameter in policy.transformer.parameters()}
    assert ours.isdisjoint(parameter.data_ptr() for parameter in model.parameters())
    assert not any("lora" in name for name, _ in model.named_parameters())
    reward = DinaReward(model)
    before = reward(latents, conditioning).scores
    with torch.no_grad():
        for parameter in policy.parameters:
            parameter += 0.1
    try:
        assert torch.equal(reward(latents, conditioning).scores, before)
        with policy.reference():
            assert torch.equal(reward(latents, conditioning).scores, before)
    finally:
        with torch.no_grad():
            for parameter in policy.parameters:
                parameter -= 0.1


def test_utility_is_the_true_one(policy, conditioning, latents):
    output = UtilityReward(policy.pipeline)(latents, conditioning)
    expected = [
        true_utility(describe(caption), picture)
        for caption, picture in zip(CAPTIONS, decode(policy.pipeline, latents), strict=True)
    ]
    assert output.scores.tolist() == pytest.approx(expected)
    assert output.variance.unique().item() == pytest.approx(IMPRESSION_NOISE**2)
    with pytest.raises(ValueError, match="sigma: expected None for UtilityReward"):
        UtilityReward(policy.pipeline)(latents, conditioning, torch.full((3,), 0.5))


def test_pixels_are_those_that_the_pipeline_would_show(policy, latents):
    pictures = policy.decode(latents).add(1).div(2).clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1).numpy()
    assert abs(pictures.astype(int) - decode(policy.pipeline, latents).astype(int)).max() <= 1


def test_gradients_flow_to_the_latents_and_to_nothing_else(model, policy, conditioning, latents, pixel):
    for reward in (DinaReward(model, [0.1], 1), pixel):
        leaf = latents.clone().requires_grad_()
        reward(leaf, conditioning).scores.sum().backward()
        assert leaf.grad.isfinite().all()
        assert leaf.grad.abs().amax(dim=(1, 2, 3)).min() > 0
    frozen = [*model.parameters(), *pixel.network.parameters(), *policy.pipeline.vae.parameters()]
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in frozen)


def test_weighted_sum(model, policy, conditioning, latents, pixel):
    dina, utility = DinaReward(model, num_draws=2), UtilityReward(policy.pipeline)
    both = WeightedReward([dina, utility], [0.5, 2.0])
    first, second, output = dina(latents, conditioning), utility(latents, conditioning), both(latents, conditioning)
    torch.testing.assert_close(output.scores, 0.5 * first.scores + 2 * second.scores)
    torch.testing.assert_close(output.spread, 0.5 * first.spread)
    torch.testing.assert_close(output.variance, 0.25 * first.variance + 4 * second.variance)
    assert not both.differentiable
    assert not both.accepts_noise
    assert WeightedReward([dina, pixel], [1.0, 1.0]).differentiable
    assert WeightedReward([dina], [1.0]).accepts_noise
    with pytest.raises(ValueError, match="weights: expected one for each of 2 rewards"):
        WeightedReward([dina, utility], [1.0])


def test_latents_that_are_no_numbers_score_nan_alone(model, conditioning, latents):
    reward = DinaReward(model, num_draws=2)
    broken = latents.clone()
    broken[1, 0, 0, 0] = math.nan
    output = reward(broken, conditioning)
    whole = reward(latents, conditioning)
    assert output.scores.isnan().tolist() == [False, True, False]
    torch.testing.assert_close(output.scores[[0, 2]], whole.scores[[0, 2]])
    assert reward(torch.full_like(latents, math.inf), conditioning).scores.isnan().all()


class Disagreeing(Reward):
    """Scores of a known spread."""

    def __init__(self, spread):
        self.spread = torch.tensor(spread)

    def score(self, latents, conditioning, sigma, seed):
        return RewardOutput(torch.zeros(3), self.spread, torch.ones(3))


def test_gate_by_hand(conditioning, latents):
    """Calibrated at the median of spreads (.1, .2, .3); then spreads of .1, .4 and none."""
    for mode, expected in (("drop", [1.0, 0.0, 0.0]), ("weigh", [0.8, 0.2, 0.0])):
        gate = Gate.calibrated(Disagreeing([0.1, 0.2, 0.3]), mode, latents, conditioning, 0.5)
        assert gate.scale == pytest.approx(0.2)
        gate = Gate(Disagreeing([0.1, 0.4, math.nan]), mode, gate.scale)
        assert gate(latents, conditioning).tolist() == pytest.approx(expected)
    with pytest.raises(ValueError, match="gate: expected a reward with at least two noise draws"):
        Gate.calibrated(Disagreeing([math.nan] * 3), "drop", latents, conditioning, 0.5)


def test_the_pixel_reward_is_saved_whole(pixel, tmp_path, policy, conditioning, latents):
    pixel.network.save_pretrained(tmp_path)
    again = PixelReward(policy.decode, PixelRewardModel.from_pretrained(tmp_path))
    torch.testing.assert_close(again(latents, conditioning).scores, pixel(latents, conditioning).scores)


def test_a_pixel_reward_with_weights_of_other_names_is_refused(pixel, tmp_path):
    """They would be left as random as they begin."""
    pixel.network.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    save_file({name.replace("vision_encoder.", "eyes."): weight for name, weight in load_file(path).items()}, path)
    with pytest.raises(RuntimeError, match=r"vision_encoder\.conv_in\.weight"):
        PixelRewardModel.from_pretrained(tmp_path)


# ---- prompts ----


def test_prompts_of_a_file_are_gone_through_in_new_orders(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("a\nb\n\n c \n")
    prompts = Prompts(str(path), 0)
    epochs = [prompts.batch(3 * epoch, 3) for epoch in range(6)]
    assert all(sorted(epoch) == ["a", "b", "c"] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert prompts.batch(4, 5) == [prompts[index] for index in range(4, 9)]
    path.write_text("\n")
    with pytest.raises(ValueError, match=f"prompts: expected .* got {path}"):
        Prompts(str(path), 0)


def test_prompts_of_the_world_depend_on_the_seed():
    assert Prompts("world", (1, 2)).batch(0, 5) == Prompts("world", (1, 2)).batch(0, 5)
    assert Prompts("world", (1, 2)).batch(0, 5) != Prompts("world", (1, 3)).batch(0, 5)
