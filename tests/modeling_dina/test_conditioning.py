"""Where a model's text encoders and VAE are found, that they are those it was trained with, and how they are used."""

import json
import logging
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from transformers import AutoModel
from typer.testing import CliRunner

from modeling_dina import DinaRewardModel, DinaScorer, scoring_dina
from modeling_dina.cli.app import app
from modeling_dina.conditioning_dina import (
    describe_conditioning,
    encode_prompts,
    read_conditioning,
    warn_of_local_sources,
)
from tests.processes import run_code

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def model(folder):
    return DinaRewardModel.from_pretrained(folder)


@pytest.fixture
def pipeline(folder):
    return StableDiffusion3Pipeline.from_pretrained(folder, transformer=None)


@pytest.fixture
def latents():
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def cached_repository(folder, cache, subfolder=""):
    """`folder` as the repository someone/reward in a cache of downloads."""
    repository = cache / "models--someone--reward"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    place = repository / "snapshots" / COMMIT / subfolder
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(folder, target_is_directory=True)


# Threads.


@pytest.mark.parametrize(("num_prompts", "cached"), [(3, scoring_dina.PROMPT_CACHE_BYTES), (20, 10_000)])
@pytest.mark.slow
def test_threads_score_as_one_does(folder, latents, num_prompts, cached, monkeypatch):
    monkeypatch.setattr(scoring_dina, "PROMPT_CACHE_BYTES", cached)
    prompts = ["a cat " * (1 + index % 4) + "x" * (index // 4) for index in range(num_prompts)]
    jobs = [[prompts[(start + offset) % num_prompts] for offset in range(2)] for start in range(96)]

    def score(scorer, job):
        return scorer.score(prompts=job, latents=latents.expand(2, -1, -1, -1)).scores

    alone, shared = DinaScorer.from_pretrained(folder), DinaScorer.from_pretrained(folder)
    scores = alone.score(prompts=prompts, latents=latents.expand(num_prompts, -1, -1, -1)).scores
    expected = torch.stack([scores, scores.roll(-1)], dim=1)[torch.arange(len(jobs)) % num_prompts]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda job: score(shared, job), jobs))
    torch.testing.assert_close(torch.stack(found), expected, rtol=0, atol=1e-5)
    # Nothing wrong stays behind for later calls either.
    again = [score(shared, job) for job in jobs[::8]]
    torch.testing.assert_close(torch.stack(again), expected[::8], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_threads_share_a_pipeline(folder, pipeline):
    """Two pipelines with the same tokenizers, as a generator and a scorer beside it have them."""
    other = StableDiffusion3Pipeline(**pipeline.components)
    prompts = ["a cat", "the sea " * 3, "x" * 9, "two red cubes"]
    expected = [encode_prompts(pipeline, [prompt], 24)[0] for prompt in prompts]
    with ThreadPoolExecutor(8) as pool:
        jobs = [((pipeline, other)[index % 2], index % 4) for index in range(160)]
        found = list(pool.map(lambda job: encode_prompts(job[0], [prompts[job[1]]], 24)[0], jobs))
    for (_, which), embeds in zip(jobs, found, strict=True):
        torch.testing.assert_close(embeds, expected[which], rtol=0, atol=1e-5)


# What a model was trained with.


def test_the_config_records_what_a_model_is_trained_with(folder, model, pipeline):
    record = {
        "text_encoders": {"text_encoder": 8, "text_encoder_2": 8, "text_encoder_3": 24},
        "vae": {"latent_channels": 4, "scaling_factor": 1.5, "shift_factor": 0.1},
    }
    assert json.loads((folder / "config.json").read_text())["conditioning"] == record
    assert model.config.conditioning == describe_conditioning(pipeline) == read_conditioning(str(folder)) == record


def test_a_transformer_alone_records_nothing(folder, tmp_path):
    for name in ("transformer", "scheduler"):
        (tmp_path / name).symlink_to(folder / name, target_is_directory=True)
    model = DinaRewardModel.from_backbone(tmp_path, num_layers=1, visual_layers=[1], text_layers=[1])
    assert model.config.conditioning is None


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda pipeline: setattr(pipeline, "text_encoder_3", None), "text_encoder_3=24.*text_encoder_3=None"),
        (lambda pipeline: pipeline.vae.register_to_config(shift_factor=0.2), "shift_factor=0.1.*shift_factor=0.2"),
        (
            lambda pipeline: pipeline.vae.register_to_config(scaling_factor=1.0),
            "scaling_factor=1.5.*scaling_factor=1.0",
        ),
    ],
)
def test_other_conditioning_is_refused_by_name(model, pipeline, latents, change, named):
    scorer = DinaScorer(model, pipeline)
    scorer.score(prompts=["a cat"], latents=latents)
    change(pipeline)
    with pytest.raises(ValueError, match=f"pipeline: expected.*{named}"):
        DinaScorer(model, pipeline)
    model.config.conditioning = None  # an older model, which does not say
    DinaScorer(model, pipeline).score(prompts=["a cat"], latents=latents)


