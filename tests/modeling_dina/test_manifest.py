"""Manifests of which a row, every row or the model fails, and runs that must not be mixed with others."""

import csv
import shutil
from contextlib import contextmanager
from functools import partial

import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from modeling_dina import DinaRewardModel
from modeling_dina.dataset.manifests import Manifest
from modeling_dina.hub.push import push_folder
from modeling_dina.identity import scoring_settings
from modeling_dina.manifest import rank_manifest
from modeling_dina.scoring_dina import DinaScorer

PROMPTS = ["a cat", "a dog", "a cat", "the sea", "two red cubes", "a dog"]


@pytest.fixture
def manifest(tmp_path, files):
    path = tmp_path / "rows.csv"
    pd.DataFrame({"prompt": PROMPTS, "image": [file.name for file in files]}).to_csv(path, index=False)
    return path


@pytest.fixture
def own(folder, tmp_path):
    """A model of which nothing is shared with other tests."""
    return DinaScorer.from_pretrained(shutil.copytree(folder, tmp_path / "model"), batch_size=4)


READERS = {".csv": pd.read_csv, ".parquet": pd.read_parquet, ".jsonl": partial(pd.read_json, lines=True)}


def rank(scorer, manifest, name="out.csv", progress=lambda done, total: None, **options):
    out = manifest.with_name(name)
    rank_manifest(scorer, manifest, out, num_workers=0, shard_size=4, progress=progress, **options)
    copy = out.with_name("copy").with_suffix(out.suffix.lower())  # pandas goes by the suffix in lower case
    return READERS[copy.suffix](shutil.copy(out, copy))


@contextmanager
def fault(scorer, happen):
    """`happen` sees the pixels of every batch before the VAE does, and may raise or change them."""
    hook = scorer.pipeline.vae.encoder.register_forward_pre_hook(lambda _, inputs: happen(*inputs))
    try:
        yield
    finally:
        hook.remove()


def is_black(pixels):
    """Which pictures [B] are all black."""
    return (pixels == -1).flatten(1).all(dim=1)


def spoil_black(pixels):
    pixels[is_black(pixels)] = torch.nan


def no_memory_for_black(pixels):
    if is_black(pixels).any():
        raise torch.OutOfMemoryError("out of memory")


def silent_error_for_black(pixels):
    if is_black(pixels).any():
        raise AssertionError


@pytest.mark.parametrize(
    ("happen", "message"),
    [
        (spoil_black, "latents: expected finite numbers"),
        (no_memory_for_black, "out of memory"),
        (silent_error_for_black, "AssertionError"),
    ],
)
@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_row_that_cannot_be_scored_costs_no_other(scorer, manifest, files, happen, message, batch_size):
    own = DinaScorer(scorer.model, scorer.pipeline, batch_size=batch_size)
    expected = rank(own, manifest, "expected.csv", num_draws=2)
    Image.new("RGB", (64, 64)).save(files[1])
    with fault(own, happen):
        table = rank(own, manifest, num_draws=2)
    assert message in table["error"][1]
    assert table["score"].isna().tolist() == [row == 1 for row in range(6)]
    assert table["error"].notna().tolist() == [row == 1 for row in range(6)]
    others = table.index != 1
    assert table["score"][others].tolist() == pytest.approx(expected["score"][others].tolist(), abs=1e-5)
    assert table["spread"][others].tolist() == pytest.approx(expected["spread"][others].tolist(), abs=1e-5)
    assert not manifest.with_name("out.csv.partial").exists()


def test_a_score_that_is_not_finite(own, manifest, files):
    """The scorer refuses the whole batch for it."""
    Image.new("RGB", (64, 64)).save(files[1])
    black = []

    def spoil(module, inputs, output):
        return output.masked_fill(black[-1], torch.nan)

    hook = own.model.head.register_forward_hook(spoil)
    with fault(own, lambda pixels: black.append(is_black(pixels))):
        table = rank(own, manifest)
    hook.remove()
    assert "scores: expected finite numbers" in table["error"][1]
    assert table["error"].notna().sum() == 1


def test_a_model_that_fails_at_everything_stops_the_run(own, manifest):
    """A million rows of one and the same error help nobody. What was scored before stays."""
    calls = []

    def lose_device(pixels):
        calls.append(len(pixels))
        if len(calls) > 3:  # the first batch has pictures of three sizes
            raise RuntimeError("device lost")

    expected = rank(own, manifest, "expected.csv")
    with fault(own, lose_device), pytest.raises(ValueError, match=r"model: expected .*device lost"):
        rank(own, manifest)
    assert len(pd.read_parquet(manifest.with_name("out.csv.partial") / "data")) == 4
    assert not manifest.with_name("out.csv").exists()
    table = rank(own, manifest)
    assert table["score"].tolist() == pytest.approx(expected["score"].tolist(), abs=1e-5)


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_interruptions_pass_through(own, manifest, interrupt):
    def happen(pixels):
        raise interrupt

    with fault(own, happen), pytest.raises(interrupt):
        rank(own, manifest)
    assert [path.name for path in manifest.with_name("out.csv.partial").iterdir()] == ["settings.json"]


