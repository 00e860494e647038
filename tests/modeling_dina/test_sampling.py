"""A reward at sampling time, beside the stock pipeline of the embedded default."""

from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchHeunDiscreteScheduler, StableDiffusion3Pipeline
from diffusers.callbacks import MultiPipelineCallbacks

from modeling_dina import DinaRewardModel, DinaScorer
from modeling_dina.sampling import GuideByReward, PruneCandidates, best_of_n

TINY = Path(__file__).parents[2] / "modeling_dina" / "tiny"
PROMPT = "two purple stars"


@pytest.fixture(scope="module")
def model():
    return DinaRewardModel.from_pretrained(TINY)


@pytest.fixture(scope="module")
def pipeline():
    pipeline = StableDiffusion3Pipeline.from_pretrained(TINY)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def call(seed: int = 0, **options) -> dict:
    """Arguments of the pipeline for a few quick steps under guidance."""
    return {
        "height": 64,
        "width": 64,
        "num_inference_steps": 5,
        "guidance_scale": 3.0,
        "max_sequence_length": 14,
        "output_type": "latent",
        "generator": torch.Generator().manual_seed(seed),
        **options,
    }


def scores(model, pipeline, latents, prompts=None):
    prompts = prompts or [PROMPT] * len(latents)
    return DinaScorer(model, pipeline).score(prompts=prompts, latents=latents).scores


def test_best_of_n_decodes_the_best(model, pipeline):
    options = call(num_inference_steps=3)
    del options["output_type"]
    best = best_of_n(pipeline, model, PROMPT, 6, keep=2, batch_size=4, **options)
    generator = torch.Generator().manual_seed(0)
    candidates = torch.cat(
        [
            pipeline(PROMPT, num_images_per_prompt=n, **call(num_inference_steps=3, generator=generator)).images
            for n in (4, 2)
        ]
    )
    expected = scores(model, pipeline, candidates).sort(descending=True)
    torch.testing.assert_close(best.scores, expected.values)
    torch.testing.assert_close(best.latents, candidates[expected.indices[:2]])
    assert [image.size for image in best.images] == [(64, 64)] * 2
    # The pictures are those of the latents: encoded again, they are near.
    again = DinaScorer(model, pipeline)._encode_images(best.images, (64, 64))
    nearest = torch.cdist(again.flatten(1), candidates.flatten(1)).argmin(dim=1)
    assert nearest.tolist() == expected.indices[:2].tolist()


def per_candidate(name, count, pipeline):
    """One entry for each candidate."""
    if name == "generator":
        return {"generator": [torch.Generator().manual_seed(seed) for seed in range(count)]}
    if name == "latents":
        return {"latents": torch.randn(count, 16, 8, 8, generator=torch.Generator().manual_seed(5))}
    embeds, _, pooled, _ = pipeline.encode_prompt("a", None, None, num_images_per_prompt=count, max_sequence_length=14)
    scale = torch.linspace(0, 1, count)
    return {
        "negative_prompt_embeds": embeds * scale[:, None, None],
        "negative_pooled_prompt_embeds": pooled * scale[:, None],
        **per_candidate("latents", count, pipeline),
    }