def test_a_text_encoder_taken_away_later_is_refused(model, pipeline, latents):
    scorer = DinaScorer(model, pipeline)
    scorer.score(prompts=["a cat"], latents=latents)
    pipeline.text_encoder_3 = None
    with pytest.raises(ValueError, match="text_encoder_3=24"):
        scorer.score(prompts=["a cat"], latents=latents)


@pytest.mark.parametrize("replaced", [False, True])
def test_a_changed_text_encoder_is_read_again(folder, model, pipeline, latents, replaced):
    scorer = DinaScorer(model, pipeline)
    before = scorer.score(prompts=["a cat"], latents=latents).scores
    if replaced:
        pipeline.text_encoder_3 = type(pipeline.text_encoder_3)(pipeline.text_encoder_3.config).eval()
    else:
        with torch.no_grad():
            pipeline.text_encoder_3.shared.weight.mul_(-1)
    after = scorer.score(prompts=["a cat"], latents=latents).scores
    torch.testing.assert_close(after, DinaScorer(model, pipeline).score(prompts=["a cat"], latents=latents).scores)
    assert (after - before).abs() > 1e-4


# Where it is found.


def score_of(folder, latents, **options):
    return DinaScorer.from_pretrained(folder, **options).score(prompts=["a cat"], latents=latents).scores


def test_a_saved_copy_scores_by_itself(folder, model, latents, tmp_path):
    """Without the VAE and text encoders, which stay where they were."""
    model.save_pretrained(tmp_path / "copy")
    assert model.config.conditioning_source == "."
    assert json.loads((tmp_path / "copy" / "config.json").read_text())["conditioning_source"] == str(folder)
    expected = score_of(folder, latents)
    assert torch.equal(score_of(tmp_path / "copy", latents), expected)
    # A copy of the copy, and the folder itself saved over.
    DinaRewardModel.from_pretrained(tmp_path / "copy").save_pretrained(tmp_path / "again")
    assert torch.equal(score_of(tmp_path / "again", latents), expected)


def test_a_folder_with_its_pipeline_stays_in_one_piece(folder, latents, tmp_path):
    StableDiffusion3Pipeline.from_pretrained(folder).save_pretrained(tmp_path)
    DinaRewardModel.from_pretrained(folder).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["conditioning_source"] == "."


def test_a_source_without_a_pipeline_is_saved_as_it_is(folder, tmp_path):
    """A checkpoint of training lies apart from the pipeline that is put beside the finished model."""
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "checkpoint").mkdir(exist_ok=True)
        (tmp_path / "checkpoint" / name).symlink_to(folder / name)
    model = DinaRewardModel.from_pretrained(tmp_path / "checkpoint")
    model.save_pretrained(tmp_path / "finished")
    assert json.loads((tmp_path / "finished" / "config.json").read_text())["conditioning_source"] == "."
    model.config.conditioning_source = "./gone"
    model.save_pretrained(tmp_path / "finished")
    assert json.loads((tmp_path / "finished" / "config.json").read_text())["conditioning_source"] == "./gone"


@pytest.mark.parametrize("subfolder", ["", "reward"])
def test_a_copy_from_the_hub(folder, latents, tmp_path, subfolder):
    cached_repository(folder, tmp_path / "cache", subfolder)
    options = {"cache_dir": str(tmp_path / "cache"), "local_files_only": True}
    expected = score_of(folder, latents)
    assert torch.equal(score_of("someone/reward", latents, subfolder=subfolder, **options), expected)

    model = DinaRewardModel.from_pretrained("someone/reward", subfolder=subfolder, **options)
    assert model.conditioning_location() == ("someone/reward", COMMIT, subfolder)
    model.save_pretrained(tmp_path / "copy")
    copy = DinaRewardModel.from_pretrained(tmp_path / "copy", **options)
    assert copy.conditioning_location() == ("someone/reward", COMMIT, subfolder)
    assert torch.equal(copy.scorer().score(prompts=["a cat"], latents=latents).scores, expected)


def test_options_reach_the_pipeline(folder, tmp_path):
    """`model.scorer()` finds text encoders in the cache that the weights came from, offline."""
    cached_repository(folder, tmp_path / "cache")
    options = {"cache_dir": str(tmp_path / "cache"), "token": "hf_secret", "local_files_only": True}
    model = DinaRewardModel.from_pretrained("someone/reward", revision="main", dtype=torch.bfloat16, **options)
    assert model.hub_options == options
    assert model.scorer().pipeline.vae.dtype == torch.bfloat16
    auto = AutoModel.from_pretrained("someone/reward", trust_remote_code=True, **options)
    assert auto.scorer().pipeline.vae.config.latent_channels == 4
    model.save_pretrained(tmp_path / "copy")
    assert "hf_secret" not in (tmp_path / "copy" / "config.json").read_text()


