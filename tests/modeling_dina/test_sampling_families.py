"""A reward at sampling time, beside the stock pipeline of every family."""

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from modeling_dina import DinaRewardModel, DinaScorer
from modeling_dina.conditioning_dina import encode_prompts
from modeling_dina.sampling import GuideByReward, PruneCandidates, RecordRewards, best_of_n
from tests.families import FAMILIES, MAX_SEQUENCE_LENGTH, randomised, tiny_pipeline, tiny_reward

PROMPTS = ["abc", "a longer text"]
SIZE = {"height": 64, "width": 48}
STEPS = 3
# Guidance by a prompt without content, in each pipeline's own arguments.
GUIDANCE = {
    "sd3": {"guidance_scale": 3.0},
    "flux": {"guidance_scale": 3.0},
    "zimage": {"guidance_scale": 2.0},
    "qwenimage": {"true_cfg_scale": 3.0, "negative_prompt": "b"},
}
WITHOUT_GUIDANCE = {"sd3": {"guidance_scale": 1.0}, "zimage": {"guidance_scale": 0.0}}


@pytest.fixture(scope="module", params=GUIDANCE)
def family(request):
    return load(request.param)


def load(name):
    """Pipeline and reward model of a family, and the pipeline's function that unpacks latents."""
    pipeline = tiny_pipeline(name)
    randomised(pipeline.transformer)
    pipeline.set_progress_bar_config(disable=True)

    def unpacked(latents):
        if not hasattr(pipeline, "_unpack_latents"):
            return latents
        return pipeline._unpack_latents(latents, *SIZE.values(), 8).reshape(-1, 4, 8, 6)

    return SimpleNamespace(name=name, pipeline=pipeline, model=tiny_reward(name), unpacked=unpacked)


def sample(family, prompt=PROMPTS, count=4, **options):
    """The output of the stock pipeline for `count` images, each with its own seed."""
    options = {"output_type": "latent", **GUIDANCE[family.name], **SIZE, **options}
    if isinstance(options.get("negative_prompt"), str) and isinstance(prompt, list):
        options["negative_prompt"] = [options["negative_prompt"]] * len(prompt)
    return family.pipeline(
        list(prompt) if isinstance(prompt, list) else prompt,
        num_images_per_prompt=count if isinstance(prompt, str) else count // len(prompt),
        num_inference_steps=STEPS,
        max_sequence_length=MAX_SEQUENCE_LENGTH[family.name],
        generator=generators(count),
        **options,
    ).images


def generators(count):
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


def watched(family, **options):
    """The states after each step and their noise levels, of a sampling without a callback of ours."""
    states, sigmas = [], []

    def watch(pipeline, step, timestep, tensors):
        states.append(family.unpacked(tensors["latents"]))
        sigmas.append(pipeline.scheduler.sigmas[step + 1].item())
        return {}

    return sample(family, callback_on_step_end=watch, **options), states, sigmas


