"""Alignment of every family: velocities and noise levels against the stock pipeline, updates, and what is saved."""

import pytest
import torch

from modeling_dina import DinaConfig
from modeling_dina.backbone_dina import BACKBONES
from modeling_dina.presets_dina import PRESETS
from tests.families import MAX_SEQUENCE_LENGTH, randomised, save_tiny_folder, tiny_pipeline, tiny_reward
from tests.official_layout import write_official
from training.align.algorithm import Draws
from training.align.compatibility import read_reward_family
from training.align.dry_run import Cost, offline_reward
from training.align.generators import GENERATORS
from training.align.grpo import FlowGRPO, FlowGRPOArguments
from training.align.policy import Policy
from training.align.refl import ReFL, ReFLArguments
from training.align.rewards import DinaReward
from training.align.run import load_models

PROMPTS = ["abc", "a longer text"]
HEIGHT = 64


def stock(family):
    pipeline = tiny_pipeline(family)
    randomised(pipeline.transformer)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def new_policy(family, pipeline=None):
    torch.manual_seed(0)
    length = MAX_SEQUENCE_LENGTH[family]
    return Policy(pipeline or stock(family), rank=2, alpha=4, max_sequence_length=length, resolution=HEIGHT)


def guided(family, scale):
    """Arguments of the stock pipeline for the scale g of v_empty + g (v - v_empty)."""
    if family == "zimage":
        return {"guidance_scale": scale - 1}
    if family == "qwenimage":
        return {"true_cfg_scale": scale, "negative_prompt": [""] * len(PROMPTS)}
    return {"guidance_scale": scale}


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("family", GENERATORS)
def test_samples_are_those_of_the_stock_pipeline(family, scale):
    policy = new_policy(family)
    noise = policy.noise(2, torch.Generator().manual_seed(0))
    pipeline = stock(family)
    packed = hasattr(pipeline, "_pack_latents")
    latents = pipeline._pack_latents(noise, *noise.shape) if packed else noise.clone()
    options = guided(family, scale) if scale != 1 or family != "qwenimage" else {}
    expected = pipeline(
        list(PROMPTS),
        height=HEIGHT,
        width=HEIGHT,
        latents=latents,
        num_inference_steps=4,
        max_sequence_length=MAX_SEQUENCE_LENGTH[family],
        output_type="latent",
        **options,
    ).images
    if packed:
        expected = pipeline._unpack_latents(expected, HEIGHT, HEIGHT, pipeline.vae_scale_factor).reshape(noise.shape)
    path = policy.sample(policy.encode(PROMPTS), noise, policy.sigmas(4), batch_size=2, guidance_scale=scale)
    torch.testing.assert_close(path.states[-1], expected, rtol=0, atol=1e-4)
    assert (expected - noise).abs().max() > 0.1
    assert policy.decode(path.states[-1]).shape == (2, 3, HEIGHT, HEIGHT)


def updated(policy, algorithm, own):
    """The metrics of one update with SGD."""
    reward = DinaReward(tiny_reward(policy.generator.family), sigmas=[0.3], num_draws=1)
    algorithm = algorithm(policy, reward, own)
    draws = Draws(torch.Generator().manual_seed(0), seed=0)
    experience = algorithm.collect(policy.encode(PROMPTS), draws)
    loss, _ = algorithm.loss(experience, draws.seed)
    loss.mean().backward()
    torch.optim.SGD(policy.parameters, lr=1.0).step()
    return loss


