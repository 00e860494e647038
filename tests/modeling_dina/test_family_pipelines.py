"""Prompts and images through the pipeline of every family: from_backbone, encoding, scoring."""

import copy
import logging
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from modeling_dina import DinaRewardModel, DinaScorer
from modeling_dina.backbone_dina import BACKBONES
from modeling_dina.conditioning_dina import describe_conditioning, encode_prompts, load_pipeline, read_conditioning
from modeling_dina.latents_dina import decode_latents, encode_images
from modeling_dina.pipelines_dina import EncodedPrompts
from tests.families import FAMILIES, MAX_SEQUENCE_LENGTH, save_tiny_folder, tiny_pipeline, tiny_vae, tiny_video_vae

PROMPTS = ["a cat", "two red cubes", "a cat", "the sea"]


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / request.param
    save_tiny_folder(request.param, folder)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return DinaRewardModel.from_pretrained(folder)


@pytest.fixture(scope="module")
def pipeline(model):
    return load_pipeline(model)


def test_the_pipeline_is_loaded_without_its_transformer(folder, model, pipeline):
    assert getattr(pipeline, model.backbone.component) is None
    assert type(pipeline) is type(tiny_pipeline(folder.name))
    assert model.config.backbone_type == folder.name
    assert model.config.conditioning == describe_conditioning(pipeline) == read_conditioning(str(folder))


@torch.no_grad()
def test_scores_follow_the_model_and_not_the_batch(model, pipeline, images):
    """Images of several sizes, whose prompts have various lengths."""
    images, options = images[:4], {"num_draws": 2, "sigmas": [0.3, 0.6]}
    scorer = DinaScorer(model, pipeline)
    together = scorer.score(prompts=PROMPTS, images=images, **options).scores
    assert together.std() > 1e-3
    order = [2, 0, 3, 1]
    for batch_size in (1, 2):
        other = DinaScorer(model, pipeline, batch_size=batch_size)
        shuffled = other.score(prompts=[PROMPTS[i] for i in order], images=[images[i] for i in order], **options)
        torch.testing.assert_close(shuffled.scores, together[order], rtol=0, atol=1e-5)
    encoded = encode_prompts(pipeline, PROMPTS[:1], model.config.max_sequence_length)
    latents = encode_images(pipeline.vae, pipeline.image_processor.preprocess(images[0]))
    torch.testing.assert_close(model.reward(latents, *encoded, **options).scores, together[:1], rtol=0, atol=1e-5)


def test_compare_and_rank(folder, images):
    scorer = DinaScorer.from_pretrained(folder)
    comparison = scorer.compare(prompt="a cat", images=images[:2])
    ranking = scorer.rank(prompt="a cat", images=images[:2])
    assert ranking.win_probability[0, 1].item() == pytest.approx(comparison.win_probability, abs=1e-6)
    assert (comparison.win_probability > 0.5) == (ranking.order == [0, 1])


def test_threads_share_a_scorer(folder, images):
    """The VAE and the tokenizer of Qwen-Image store something of the current call."""
    if folder.name != "qwenimage":
        pytest.skip("the locks are the same as for Stable Diffusion 3")
    scorer = DinaScorer.from_pretrained(folder)
    expected = [scorer.score(prompts=[prompt], images=[images[0]]).scores for prompt in PROMPTS]
    with ThreadPoolExecutor(4) as pool:
        jobs = [(PROMPTS[index % 4], images[0]) for index in range(16)]
        found = list(pool.map(lambda job: scorer.score(prompts=[job[0]], images=[job[1]]).scores, jobs))
    for index, score in enumerate(found):
        torch.testing.assert_close(score, expected[index % 4], rtol=0, atol=1e-5)