def conditioning(family, count):
    encoded = encode_prompts(family.pipeline, PROMPTS, MAX_SEQUENCE_LENGTH[family.name])
    return encoded.take([row for row in (0, 1) for _ in range(count // 2)])


def test_best_of_n_is_the_best_of_the_pipelines_own_candidates(family):
    best = best_of_n(
        family.pipeline,
        family.model,
        PROMPTS[1],
        3,
        keep=2,
        batch_size=2,
        num_inference_steps=STEPS,
        generator=generators(3),
        **GUIDANCE[family.name],
        **SIZE,
    )
    latents = family.unpacked(sample(family, PROMPTS[1], 3))
    scores = DinaScorer(family.model, family.pipeline).score(prompts=[PROMPTS[1]] * 3, latents=latents).scores
    expected = scores.sort(descending=True)
    torch.testing.assert_close(best.scores, expected.values, rtol=0, atol=1e-4)
    torch.testing.assert_close(best.latents, latents[expected.indices[:2]], rtol=0, atol=1e-4)
    pictures = sample(family, PROMPTS[1], 3, output_type="np")
    for image, index in zip(best.images, expected.indices, strict=False):
        np.testing.assert_allclose(np.asarray(image) / 255, pictures[index], rtol=0, atol=0.01)


@pytest.mark.parametrize("name", WITHOUT_GUIDANCE)
def test_pruning_is_sampling_all_and_taking_the_best(name):
    family = load(name)
    whole, states, sigmas = watched(family, **WITHOUT_GUIDANCE[name])
    prune = PruneCandidates(family.model, {0: 1}, num_prompts=2)
    inputs = {"callback_on_step_end_tensor_inputs": prune.tensor_inputs}
    pruned = sample(family, callback_on_step_end=prune, **inputs, **WITHOUT_GUIDANCE[name])
    with torch.no_grad():
        scores = family.model(states[0], sigmas[0], *conditioning(family, 4)).scores.view(2, 2)
    rows = scores.argmax(dim=1) + torch.tensor([0, 2])
    torch.testing.assert_close(pruned, whole[rows], rtol=0, atol=1e-4)


def test_a_guided_step_by_hand(family):
    """x' + (s - s') s' / (1 - s') scale grad r(x', s') after the first step, which leads from s = 1 to s'."""
    _, states, sigmas = watched(family)
    guided, scale = [], 5.0
    guide = GuideByReward(family.model, scale, prompts=PROMPTS, **SIZE)

    def watch(*arguments):
        changed = guide(*arguments)
        guided.append(family.unpacked(changed["latents"]))
        return changed

    sample(family, callback_on_step_end=watch)
    state = states[0].clone().requires_grad_()
    family.model(state, sigmas[0], *conditioning(family, 4)).scores.sum().backward()
    change = (1 - sigmas[0]) * sigmas[0] / (1 - sigmas[0]) * scale * state.grad
    torch.testing.assert_close(guided[0], states[0] + change, rtol=0, atol=1e-4)
    assert change.abs().amax() > 1e-2


def test_the_callback_of_the_documentation(family, monkeypatch):
    """The example of a callback gives the rewards of `RecordRewards`, whose last one is of the ensemble."""
    page = (Path(__file__).parents[2] / "docs" / "integrations.md").read_text()
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "def record(" in block]
    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", lambda path: family.pipeline)
    monkeypatch.setattr(DinaRewardModel, "from_pretrained", lambda path: family.model)
    names = {}
    torch.manual_seed(0)
    exec(code, names)
    record = RecordRewards(family.model, [names["prompt"]], **names["size"])
    torch.manual_seed(0)
    family.pipeline(names["prompt"], **names["size"], num_inference_steps=6, callback_on_step_end=record)
    sigmas, rewards = zip(*names["curve"], strict=True)
    assert list(sigmas) == record.sigmas
    torch.testing.assert_close(torch.tensor(rewards[:-1]), torch.cat(record.rewards[:-1]), rtol=0, atol=1e-4)


def test_recorded_rewards_are_those_of_the_states(family):
    latents, states, sigmas = watched(family)
    record = RecordRewards(family.model, PROMPTS, **SIZE)
    for _ in range(2):  # the second sampling replaces the first
        assert torch.equal(sample(family, callback_on_step_end=record), latents)
    prompts = conditioning(family, 4)
    with torch.no_grad():
        noisy = [family.model(*pair, *prompts).scores for pair in zip(states[:-1], sigmas[:-1], strict=True)]
        expected = [*noisy, family.model.reward(states[-1], *prompts).scores]
    assert record.sigmas == sigmas
    torch.testing.assert_close(torch.stack(record.rewards), torch.stack(expected), rtol=0, atol=1e-4)


def test_what_a_pipeline_does_not_support_is_named(family):
    record = RecordRewards(family.model, **SIZE)
    pipeline = type(family.pipeline).__name__
    if family.name != "sd3":
        with pytest.raises(ValueError, match=rf"^prompts: expected .* {pipeline} gets only \['latents'\], got None"):
            sample(family, callback_on_step_end=record)
    if family.name in ("flux", "qwenimage"):
        with pytest.raises(ValueError, match=f"^model: expected .* pruning, got {family.name}: .* {pipeline} "):
            PruneCandidates(family.model, {0: 1})
        with pytest.raises(ValueError, match=r"^height, width: expected .* got None and None"):
            sample(family, callback_on_step_end=RecordRewards(family.model, PROMPTS))
    if family.name == "zimage":
        prune = PruneCandidates(family.model, {0: 1}, num_prompts=2)
        with pytest.raises(ValueError, match=rf"^guidance_scale: expected 0, .* {pipeline} .* got 2\.0"):
            sample(family, callback_on_step_end=prune)
        with pytest.raises(ValueError, match=r"^callback_on_step_end_tensor_inputs: expected .*prompt_embeds"):
            sample(family, callback_on_step_end=prune, guidance_scale=0.0)
    if family.name in ("zimage", "qwenimage"):
        with pytest.raises(ValueError, match=r"^negative_prompt_embeds: expected 1 entry, .* got 2"):
            best_of_n(family.pipeline, family.model, "a", 2, negative_prompt_embeds=[torch.zeros(1, 24)] * 2)
    with pytest.raises(ValueError, match=r"^prompts: expected .* got 3 for 4 candidates"):
        sample(family, callback_on_step_end=RecordRewards(family.model, ["a"] * 3, **SIZE))
    with pytest.raises(ValueError, match=r"^prompts: expected a list of at least one text, got 'abc'"):
        RecordRewards(family.model, "abc")


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - set(GUIDANCE)))
def test_variance_preserving_families_are_refused(name):
    model = tiny_reward(name)
    for tool in (lambda: RecordRewards(model), lambda: best_of_n(tiny_pipeline(name), model, "a", 2)):
        with pytest.raises(ValueError, match=rf"^model: expected .* flow-matching .* got {name} "):
            tool()


@pytest.mark.parametrize("name", ["flux", "qwenimage"])
def test_packed_latents_have_the_pipelines_default_size(name):
    family = load(name)
    family.pipeline.default_sample_size = 8
    # Two steps, because the scheduler of Qwen-Image does not support one.
    options = {"num_inference_steps": 2, "max_sequence_length": MAX_SEQUENCE_LENGTH[name]}
    assert best_of_n(family.pipeline, family.model, "a", 1, **options).latents.shape == (1, 4, 8, 8)