@pytest.mark.parametrize(
    ("algorithm", "own"),
    [
        (ReFL, ReFLArguments(num_steps=3, first_step=1, last_step=1, scored="state", guidance_scale=2.0)),
        (FlowGRPO, FlowGRPOArguments(num_steps=3, group_size=2, window=1, window_end=2, guidance_scale=2.0)),
    ],
)
@pytest.mark.parametrize("family", GENERATORS)
def test_an_update_changes_the_lora_that_the_stock_pipeline_reads(family, algorithm, own, tmp_path):
    policy = new_policy(family)
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    assert updated(policy, algorithm, own).isfinite().all()
    after = policy.state_dict()
    changed = [name for name, value in after.items() if not torch.equal(value, before[name])]
    assert all(value.isfinite().all() for value in after.values())
    assert {name for name in after if "lora_B" in name} & set(changed)

    policy.save_adapter(tmp_path)
    pipeline = stock(family)
    pipeline.load_lora_weights(tmp_path)
    conditioning, noise = policy.encode(PROMPTS), policy.noise(2, torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = policy.velocity(noise, torch.tensor([0.7, 0.2]), conditioning)
        theirs = type(policy.generator)(pipeline.transformer).velocity(
            noise, torch.tensor([0.7, 0.2]), conditioning.embeddings
        )
        with policy.reference():
            initial = policy.velocity(noise, torch.tensor([0.7, 0.2]), conditioning)
    torch.testing.assert_close(ours, theirs)
    assert not torch.equal(ours, initial)


def test_a_reward_of_another_family_is_refused_before_weights_are_read(settings, tmp_path):
    """Of the policy there is only a configuration."""
    folder = tmp_path / "flux"
    tiny_pipeline("flux").transformer.save_config(folder / "transformer")
    run = settings("refl", policy=str(folder))
    for refused in (lambda: load_models(run[0], torch.device("cpu")), lambda: Cost(*run)):
        with pytest.raises(ValueError, match="policy, reward_model: expected the same family") as caught:
            refused()
        assert f"flux of {folder}" in str(caught.value)
        assert f"sd3 of {run[0].reward_model}" in str(caught.value)


def test_a_family_without_a_generator_is_refused(settings, tmp_path):
    save_tiny_folder("sd", tmp_path)
    run = settings("refl", policy=str(tmp_path), reward_model=str(tmp_path))
    for refused in (lambda: load_models(run[0], torch.device("cpu")), lambda: Cost(*run)):
        with pytest.raises(ValueError, match=r"policy: expected a generator of .*'flux'.*, got sd of"):
            refused()


@pytest.mark.parametrize("family", GENERATORS)
def test_the_dry_run_counts_the_generator_of_the_family(settings, family, tmp_path):
    save_tiny_folder(family, tmp_path)
    fields = {"policy": str(tmp_path), "reward_model": str(tmp_path), "resolution": HEIGHT, "lora_rank": 2}
    guided, unguided = (Cost(*settings("refl", {"guidance_scale": scale}, **fields)) for scale in (2.0, 1.0))
    policy = new_policy(family)
    assert guided.trainable == sum(parameter.numel() for parameter in policy.parameters)
    assert guided.parameters == sum(parameter.numel() for parameter in policy.transformer.parameters())
    calls = 1 if policy.generator.embeds_guidance else 2
    assert guided.flops["sampling"] == calls * unguided.flops["sampling"]


@pytest.mark.parametrize("family", GENERATORS)
def test_the_family_of_a_published_checkpoint_is_read_from_its_backbone(family, tmp_path):
    model = tiny_reward(family)
    official = str(write_official(tmp_path / "official", model, backbone_model_id="owner/unknown"))
    base = str(tmp_path / "base")
    tiny_pipeline(family).transformer.save_config(f"{base}/transformer")
    assert read_reward_family(official, backbone=base) == family
    config = offline_reward(official, base, policy=base)
    assert (config.backbone_type, config.visual_layers) == (family, model.config.visual_layers)
    published = BACKBONES[family].official_fields
    assert {name: getattr(config, name) for name in published} == published


@pytest.mark.parametrize("preset", PRESETS)
def test_the_dry_run_knows_the_published_models(preset):
    config = offline_reward("owner/name", None, policy=PRESETS[preset]["conditioning_source"])
    assert config.transformer_config == PRESETS[preset]["transformer_config"]
    assert config.num_layers == DinaConfig.preset(preset).num_layers
