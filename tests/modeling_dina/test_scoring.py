"""From prompts and images to results, on a pipeline with random weights."""

import json

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from PIL import Image

from modeling_dina import DinaRewardModel, scoring_dina
from modeling_dina.scoring_dina import DinaScorer, Ranking
from tests.processes import run_code

PROMPTS = ["a cat", "a dog", "a cat", "the sea", "two red cubes", "a dog"]


@pytest.fixture(scope="module")
def model(folder):
    return DinaRewardModel.from_pretrained(folder)


@pytest.fixture(scope="module")
def pipeline(folder):
    return StableDiffusion3Pipeline.from_pretrained(folder)


@pytest.mark.parametrize("mode", ["features", "mean", "precision"])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_scores_do_not_depend_on_company(model, pipeline, images, mode, batch_size):
    options = {"mode": mode, "num_draws": 2, "seed": 3}
    alone = DinaScorer(model, pipeline, batch_size=8)
    expected = torch.cat(
        [alone.score(prompts=[p], images=[i], **options).scores for p, i in zip(PROMPTS, images, strict=True)]
    )
    assert expected.std() > 1e-3
    scorer = DinaScorer(model, pipeline, batch_size=batch_size)
    for order in ([0, 1, 2, 3, 4, 5], [4, 2, 0, 5, 3, 1]):
        result = scorer.score(prompts=[PROMPTS[i] for i in order], images=[images[i] for i in order], **options)
        torch.testing.assert_close(result.scores, expected[order], rtol=0, atol=1e-5)
        torch.testing.assert_close(result.samples.shape[1:], torch.Size([2, 6]))


def test_files_images_and_latents_agree(scorer, pipeline, images, files):
    expected = scorer.score(prompts=PROMPTS, images=images).scores
    assert torch.equal(scorer.score(prompts=PROMPTS, images=files).scores, expected)
    assert torch.equal(scorer.score(prompts=PROMPTS, images=[str(path) for path in files]).scores, expected)

    pixels = torch.from_numpy(np.stack([np.asarray(images[i]) for i in (0, 1, 5)])).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        latents = (pipeline.vae.encode(pixels).latent_dist.mode() - 0.1) * 1.5
    result = scorer.score(prompts=[PROMPTS[i] for i in (0, 1, 5)], latents=latents)
    torch.testing.assert_close(result.scores, expected[[0, 1, 5]], rtol=0, atol=1e-5)


def test_scores_follow_the_model(scorer, model, pipeline, images):
    """The scorer adds nothing to `reward` but its inputs."""
    options = {"sigmas": [0.3, 0.6], "num_draws": 3, "mode": "precision", "seed": 7}
    embeds, _, pooled, _ = pipeline.encode_prompt(
        "a cat", None, None, do_classifier_free_guidance=False, max_sequence_length=24
    )
    with torch.no_grad():
        latents = (pipeline.vae.encode(pipeline.image_processor.preprocess(images[0])).latent_dist.mode() - 0.1) * 1.5
        expected = model.reward(latents, embeds, pooled, **options)
    result = scorer.score(prompts=["a cat"], images=images[:1], **options)
    torch.testing.assert_close(result.scores, expected.scores, rtol=0, atol=1e-6)
    torch.testing.assert_close(result.samples, expected.samples, rtol=0, atol=1e-6)
    assert torch.equal(result.sigmas, expected.sigmas)
    assert torch.equal(result.spread, result.samples.std(dim=1).square().mean(dim=0).sqrt())


def test_compare(scorer, images):
    options = {"prompt": "a cat", "num_draws": 4, "mode": "mean"}
    result = scorer.compare(images=images[:2], **options)
    swapped = scorer.compare(images=images[1::-1], **options)
    assert result.win_probability == pytest.approx(1 - swapped.win_probability, abs=1e-6)
    assert (result.win_probability > 0.5) == (result.scores[0] > result.scores[1])
    assert result.entropy == pytest.approx(result.disagreement + result.likelihood_entropy, abs=1e-6)
    assert result.difference_error > 0
    same = scorer.compare(images=[images[0], images[0]], **options)
    assert same.win_probability == pytest.approx(0.5, abs=1e-6)
    assert same.difference_error == pytest.approx(0, abs=1e-6)


def test_levels_in_one_batch(scorer, images):
    passes = []
    hook = scorer.model.backbone.register_forward_hook(lambda *_: passes.append(None))
    batched = type(scorer)(scorer.model, scorer.pipeline, level_batching=True)
    scores = [each.score(prompts=["a cat"], images=images[:1]).scores for each in (scorer, batched)]
    hook.remove()
    torch.testing.assert_close(scores[1], scores[0], rtol=0, atol=1e-5)
    assert len(passes) == 1 + len(scorer.model.config.default_sigmas) > 2


