"""Alignment of every family: velocities and noise levels against the stock pipeline, updates, and what is saved."""

from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from peft import PeftModel
from safetensors.torch import load_file

from modeling_dina import DinaConfig
from modeling_dina.backbone_dina import BACKBONES
from modeling_dina.presets_dina import PRESETS
from tests.families import (
    MAX_SEQUENCE_LENGTH,
    VARIANCE_PRESERVING,
    randomised,
    save_tiny_folder,
    tiny_pipeline,
    tiny_reward,
)
from tests.official_layout import write_official
from training.align.algorithm import Draws
from training.align.compatibility import read_reward_family
from training.align.dpo import DiffusionDPO, DiffusionDPOArguments
from training.align.dry_run import Cost, offline_reward
from training.align.generators import GENERATORS, generator_of
from training.align.grpo import FlowGRPO, FlowGRPOArguments
from training.align.nft import DiffusionNFT, DiffusionNFTArguments
from training.align.policy import Policy
from training.align.refl import ReFL, ReFLArguments
from training.align.rewards import DinaReward
from training.align.run import load_models, run

PROMPTS = ["abc", "a longer text"]
HEIGHT = 64


def stock(family):
    pipeline = tiny_pipeline(family)
    randomised(getattr(pipeline, BACKBONES[family].component))
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
        return {"true_cfg_scale": scale, "negative_prompt": [""] * len(PROMPTS)} if scale != 1 else {}
    return {"guidance_scale": scale}


def further(family):
    """Further arguments of the stock pipeline."""
    length = {} if family in ("sd", "sdxl") else {"max_sequence_length": MAX_SEQUENCE_LENGTH[family]}
    return length | ({"use_resolution_binning": False} if family == "pixart" else {})


def scheduled(family, scheduler_class, **changed):
    """The stock pipeline with another scheduler of the same noise levels."""
    pipeline = stock(family)
    pipeline.scheduler = scheduler_class.from_config(pipeline.scheduler.config, **changed)
    return pipeline


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("family", GENERATORS)
def test_samples_are_those_of_the_stock_pipeline(family, scale):
    check_samples(family, scale, new_policy(family), stock(family))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_samples_of_the_published_schedulers(prediction):
    """Whose samples are at the least noise level, not at the end of the path."""
    changed = {"prediction_type": prediction, "set_alpha_to_one": False}
    policy = new_policy("sd", scheduled("sd", DDIMScheduler, **changed))
    check_samples("sd", 3.0, policy, scheduled("sd", DDIMScheduler, **changed))
    assert policy.sigmas(4)[-1] == policy.path.sigmas[0] > 0


def test_samples_of_another_scheduler_are_those_of_ddim():
    policy = new_policy("sdxl", scheduled("sdxl", EulerDiscreteScheduler, timestep_spacing="leading"))
    check_samples("sdxl", 3.0, policy, scheduled("sdxl", DDIMScheduler))


def test_a_prediction_of_clean_latents_is_refused():
    with pytest.raises(ValueError, match=r"policy: expected .* prediction_type .*, got 'sample'"):
        new_policy("sd", scheduled("sd", DDIMScheduler, prediction_type="sample"))