# Runs that go on


class StopError(Exception):
    """What ends a run before its second batch."""


@pytest.fixture
def interrupted(own, manifest):
    """A run of which the first batch is done."""

    def stop(done, total):
        if done:
            raise StopError

    with pytest.raises(StopError):
        rank(own, manifest, progress=stop)
    return manifest


def test_no_other_model_goes_on_with_a_run(own, interrupted):
    weights = load_file(own.model.name_or_path + "/model.safetensors")
    name = next(name for name in weights if name.startswith("head."))
    save_file({**weights, name: weights[name] + 1}, own.model.name_or_path + "/model.safetensors")
    with pytest.raises(ValueError, match=r"revision: expected sha256:.* was begun, got sha256:"):
        rank(DinaScorer.from_pretrained(own.model.name_or_path), interrupted)


def test_no_other_vae_goes_on_with_a_run(own, interrupted):
    path = own.model.name_or_path + "/vae/diffusion_pytorch_model.safetensors"
    save_file({name: weight + 1 for name, weight in load_file(path).items()}, path)
    with pytest.raises(ValueError, match=r"conditioning: expected .* was begun, got"):
        rank(DinaScorer.from_pretrained(own.model.name_or_path), interrupted)


def test_a_model_on_the_hub_is_known_by_its_commit(folder, connected_hub):
    commit = push_folder(folder, "owner/name", private=True).oid
    settings = scoring_settings(DinaScorer.from_pretrained("owner/name"))
    assert (settings["revision"], settings["conditioning"]) == (commit, commit)


def test_an_adapter_is_only_as_known_as_its_base(folder, tmp_path):
    base = shutil.copytree(folder, tmp_path / "base")
    lora = {"rank": 2, "alpha": 2, "targets": ["to_q"]}
    model = DinaRewardModel.from_backbone(
        base, num_layers=3, visual_layers=[3], text_layers=[2], num_queries=2, num_attention_heads=4, lora=lora
    )
    model.save_pretrained(tmp_path / "adapter", adapter_only=True)
    before = scoring_settings(DinaScorer.from_pretrained(tmp_path / "adapter"))
    path = base / "transformer" / "diffusion_pytorch_model.safetensors"
    save_file({name: weight + 1 for name, weight in load_file(path).items()}, path)
    after = scoring_settings(DinaScorer.from_pretrained(tmp_path / "adapter"))
    assert {name for name in before if before[name] != after[name]} == {"base"}


def test_defaults_that_changed_are_other_settings(own, interrupted):
    """A model's defaults are settings: those in memory here, while its folder is as it was."""
    config = own.model.config
    with pytest.raises(ValueError, match=rf"draws: expected {config.default_num_draws}, with .* was begun, got 9"):
        rank(own, interrupted, num_draws=9)
    with pytest.raises(ValueError, match=r"max_pixels: expected .* was begun, got 1024"):
        rank(DinaScorer(own.model, own.pipeline, max_pixels=1024), interrupted)
    options = {"sigmas": config.default_sigmas, "num_draws": config.default_num_draws, "mode": config.ensemble_mode}
    other_batches = DinaScorer(own.model, own.pipeline, batch_size=5)
    assert rank(other_batches, interrupted, **options)["error"].isna().all()  # the same, spelled out


def test_the_same_manifest_in_another_folder_is_another(own, interrupted, tmp_path):
    (tmp_path / "other").mkdir()
    copy = shutil.copy(interrupted, tmp_path / "other" / "rows.csv")
    with pytest.raises(ValueError, match="folder: expected"):
        rank_manifest(own, copy, interrupted.with_name("out.csv"), num_workers=0, progress=lambda *_: None)


# What a manifest may be


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_endings_in_capitals(scorer, manifest, files, suffix):
    """A table is of the format that its ending says, however that is written."""
    table = rank(scorer, manifest, f"table{suffix.upper()}")
    expected = scorer.score(prompts=PROMPTS, images=files)
    assert table["score"].tolist() == pytest.approx(expected.scores.tolist(), abs=1e-5)
    again = Manifest(manifest.with_name(f"table{suffix.upper()}"))
    assert [row.prompt for row in again] == PROMPTS


def test_a_long_field(tmp_path):
    before = csv.field_size_limit()
    prompt = "a cat and " * 20_000
    path = tmp_path / "rows.csv"
    pd.DataFrame({"prompt": [prompt, "a dog"], "image": ["0.png", "1.png"]}).to_csv(path, index=False)
    assert [row.prompt for row in Manifest(path)] == [prompt, "a dog"]
    assert csv.field_size_limit() == before


@pytest.mark.parametrize("name", ["header.csv", "empty.csv", "empty.jsonl", "header.parquet"])
def test_no_rows(tmp_path, name):
    path = tmp_path / name
    path.touch()
    if name == "header.csv":
        path.write_text("prompt,image\n")
    elif name == "header.parquet":
        pd.DataFrame({"prompt": [], "image": []}).to_parquet(path)
    with pytest.raises(ValueError, match=r"manifest: expected rows .*, got no rows in"):
        Manifest(path)