@pytest.mark.parametrize("name", ["generator", "latents", "negative_prompt_embeds"])
@pytest.mark.slow
def test_candidates_of_their_own_do_not_depend_on_the_batches(model, pipeline, name):
    options = call(num_inference_steps=2)
    del options["output_type"], options["generator"]
    found = [
        best_of_n(
            pipeline, model, PROMPT, 5, keep=5, batch_size=size, **{**options, **per_candidate(name, 5, pipeline)}
        )
        for size in (5, 2, 1)
    ]
    assert found[0].scores.unique().numel() == 5
    for other in found[1:]:
        torch.testing.assert_close(other.scores, found[0].scores, rtol=0, atol=1e-4)
        torch.testing.assert_close(other.latents, found[0].latents, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", ["generator", "latents"])
def test_pruning_goes_on_with_the_candidates_own_entries(model, pipeline, name):
    own = per_candidate(name, 4, pipeline)
    whole = pipeline(PROMPT, num_images_per_prompt=4, **call(**own)).images
    prune = PruneCandidates(model, {2: 2})
    own = per_candidate(name, 4, pipeline)
    kept = pipeline(PROMPT, num_images_per_prompt=4, callback_on_step_end=prune, **call(**own)).images
    distances = torch.cdist(kept.flatten(1), whole.flatten(1))
    assert distances.min(dim=1).values.max() < 1e-3
    assert len(set(distances.argmin(dim=1).tolist())) == 2


def test_guidance_does_not_depend_on_the_batches(model, pipeline):
    options = call(num_inference_steps=3)
    del options["output_type"], options["generator"]
    options["callback_on_step_end"] = GuideByReward(model, 2.0)
    found = [
        best_of_n(pipeline, model, PROMPT, 3, batch_size=size, **options, **per_candidate("generator", 3, pipeline))
        for size in (3, 2)
    ]
    torch.testing.assert_close(found[1].scores, found[0].scores, rtol=0, atol=1e-4)


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_pruning_keeps_the_noisy_states_that_score_best(model, pipeline, guidance_scale):
    """Of each prompt, at the level that a step led to, under the prompt's own embeddings."""
    prompts, seen = ["a small cyan square", "two purple stars"], {}

    def watch(pipe, step, timestep, tensors):
        seen[step] = tensors["latents"]
        return tensors

    options = {"num_images_per_prompt": 3, "guidance_scale": guidance_scale}
    whole = pipeline(prompts, callback_on_step_end=watch, **call(**options)).images
    kept = pipeline(prompts, callback_on_step_end=PruneCandidates(model, {2: 1}, 2), **call(**options)).images

    sigma = torch.linspace(1, 0.001, 5)[3].item()
    embeds, _, pooled, _ = pipeline.encode_prompt(prompts, None, None, num_images_per_prompt=3, max_sequence_length=14)
    with torch.no_grad():
        noisy_scores = model(seen[2], sigma, embeds, pooled).scores.view(2, 3)
    rows = noisy_scores.argmax(dim=1) + torch.tensor([0, 3])
    torch.testing.assert_close(kept, whole[rows], rtol=0, atol=1e-4)


def test_pruned_candidates_are_better_than_all(model, pipeline):
    everyone = pipeline(PROMPT, num_images_per_prompt=8, **call()).images
    pruned = pipeline(
        PROMPT, num_images_per_prompt=8, callback_on_step_end=PruneCandidates(model, {1: 6, 3: 2}), **call()
    ).images
    assert len(pruned) == 2
    assert scores(model, pipeline, pruned).mean() > scores(model, pipeline, everyone).mean()


@pytest.mark.slow
def test_guidance_raises_the_reward_with_its_scale(model, pipeline):
    means = [
        scores(
            model,
            pipeline,
            pipeline(
                PROMPT, num_images_per_prompt=8, callback_on_step_end=GuideByReward(model, scale), **call()
            ).images,
        ).mean()
        for scale in (0.0, 2.0, 8.0)
    ]
    assert means[0] < means[1] < means[2]


def test_a_guided_step_by_hand(model, pipeline):
    """x' + (s - s') s' / (1 - s') scale grad r(x', s') after the first step, which leads from s = 1 to s'."""
    states = []

    def keep(pipe, step, timestep, tensors):
        states.append(tensors["latents"])
        return tensors

    pipeline(PROMPT, callback_on_step_end=keep, **call())
    pipeline(
        PROMPT,
        callback_on_step_end=lambda *arguments: keep(*arguments[:3], GuideByReward(model, 5.0)(*arguments)),
        callback_on_step_end_tensor_inputs=["latents", "prompt_embeds", "pooled_prompt_embeds"],
        **call(),
    )
    plain, guided = states[0], states[5]
    level = torch.linspace(1, 0.001, 5)[1].item()
    embeds, _, pooled, _ = pipeline.encode_prompt(
        PROMPT, None, None, do_classifier_free_guidance=False, max_sequence_length=14
    )
    state = plain.clone().requires_grad_()
    model(state, level, embeds, pooled).scores.backward()
    expected = plain + (1 - level) * level / (1 - level) * 5 * state.grad
    torch.testing.assert_close(guided, expected)


def test_guidance_leaves_other_levels_alone(model, pipeline):
    plain = pipeline(PROMPT, **call()).images
    below = pipeline(PROMPT, callback_on_step_end=GuideByReward(model, 5.0, start=0.0), **call()).images
    assert torch.equal(plain, below)


def test_callbacks_join(model, pipeline):
    both = MultiPipelineCallbacks([GuideByReward(model, 2.0), PruneCandidates(model, {1: 2})])
    assert len(pipeline(PROMPT, num_images_per_prompt=3, callback_on_step_end=both, **call()).images) == 2


def test_bad_input_is_named(model, pipeline):
    with pytest.raises(ValueError, match="keep: expected 1 to num_candidates=2, got 3"):
        best_of_n(pipeline, model, PROMPT, 2, keep=3)
    with pytest.raises(ValueError, match="batch_size: expected at least 1, got 0"):
        best_of_n(pipeline, model, PROMPT, 2, batch_size=0)
    wrong = {
        "generator": [torch.Generator()] * 3,
        "latents": torch.zeros(1, 16, 8, 8),
        "negative_prompt_embeds": torch.zeros(1, 3, 3),
        "num_images_per_prompt": 2,
        "output_type": "pil",
        "prompt_embeds": torch.zeros(2, 3, 3),
    }
    for name, value in wrong.items():
        with pytest.raises(ValueError, match=f"{name}: expected"):
            best_of_n(pipeline, model, PROMPT, 2, **{name: value})
    options = {"height": 64, "width": 64, "num_inference_steps": 2, "max_sequence_length": 14}
    with pytest.raises(ValueError, match="callback_on_step_end: expected all 2 candidates of a batch"):
        best_of_n(pipeline, model, PROMPT, 2, callback_on_step_end=PruneCandidates(model, {0: 1}), **options)
    heun = StableDiffusion3Pipeline(**pipeline.components)
    heun.scheduler = FlowMatchHeunDiscreteScheduler()
    with pytest.raises(ValueError, match="scheduler: expected a FlowMatchEulerDiscreteScheduler, got FlowMatchHeun"):
        heun(PROMPT, num_images_per_prompt=2, callback_on_step_end=PruneCandidates(model, {0: 1}), **call())
    with pytest.raises(ValueError, match=r"keep: expected a positive number for each of some steps, got \{3: 0\}"):
        PruneCandidates(model, {3: 0})
    with pytest.raises(ValueError, match="keep: expected at least 4 candidates for each of 1 prompts after step 0"):
        pipeline(PROMPT, num_images_per_prompt=2, callback_on_step_end=PruneCandidates(model, {0: 4}), **call())
    with pytest.raises(ValueError, match="start, stop: expected"):
        GuideByReward(model, 1.0, start=0.2, stop=0.5)
    model.train()
    try:
        with pytest.raises(ValueError, match="model: expected it in evaluation mode"):
            GuideByReward(model, 1.0)
    finally:
        model.eval()


def test_callbacks_refuse_a_pipeline_without_a_text_encoder_of_the_training(model, pipeline):
    """As a scorer does; but not one without any, which is given embeddings."""
    parts = pipeline.components
    lacking = StableDiffusion3Pipeline(**{**parts, "text_encoder_3": None, "tokenizer_3": None})
    embeds, _, pooled, _ = pipeline.encode_prompt(
        PROMPT, None, None, do_classifier_free_guidance=False, max_sequence_length=14
    )
    given = call(prompt_embeds=embeds.repeat(2, 1, 1), pooled_prompt_embeds=pooled.repeat(2, 1), guidance_scale=1.0)
    without_text = {name: None for name in parts if name.startswith(("text_encoder", "tokenizer"))}
    bare = StableDiffusion3Pipeline(**{**parts, **without_text})
    for callback in (PruneCandidates(model, {1: 1}), GuideByReward(model, 1.0)):
        with pytest.raises(ValueError, match="pipeline: expected text_encoders with text_encoder_3=128"):
            lacking(PROMPT, num_images_per_prompt=2, callback_on_step_end=callback, **call())
        assert bare(callback_on_step_end=callback, **given).images.isfinite().all()