def test_rank(scorer, images):
    result = scorer.rank(prompt="a cat", images=images, num_draws=2)
    assert result.scores[result.order].tolist() == sorted(result.scores.tolist(), reverse=True)
    pair = scorer.compare(prompt="a cat", images=[images[2], images[4]], num_draws=2)
    assert result.win_probability[2, 4].item() == pytest.approx(pair.win_probability, abs=1e-6)
    torch.testing.assert_close(result.win_probability + result.win_probability.T, torch.ones(6, 6))


def test_rank_computes_probabilities_on_demand(scorer):
    """3,000 images: a table of neighbours must not cost a matrix of all pairs at every level and draw."""
    count = 3000
    samples = torch.randn(3, 4, count, generator=torch.Generator().manual_seed(0))
    ranking = Ranking(list(range(count)), samples.mean(dim=(0, 1)), samples, torch.tensor([0.1, 0.2, 0.4]), None)
    assert "win_probability" not in vars(ranking)
    neighbours = ranking.probability(ranking.order[:-1], ranking.order[1:])
    assert neighbours.shape == (count - 1,)
    few = Ranking([0, 1, 2], samples.mean(dim=(0, 1))[:3], samples[..., :3], ranking.variance, None)
    torch.testing.assert_close(few.win_probability[[0, 1], [1, 2]], neighbours[:2])
    assert set(few.to_dict()) == {"order", "scores", "win_probability"}


def test_seeds_of_samples_go_with_them_through_batches(model, pipeline, images):
    """One seed for each image, as a list, array or tensor, whatever the batch size and the sizes of the images."""
    seeds = [5, 3, 8, 1, 0, 2**40]
    expected = [
        DinaScorer(model, pipeline).score(prompts=[prompt], images=[image], seed=seed).scores
        for prompt, image, seed in zip(PROMPTS, images, seeds, strict=True)
    ]
    for batch_size, given in ((2, seeds), (4, np.array(seeds)), (100, torch.tensor(seeds)), (3, tuple(seeds))):
        found = DinaScorer(model, pipeline, batch_size=batch_size).score(prompts=PROMPTS, images=images, seed=given)
        torch.testing.assert_close(found.scores, torch.cat(expected), rtol=0, atol=1e-5)


def test_arguments_may_be_arrays_and_tensors(scorer, images):
    expected = scorer.score(prompts=PROMPTS, images=images, sigmas=[0.2, 0.6], num_draws=2, seed=3).scores
    for sigmas, seed in ((np.array([0.2, 0.6]), np.int64(3)), (torch.tensor([0.2, 0.6]), torch.tensor(3))):
        found = scorer.score(prompts=np.array(PROMPTS), images=tuple(images), sigmas=sigmas, num_draws=2, seed=seed)
        torch.testing.assert_close(found.scores, expected, rtol=0, atol=1e-5)