@torch.no_grad()
def test_prompts_are_encoded_as_by_the_pipeline(folder, pipeline):
    """Each alone and without padding, and the same whether or not a prompt has been encoded before."""
    limit = MAX_SEQUENCE_LENGTH[folder.name]
    prompts = copy.copy(PROMPTS)
    encoded = encode_prompts(pipeline, prompts, limit)
    assert prompts == PROMPTS
    for prompt, sample in zip(PROMPTS, encoded.split(), strict=True):
        options = {"max_sequence_length": limit}
        if folder.name == "sd3":
            embeds, _, pooled, _ = pipeline.encode_prompt(prompt, None, None, **options)
        elif folder.name == "flux":
            embeds, pooled, _ = pipeline.encode_prompt(prompt, **options)
        elif folder.name == "sd":
            embeds, pooled = pipeline.encode_prompt(prompt, "cpu", 1, False)[0], None
        elif folder.name == "sdxl":
            embeds, _, pooled, _ = pipeline.encode_prompt(prompt)
        elif folder.name == "pixart":
            embeds, mask, _, _ = pipeline.encode_prompt(prompt, **options)
            embeds, pooled = embeds[:, : int(mask.sum())], None
        elif folder.name == "zimage":
            embeds, pooled = pipeline.encode_prompt(prompt, **options)[0][0][None], None
        else:
            (embeds, mask), pooled = pipeline.encode_prompt(prompt, **options), None
            assert mask is None
        torch.testing.assert_close(sample.prompt_embeds, embeds, rtol=0, atol=1e-5)
        assert (sample.pooled_prompt_embeds is None) == (pooled is None)
        if pooled is not None:
            torch.testing.assert_close(sample.pooled_prompt_embeds, pooled)
    again = EncodedPrompts.join(encoded.split())
    torch.testing.assert_close(tuple(again), tuple(encoded))
    assert (encoded.prompt_embeds_mask is None) == (not BACKBONES[folder.name].takes_mask)
    assert encode_prompts(pipeline, ["a cat"] * 2, limit).prompt_embeds_mask is None


def test_a_long_prompt_is_warned_of(folder, pipeline, caplog):
    limit = MAX_SEQUENCE_LENGTH[folder.name]
    with caplog.at_level(logging.WARNING):
        encoded = encode_prompts(pipeline, ["a cat", "cat" * 500], limit)
    assert encoded.prompt_embeds.shape[1] <= limit + (16 if folder.name == "sd3" else 0)
    (message,) = [record.getMessage() for record in caplog.records if "truncated" in record.getMessage()]
    assert f"{limit} of" in message


def test_another_vae_is_refused(folder, model, pipeline):
    other = type(pipeline)(**pipeline.components)
    other.vae = tiny_video_vae() if folder.name == "qwenimage" else tiny_vae()
    name = "latents_mean" if folder.name == "qwenimage" else "shift_factor"
    other.vae.register_to_config(**{name: [0.0] * 4 if folder.name == "qwenimage" else 0.7})
    with pytest.raises(ValueError, match=f"pipeline: expected vae with {name}="):
        DinaScorer(model, other)


@torch.no_grad()
def test_latents_are_normalised(folder, pipeline, images):
    """The normalisation of the VAE, as the pipelines undo it before decoding."""
    vae = pipeline.vae
    pixels = pipeline.image_processor.preprocess(images[0])
    latents = encode_images(vae, pixels)
    assert latents.shape == (1, 4, 8, 8)
    if folder.name == "qwenimage":
        mode = vae.encode(pixels[:, :, None]).latent_dist.mode()[:, :, 0]
        for channel, (mean, std) in enumerate(zip(vae.config.latents_mean, vae.config.latents_std, strict=True)):
            torch.testing.assert_close(latents[:, channel], (mode[:, channel] - mean) / std)
        expected = vae.decode(mode[:, :, None]).sample[:, :, 0]
    else:
        mode = vae.encode(pixels).latent_dist.mode()
        torch.testing.assert_close(latents, (mode - 0.1) * 1.5)
        expected = vae.decode(mode).sample
    torch.testing.assert_close(decode_latents(vae, latents), expected, rtol=1e-4, atol=1e-5)


def test_a_pipeline_of_no_family_is_refused():
    class OtherPipeline:
        pass

    with pytest.raises(ValueError, match=r"pipeline: expected one of .*ZImagePipeline.*, got OtherPipeline"):
        encode_prompts(OtherPipeline(), ["a cat"], 24)