@pytest.mark.parametrize("command", ["info", "score"])
def test_commands_take_the_options_of_the_hub(folder, files, tmp_path, command):
    cached_repository(folder, tmp_path / "cache", "")
    where = ["--cache-dir", tmp_path / "cache", "--token", "hf_secret", "--local-files-only", "--revision", "main"]
    arguments = [command, "--model", "someone/reward", *where, "--json"]
    if command == "score":
        arguments += [files[0], "--prompt", "a cat"]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout.splitlines()[-1])
    if command == "info":
        assert answer["conditioning"] == ["someone/reward", COMMIT]
    else:
        expected = DinaScorer.from_pretrained(folder).score(prompts=["a cat"], images=[files[0]]).scores
        assert answer["scores"] == pytest.approx(expected.tolist(), abs=1e-6)
    elsewhere = [tmp_path / "none" if part == tmp_path / "cache" else part for part in arguments]
    assert CliRunner().invoke(app, [str(argument) for argument in elsewhere]).exit_code == 2


def test_from_backbone_takes_the_hub_options(folder, tmp_path):
    cached_repository(folder, tmp_path / "cache")
    options = {"cache_dir": str(tmp_path / "cache"), "local_files_only": True}
    fields = {"num_layers": 1, "visual_layers": [1], "text_layers": [1], "max_sequence_length": 24}
    model = DinaRewardModel.from_backbone("someone/reward", **fields, **options).eval()
    assert model.config.base_revision == COMMIT
    assert model.config.conditioning["text_encoders"]["text_encoder_3"] == 24
    assert model.scorer().pipeline.vae.config.latent_channels == 4


@pytest.mark.slow
def test_a_local_path_never_becomes_a_hub_id(folder, latents, tmp_path):
    """A model that was made and loaded by relative paths works from every directory."""
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "base").symlink_to(folder, target_is_directory=True)
    (tmp_path / "elsewhere").mkdir()
    code = """
import os, torch
from modeling_dina import DinaRewardModel
fields = dict(num_layers=1, visual_layers=[1], text_layers=[1], max_sequence_length=24)
lora = dict(rank=1, alpha=1, targets=["attn.to_q"])
model = DinaRewardModel.from_backbone("owner/base", **fields, lora=lora)
model.save_pretrained("owner/whole")
model.save_pretrained("owner/adapter", adapter_only=True)
loaded = [DinaRewardModel.from_pretrained(name) for name in ("owner/base", "owner/whole", "owner/adapter")]
os.chdir("elsewhere")
loaded += [DinaRewardModel.from_pretrained(name) for name in ("../owner/whole", "../owner/adapter")]
for model in loaded:
    print(model.conditioning_location().source, model.scorer().pipeline.vae.config.latent_channels)
"""
    printed = run_code(code, folder=tmp_path)
    place = tmp_path / "owner" / "base"
    assert printed[-5:] == [f"{place} 4"] * 5


def test_a_subfolder_has_its_pipeline_beside_it(folder, latents, tmp_path):
    (tmp_path / "reward").symlink_to(folder, target_is_directory=True)
    model = DinaRewardModel.from_pretrained(tmp_path, subfolder="reward")
    assert model.conditioning_location().source == str(tmp_path / "reward")
    found = model.scorer().score(prompts=["a cat"], latents=latents).scores
    assert torch.equal(found, score_of(folder, latents))


def test_a_missing_folder_is_not_looked_for_on_the_hub(model, tmp_path):
    for source in (str(tmp_path / "gone"), "./gone"):
        model.config.conditioning_source = source
        with pytest.raises(ValueError, match=r"conditioning_source: expected a folder that exists, got.*gone"):
            model.scorer()


@pytest.mark.parametrize(("source", "is_local"), [(None, True), ("someone/pipeline", False), (".", False)])
def test_publishing_warns_of_a_folder_that_nobody_else_has(folder, tmp_path, caplog, source, is_local):
    config = json.loads((folder / "config.json").read_text())
    config["conditioning_source"] = source or str(folder)
    (tmp_path / "config.json").write_text(json.dumps(config))
    warn_of_local_sources(tmp_path)
    assert ("conditioning_source: expected a Hub id" in caplog.text) is is_local


# Long prompts.


def test_a_prompt_that_is_cut_is_warned_of_once_and_briefly(pipeline, caplog):
    with caplog.at_level(logging.WARNING):
        logging.getLogger("diffusers").addHandler(caplog.handler)
        encode_prompts(pipeline, ["a cat", "cat " * 500, "a cat"], 24)
        logging.getLogger("diffusers").removeHandler(caplog.handler)
    messages = [record.getMessage() for record in caplog.records if "cat" in record.getMessage()]
    assert len(messages) == 1
    assert len(messages[0]) < 300
    for part in ("16 of 1502 tokens of tokenizer,", "24 of 2001 tokens of tokenizer_3"):
        assert part in messages[0]