def check_samples(family, scale, policy, pipeline):
    """The policy's samples must be those of the stock pipeline."""
    noise = policy.noise(2, torch.Generator().manual_seed(0))
    packed = hasattr(pipeline, "_pack_latents")
    latents = pipeline._pack_latents(noise, *noise.shape) if packed else noise.clone()
    expected = pipeline(
        list(PROMPTS),
        height=HEIGHT,
        width=HEIGHT,
        latents=latents,
        num_inference_steps=4,
        output_type="latent",
        **guided(family, scale),
        **further(family),
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


UPDATES = {
    "prfl": (ReFL, ReFLArguments(num_steps=3, first_step=1, last_step=1, scored="state", guidance_scale=2.0)),
    "refl": (ReFL, ReFLArguments(num_steps=3, first_step=1, last_step=1, scored="clean", guidance_scale=2.0)),
    "dpo": (DiffusionDPO, DiffusionDPOArguments(num_steps=3, group_size=2, guidance_scale=2.0)),
    "nft": (DiffusionNFT, DiffusionNFTArguments(num_steps=3, group_size=2, levels=2, guidance_scale=2.0)),
    "grpo": (FlowGRPO, FlowGRPOArguments(num_steps=3, group_size=2, window=1, window_end=2, guidance_scale=2.0)),
}
CASES = [
    *((family, "grpo" if generator.is_flow else "nft") for family, generator in GENERATORS.items()),
    *((family, "prfl") for family in GENERATORS),
    *((family, name) for family in VARIANCE_PRESERVING for name in ("refl", "dpo")),
]


@pytest.mark.parametrize(("family", "name"), CASES)
def test_an_update_changes_the_lora_that_the_stock_pipeline_reads(family, name, tmp_path):
    policy, (algorithm, own) = new_policy(family), UPDATES[name]
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    assert updated(policy, algorithm, own).isfinite().all()
    after = policy.state_dict()
    changed = [name for name, value in after.items() if not torch.equal(value, before[name])]
    assert all(value.isfinite().all() for value in after.values())
    assert {name for name in after if "lora_B" in name} & set(changed)

    policy.save_adapter(tmp_path)
    pipeline = stock(family)
    if family == "pixart":  # its pipeline loads no LoRA
        PeftModel.from_pretrained(pipeline.transformer, tmp_path)
    else:
        pipeline.load_lora_weights(tmp_path)
    conditioning, noise = policy.encode(PROMPTS), policy.noise(2, torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = policy.velocity(noise, torch.tensor([0.7, 0.2]), conditioning)
        theirs = generator_of(pipeline).velocity(noise, torch.tensor([0.7, 0.2]), conditioning.embeddings)
        with policy.reference():
            initial = policy.velocity(noise, torch.tensor([0.7, 0.2]), conditioning)
    torch.testing.assert_close(ours, theirs)
    assert not torch.equal(ours, initial)


def test_a_reward_of_another_family_is_refused_before_weights_are_read(settings, tmp_path):
    """Of the policy there is only a configuration."""
    folder = tmp_path / "flux"
    tiny_pipeline("flux").transformer.save_config(folder / "transformer")
    refused_run = settings("refl", policy=str(folder))
    for refused in (lambda: load_models(refused_run[0], torch.device("cpu")), lambda: Cost(*refused_run)):
        with pytest.raises(ValueError, match="policy, reward_model: expected the same family") as caught:
            refused()
        assert f"flux of {folder}" in str(caught.value)
        assert f"sd3 of {refused_run[0].reward_model}" in str(caught.value)


def test_policy_and_reward_share_their_base_weights(settings, tmp_path):
    save_tiny_folder("sd", tmp_path)
    fields = {"policy": str(tmp_path), "reward_model": str(tmp_path), "resolution": HEIGHT}
    policy, model = load_models(settings("refl", **fields)[0], torch.device("cpu"))
    theirs = {weight.data_ptr() for weight in policy.transformer.parameters()}
    assert model.backbone.down_blocks[0].resnets[0].conv1.weight.data_ptr() in theirs
    assert not {weight.data_ptr() for weight in model.head.parameters()} & theirs


@pytest.mark.parametrize("algorithm", ["refl", "diffusion_dpo"])
@pytest.mark.slow
def test_a_run_on_a_variance_preserving_path(settings, algorithm, tmp_path):
    folder = str(tmp_path / "sdxl")
    save_tiny_folder("sdxl", folder)
    brief = {"updates": 1, "prompts_per_update": 2, "eval_samples": 2, "eval_steps": 2, "resolution": HEIGHT}
    own = {"num_steps": 3} | ({"first_step": 1, "last_step": 2} if algorithm == "refl" else {"group_size": 2})
    arguments, own = settings(algorithm, own, policy=folder, reward_model=folder, gradient_checkpointing=True, **brief)
    assert run(arguments, own).update == 1
    adapter = load_file(Path(arguments.output_dir) / "adapter" / "pytorch_lora_weights.safetensors")
    assert all(name.startswith("unet.") for name in adapter)
    with pytest.raises(ValueError, match="gradient_checkpointing: expected false for the dry run of a UNet"):
        Cost(arguments, own)


def test_a_family_without_a_generator_is_refused(settings, tmp_path, monkeypatch):
    monkeypatch.delitem(GENERATORS, "sd")
    save_tiny_folder("sd", tmp_path)
    refused_run = settings("refl", policy=str(tmp_path), reward_model=str(tmp_path))
    for refused in (lambda: load_models(refused_run[0], torch.device("cpu")), lambda: Cost(*refused_run)):
        with pytest.raises(ValueError, match=r"policy: expected a generator of .*'flux'.*, got sd of"):
            refused()


def test_an_algorithm_of_flow_matching_is_refused_on_a_variance_preserving_path(settings, tmp_path):
    save_tiny_folder("sd", tmp_path)
    refused_run = settings("flow_grpo", policy=str(tmp_path), reward_model=str(tmp_path))
    for refused in (lambda: load_models(refused_run[0], torch.device("cpu")), lambda: Cost(*refused_run)):
        with pytest.raises(ValueError, match=r"algorithm: expected .* family sd, got FlowGRPO"):
            refused()


@pytest.mark.parametrize("family", GENERATORS)
@pytest.mark.slow
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
    component = BACKBONES[family].component
    getattr(tiny_pipeline(family), component).save_config(f"{base}/{component}")
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