def test_scores_do_not_depend_on_torch_s_defaults(folder, images):
    """Loaded and scored under other defaults, and again after they are restored."""
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    options = {"prompts": PROMPTS[:3], "latents": latents, "num_draws": 2, "seed": 123}
    expected = DinaScorer.from_pretrained(folder).score(**{**options, "seed": 124}).scores
    torch.set_default_dtype(torch.float64)
    try:
        scorer = DinaScorer.from_pretrained(folder)
        doubled = [scorer.score(**options).scores, scorer.score(**{**options, "seed": 124}).scores]
    finally:
        torch.set_default_dtype(torch.float32)
    restored = [scorer.score(**{**options, "seed": seed}).scores for seed in (123, 124)]
    with torch.device("meta"):  # prompts are encoded already
        elsewhere = scorer.score(**options).scores
    torch.use_deterministic_algorithms(True)
    try:
        deterministic = scorer.score(**options).scores
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(restored[1], expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(torch.stack(doubled), torch.stack(restored), rtol=0, atol=1e-6)
    for found in (elsewhere, deterministic):
        torch.testing.assert_close(found, restored[0], rtol=0, atol=1e-6)


def test_results_are_json(scorer, images):
    score = scorer.score(prompts=["a cat"], images=images[:1]).to_dict()
    assert score["spread"] == [None]
    assert list(score) == ["scores", "spread", "samples", "sigmas"]
    compare = scorer.compare(prompt="a cat", images=images[:2], num_draws=2).to_dict()
    rank = scorer.rank(prompt="a cat", images=images[:2]).to_dict()
    for result in (score, compare, rank):
        assert json.loads(json.dumps(result, allow_nan=False)) == result


@pytest.mark.slow
def test_a_prompt_is_encoded_once(model, pipeline, images):
    counted = []
    hook = pipeline.text_encoder.register_forward_hook(lambda module, inputs, output: counted.append(len(inputs[0])))
    scorer = DinaScorer(model, pipeline, batch_size=2)
    scorer.rank(prompt="a cat", images=images)
    scorer.score(prompts=PROMPTS, images=images)
    assert sum(counted) == len(set(PROMPTS))
    counted.clear()
    prompts = [f"{number} cats" for number in range(100)]
    for _ in range(2):
        scorer.score(prompts=prompts, images=images[:1] * len(prompts))
    assert sum(counted) == len(prompts)
    hook.remove()


def test_the_prompts_that_were_used_last_stay(model, pipeline, images, monkeypatch):
    scorer = DinaScorer(model, pipeline)
    scorer.score(prompts=["a cat"], images=images[:1])
    monkeypatch.setattr(scoring_dina, "PROMPT_CACHE_BYTES", 2 * scorer._encoded_bytes)
    for prompt in ("a dog", "a cat", "the sea"):
        scorer.score(prompts=[prompt], images=images[:1])
    assert list(scorer._encoded) == ["a cat", "the sea"]


def test_a_shared_pipeline_is_left_as_it_was(model, pipeline, images):
    def state():
        modules = {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
        flags = {
            name: [(key, value.requires_grad, value.dtype, value.device) for key, value in part.named_parameters()]
            for name, part in modules.items()
        }
        return dict(pipeline.components), flags, dict(pipeline.config), [part.training for part in modules.values()]

    before = state()
    weights = {key: value.clone() for key, value in pipeline.vae.state_dict().items()}
    DinaScorer(model, pipeline).score(prompts=PROMPTS, images=images)
    assert state() == before
    assert all(torch.equal(value, weights[key]) for key, value in pipeline.vae.state_dict().items())


def test_without_t5_and_transformer(folder, images):
    """A model that was trained without T5."""
    model = DinaRewardModel.from_pretrained(folder)
    del model.config.conditioning["text_encoders"]["text_encoder_3"]
    pipe = StableDiffusion3Pipeline.from_pretrained(folder, transformer=None, text_encoder_3=None, tokenizer_3=None)
    whole = StableDiffusion3Pipeline.from_pretrained(folder, text_encoder_3=None, tokenizer_3=None)
    scores, expected = (DinaScorer(model, each).score(prompts=PROMPTS, images=images).scores for each in (pipe, whole))
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-6)
    assert pipe.transformer is None


def test_sizes(scorer):
    seen = []
    hook = scorer.pipeline.vae.encoder.register_forward_hook(
        lambda module, inputs, output: seen.append(inputs[0].shape)
    )
    for size in ((64, 64), (70, 58), (640, 640), (1, 5000), (33, 31)):
        scorer.score(prompts=["a cat"], images=[Image.new("RGB", size)])
    hook.remove()
    # height x width: multiples of 16 (factor 8, patch 2) within 64 x 64 pixels and 192 on a side
    assert [tuple(shape[2:]) for shape in seen] == [(64, 64), (64, 64), (64, 64), (192, 16), (32, 32)]


def test_dtype(folder, images):
    scorer = DinaScorer.from_pretrained(folder, dtype=torch.bfloat16)
    assert scorer.pipeline.vae.dtype == scorer.pipeline.text_encoder_3.dtype == scorer.model.dtype == torch.bfloat16
    result = scorer.score(prompts=PROMPTS, images=images)
    assert result.scores.dtype == torch.float32
    assert result.scores.isfinite().all()


IMAGE = Image.new("RGB", (64, 64))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": "a cat", "images": [IMAGE]}, "prompts: expected a list, got str"),
        ({"prompts": ["a cat"], "images": IMAGE}, "images: expected a list, got Image"),
        ({"prompts": ["a cat"], "images": "cat.png"}, "images: expected a list, got str"),
        ({"prompts": ["a", " "], "images": [IMAGE] * 2}, r"prompts\[1\]: expected a text, got ' ', which is empty"),
        ({"prompts": [None], "images": [IMAGE]}, r"prompts\[0\]: expected a text, got NoneType"),
        ({"prompts": ["\ud800"], "images": [IMAGE]}, r"prompts\[0\]: expected Unicode text"),
        ({"prompts": ["a", "b"], "images": [IMAGE]}, "prompts, images: expected one prompt for each, got 2 and 1"),
        ({"prompts": [], "images": []}, "images: expected at least one, got 0"),
        ({"prompts": [], "latents": torch.zeros(0, 4, 8, 8)}, "latents: expected at least one, got 0"),
        ({"prompts": ["a"], "images": [IMAGE], "seed": 0.5}, "seed: expected a whole number"),
        ({"prompts": ["a"], "images": [IMAGE], "sigmas": ["low"]}, "sigmas: expected a list of noise levels"),
        ({"prompts": ["a"]}, "images, latents: expected one of them, got none"),
        ({"prompts": ["a"], "images": [IMAGE], "latents": torch.zeros(1, 4, 8, 8)}, "got both"),
        ({"prompts": ["a"], "images": ["none.png"]}, r"images\[0\]: expected an image file, got none.png"),
        ({"prompts": ["a"], "images": [torch.zeros(3, 64, 64)]}, r"images\[0\]: expected a path or a PIL image"),
        (
            {"prompts": ["a"], "latents": torch.zeros(1, 3, 8, 8)},
            r"latents: expected \[B, 4, H, W\], got \[1, 3, 8, 8\]",
        ),
        (
            {"prompts": ["a"] * 4, "latents": torch.zeros(4, 8, 8)},
            r"latents: expected \[B, 4, H, W\], got \[4, 8, 8\]",
        ),
        (
            {"prompts": ["a"], "latents": torch.full((1, 4, 8, 8), torch.nan)},
            "latents: expected finite numbers, got 256",
        ),
        ({"prompts": ["a"], "latents": [0.0]}, r"latents: expected a tensor \[B, C, H, W\], got list"),
        (
            {"prompts": ["a"], "images": [IMAGE], "sigmas": [0.5, 1.5]},
            r"sigmas: expected noise levels in \[0, 1\], got",
        ),
        (
            {"prompts": ["a"], "images": [IMAGE], "num_draws": 0},
            "num_draws: expected a whole number of at least 1, got 0",
        ),
        ({"prompts": ["a"], "images": [IMAGE], "mode": "median"}, "mode: expected one of"),
    ],
)
def test_bad_input(scorer, arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        scorer.score(**arguments)


@pytest.mark.parametrize(
    ("max_pixels", "expected"), [(64**2, 32), (512**2, 32), (1024**2, 8), (1536**2, 3), (4096**2, 1)]
)
def test_batch_size_by_default_has_eight_megapixels(model, pipeline, max_pixels, expected):
    assert DinaScorer(model, pipeline, max_pixels=max_pixels).batch_size == expected


def test_bad_pairs_and_scorers(scorer, model, pipeline, folder):
    with pytest.raises(ValueError, match="images: expected two images to compare, got 3"):
        scorer.compare(prompt="a cat", images=[IMAGE] * 3)
    with pytest.raises(ValueError, match="prompt: expected a text, got ''"):
        scorer.rank(prompt="", images=[IMAGE])
    with pytest.raises(ValueError, match="batch_size: expected at least 1, got 0"):
        DinaScorer(model, pipeline, batch_size=0)
    with pytest.raises(ValueError, match="max_pixels: expected at least 256"):
        DinaScorer(model, pipeline, max_pixels=100)
    with pytest.raises(ValueError, match="evaluation mode"):
        DinaScorer(DinaRewardModel.from_pretrained(folder).train(), pipeline).score(prompts=["a"], images=[IMAGE])


def test_scorer_of_a_model(model, scorer, images):
    scores, expected = (each.score(prompts=PROMPTS, images=images).scores for each in (model.scorer(), scorer))
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-6)


def test_a_folder_without_its_pipeline(model, tmp_path):
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"conditioning_source": "."}))
    with pytest.raises(
        ValueError, match=r"conditioning_source: expected a diffusers pipeline, got .* without model_index"
    ):
        DinaScorer.from_pretrained(tmp_path)


def test_scorer_from_the_folder_alone(folder, images, files, tmp_path, scorer):
    """A process that cannot import the package scores the same, through the code beside the weights."""
    code = f"""
import sys
sys.modules["modeling_dina"] = None
from transformers import AutoModel
model = AutoModel.from_pretrained({str(folder)!r}, trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules")
scorer = model.scorer()
print(scorer.compare(prompt="a cat", images={[str(path) for path in files[:2]]!r}).scores.tolist())
again = type(scorer).from_pretrained({str(folder)!r})
print(again.compare(prompt="a cat", images={[str(path) for path in files[:2]]!r}).scores.tolist())
"""
    printed = run_code(code, folder=tmp_path)
    expected = scorer.compare(prompt="a cat", images=images[:2]).scores.tolist()
    assert [json.loads(line) for line in printed[-2:]] == [pytest.approx(expected, abs=1e-6)] * 2
