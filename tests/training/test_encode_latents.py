"""Latents as the scorer makes them, in shards that no interruption spoils; bad images are reported and passed over."""

import io
import json
import os
import re
import signal
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader
from typer.testing import CliRunner

from modeling_dina.data.latents import unpack
from modeling_dina.scoring_dina import DinaScorer
from tests.processes import Worker, two_ranks
from training.encode_latents import app, encode_shards
from training.preference_data.latents import latent_shapes, read_latents
from training.preference_data.sampler import ShapeBatchSampler
from training.preference_data.schema import LATENT_FEATURES, PAIR_FEATURES

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))


@pytest.fixture
def model(tiny_model, tmp_path):
    """Folder with what the encoder needs of a pipeline: latents are 1/8 of the pixels, patches 2 x 2 latents."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=1.5,
        shift_factor=0.1,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    vae.save_pretrained(tmp_path / "model" / "vae")
    SD3Transformer2DModel.from_config(tiny_model.config.transformer_config).save_config(
        tmp_path / "model" / "transformer"
    )
    return tmp_path / "model"


@pytest.fixture
def pairs(tmp_path):
    """Folder of `count` pairs of small images: most square, some wide, one of them broken where asked."""

    def make(count, broken=()):
        rng = np.random.default_rng(0)
        rows = {name: [] for name in PAIR_FEATURES}
        (tmp_path / "images").mkdir()
        for index in range(count):
            size = (128, 64) if index % 3 == 2 else (64, 64)
            for side in "ab":
                path = tmp_path / "images" / f"{index}{side}.png"
                pixels = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
                Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(path)
                rows[f"image_{side}"].append(str(path))
            if index in broken:
                path.write_bytes(b"no picture")
            rows["prompt"].append(f"prompt {index}")
            rows["target"].append(index / count)
            rows["weight"].append(1.0)
            rows["source"].append("test")
        datasets.Dataset.from_dict(rows, features=PAIR_FEATURES).save_to_disk(tmp_path / "pairs")
        return tmp_path / "pairs"

    return make


def encode(*arguments):
    """Run the command in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def contents(out):
    """The rows of all shards, the latents as bytes."""
    return read_latents(out).with_format(None).to_list()


def test_latents_are_those_of_the_scorer(pairs, model, tiny_model, tmp_path):
    source, out = pairs(7), tmp_path / "out"
    result = encode(source, "--out", out, "--model", model, "--shard-size", 3, "--batch-size", 2, "--num-workers", 0)
    assert result.exit_code == 0
    assert [path.name for path in sorted((out / "data").iterdir())] == [
        f"train-{shard:05d}-of-00003.parquet" for shard in range(3)
    ]
    assert not (out / "errors").exists()

    encoded = read_latents(out)
    assert encoded.features == LATENT_FEATURES
    rows = encoded[:]
    assert rows["index"] == list(range(7))
    assert rows["prompt"] == [f"prompt {index}" for index in range(7)]
    assert rows["target"] == [index / 7 for index in range(7)]
    assert latent_shapes(encoded).tolist() == [[8, 16] if index % 3 == 2 else [8, 8] for index in range(7)]

    pipeline = StableDiffusion3Pipeline(
        vae=AutoencoderKL.from_pretrained(model, subfolder="vae"),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        transformer=None,
        **dict.fromkeys(["text_encoder", "text_encoder_2", "text_encoder_3"]),
        **dict.fromkeys(["tokenizer", "tokenizer_2", "tokenizer_3"]),
    )
    scorer = DinaScorer(tiny_model, pipeline)
    for index, (latents_a, latents_b) in enumerate(zip(rows["latents_a"], rows["latents_b"], strict=True)):
        images = [Image.open(tmp_path / "images" / f"{index}{side}.png") for side in "ab"]
        expected = scorer._encode_images(images, images[0].size).detach()
        assert latents_a.dtype == torch.float16
        # Half precision keeps eleven binary digits.
        torch.testing.assert_close(torch.stack([latents_a, latents_b]).float(), expected, rtol=1e-3, atol=1e-4)


def test_pairs_of_different_shapes_share_a_bucket(model, tmp_path):
    sizes = {"a": (128, 128), "b": (256, 64)}  # aspects 1 and 4: in the middle, 2
    rows = {"prompt": ["p"], "target": [1.0], "weight": [1.0], "source": ["test"]}
    for side, size in sizes.items():
        path = tmp_path / f"{side}.png"
        Image.new("RGB", size, "teal").save(path)
        rows[f"image_{side}"] = [str(path)]
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "pairs")
    out = tmp_path / "out"
    encode(tmp_path / "pairs", "--out", out, "--model", model, "--num-workers", 0)
    # 128 x 128 pixels at 2:1 are 181 x 90.5; to multiples of 16 that is 176 x 96, over the limit, and so 160 x 96.
    assert latent_shapes(read_latents(out)).tolist() == [[96 // 8, 160 // 8]]


def test_bad_images_are_reported_and_passed_over(pairs, model, tmp_path):
    source, out = pairs(6, broken={1, 5}), tmp_path / "out"
    assert encode(source, "--out", out, "--model", model, "--shard-size", 2, "--num-workers", 0).exit_code == 0
    assert read_latents(out)["index"][:] == [0, 2, 3, 4]
    assert [path.name for path in sorted((out / "errors").iterdir())] == ["00000.jsonl", "00002.jsonl"]
    report = json.loads((out / "errors" / "00002.jsonl").read_text())
    assert report["index"] == 5
    assert report["error"].startswith("image_b (5b.png): expected a picture")


def test_a_shard_of_bad_images_alone(pairs, model, tmp_path):
    source, out = pairs(4, broken={0, 1}), tmp_path / "out"
    encode(source, "--out", out, "--model", model, "--shard-size", 1, "--num-workers", 0)
    assert read_latents(out)["index"][:] == [2, 3]
    for shard in (2, 3):
        (out / "data" / f"train-{shard:05d}-of-00004.parquet").write_bytes(
            (out / "data" / "train-00000-of-00004.parquet").read_bytes()
        )
    with pytest.raises(ValueError, match=r"folder: expected pairs .* got "):
        read_latents(out)


def test_other_settings_do_not_mix_into_a_folder(pairs, model, tmp_path):
    source, out = pairs(2), tmp_path / "out"
    arguments = source, "--out", out, "--model", model, "--num-workers", 0
    encode(*arguments)
    refused = encode(*arguments, "--shard-size", 1)
    assert refused.exit_code == 2
    assert re.search(r"shard_size: expected 512, with which .* was begun, got 1", refused.stderr)
    shard = next((out / "data").iterdir())
    written = shard.stat().st_mtime_ns
    encode(*arguments)
    assert shard.stat().st_mtime_ns == written


def test_other_images_do_not_mix_into_a_folder(model, tmp_path):
    """The same annotations, over two folders of images."""
    annotations = tmp_path / "all.json"
    annotations.write_text(json.dumps([{"prompt": "p", "path1": "0.png", "path2": "1.png"}]))
    for folder, levels in (("a", (10, 20)), ("b", (30, 40))):
        (tmp_path / folder).mkdir()
        for index, level in enumerate(levels):
            Image.new("RGB", (64, 64), (level,) * 3).save(tmp_path / folder / f"{index}.png")
    arguments = annotations, "--out", tmp_path / "out", "--model", model, "--format", "hpdv3", "--num-workers", 0
    assert encode(*arguments, "--image-root", tmp_path / "a").exit_code == 0
    refused = encode(*arguments, "--image-root", tmp_path / "b")
    assert refused.exit_code == 2
    assert re.search(r"image_root: expected .*/a, with which .* was begun, got .*/b", refused.stderr)
    assert encode(*arguments, "--image-root", tmp_path / "b" / ".." / "a").exit_code == 0


def test_another_vae_does_not_mix_into_a_folder(pairs, model, tmp_path):
    arguments = pairs(2), "--out", tmp_path / "out", "--model", model, "--num-workers", 0
    encode(*arguments)
    path = model / "vae" / "diffusion_pytorch_model.safetensors"
    save_file({name: weight + 1 for name, weight in load_file(path).items()}, path, metadata={"format": "pt"})
    refused = encode(*arguments)
    assert refused.exit_code == 2
    assert re.search(r"vae: expected .*sha256.* was begun, got .*sha256", refused.stderr)


def test_a_pair_that_cannot_be_encoded_costs_no_other(tmp_path):
    pairs = [torch.full((2, 3, 64, 64), float(row)) for row in range(5)]
    labels = datasets.Dataset.from_dict(
        {"prompt": ["p"] * 5, "target": [1.0] * 5, "weight": [1.0] * 5, "source": ["test"] * 5}
    )
    batches = []

    def encode(pixels):
        batches.append(len(pixels) // 2)
        if (pixels == 1).any():
            raise torch.OutOfMemoryError("out of memory")
        return torch.where(pixels == 3, torch.nan, pixels)[:, :, ::8, ::8].half()

    options = {"shard_size": 5, "batch_size": 4, "num_workers": 0}
    encode_shards(pairs, labels, encode, tmp_path, Accelerator(cpu=True), **options)
    encoded = read_latents(tmp_path)[:]
    assert encoded["index"] == [0, 2, 4]
    assert [latents.mean().item() for latents in encoded["latents_a"]] == [0, 2, 4]
    errors = [json.loads(line) for line in (tmp_path / "errors" / "00000.jsonl").read_text().splitlines()]
    assert [error["index"] for error in errors] == [1, 3]
    assert errors[0]["error"] == "out of memory"
    assert "finite" in errors[1]["error"]


class DeadlyPairs:
    """Kills the first process that decodes the last pair."""

    def __init__(self, mark):
        self.mark = mark

    def __getitem__(self, row):
        if row == 4 and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.full((2, 4, 8, 8), float(row))


def test_a_dead_worker_is_replaced(tmp_path):
    columns = {"prompt": ["p"] * 5, "target": [1.0] * 5, "weight": [1.0] * 5, "source": ["test"] * 5}
    labels = datasets.Dataset.from_dict(columns)
    options = {"shard_size": 2, "batch_size": 2, "num_workers": 1}
    pairs = DeadlyPairs(tmp_path / "mark")
    encode_shards(pairs, labels, torch.Tensor.half, tmp_path, Accelerator(cpu=True), **options)
    assert (tmp_path / "mark").exists()
    encoded = read_latents(tmp_path)[:]
    assert encoded["index"] == list(range(5))
    assert [latents.mean().item() for latents in encoded["latents_b"]] == list(range(5))
    assert not (tmp_path / "errors").exists()


def test_a_vae_that_fails_at_everything_stops_the_run(pairs, model, tmp_path):
    source, out = pairs(2), tmp_path / "out"
    path = model / "vae" / "diffusion_pytorch_model.safetensors"
    save_file({name: weight * torch.nan for name, weight in load_file(path).items()}, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"model: expected .* finite"):
        encode(source, "--out", out, "--model", model, "--num-workers", 0)
    assert not list(out.glob("data/*"))


def test_exit_code_when_no_pair_could_be_encoded(pairs, model, tmp_path):
    source, out = pairs(2, broken={0, 1}), tmp_path / "out"
    for _ in range(2):  # the second time, nothing is left to do
        result = encode(source, "--out", out, "--model", model, "--num-workers", 0)
        assert result.exit_code == 1
        assert "2 pairs, 2 of them without latents" in result.stderr


def test_model_is_asked_for_with_images_only(tmp_path):
    assert encode(tmp_path, "--out", tmp_path / "out").exit_code == 2
    assert encode(tmp_path, "--out", tmp_path / "out", "--model", "x", "--format", "reference_cache").exit_code == 2


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_the_reference_cache_becomes_shards(tmp_path):
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((4, 2, 4, 8, 6)).astype(np.float32)
    broken = latents[3].copy()
    broken[0, 0, 0, 0] = 1e9  # infinite in half precision
    rows = {
        "prompt": ["p0", "p1", "p2", "p3", "p4"],
        "latent1": [*map(npy, latents[:3, 0]), npy(broken[0]), npy(latents[3, 0])],
        "latent2": [
            npy(latents[0, 1]),
            npy(np.array([{}])),
            npy(latents[2, 1]),
            npy(broken[1]),
            npy(latents[3, 1, :1]),
        ],
    }
    (tmp_path / "cache").mkdir()
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "cache" / "part-0.parquet")
    out = tmp_path / "out"
    encode(tmp_path / "cache", "--out", out, "--format", "reference_cache", "--num-workers", 0)

    encoded = read_latents(out)[:]
    assert encoded["index"] == [0, 2]
    assert encoded["target"] == [1.0, 1.0]
    assert torch.equal(encoded["latents_a"][1], torch.from_numpy(latents[2, 0]).half())
    assert torch.equal(encoded["latents_b"][1], torch.from_numpy(latents[2, 1]).half())
    errors = [json.loads(line) for line in (out / "errors" / "00000.jsonl").read_text().splitlines()]
    assert [error["index"] for error in errors] == [1, 3, 4]
    assert "allow_pickle=False" in errors[0]["error"]
    assert "finite" in errors[1]["error"]
    assert "one shape" in errors[2]["error"]


def test_a_loader_with_workers_gives_every_pair_once(pairs, model, tmp_path):
    source, out = pairs(11), tmp_path / "out"
    encode(source, "--out", out, "--model", model, "--shard-size", 4, "--num-workers", 0)
    dataset = read_latents(out)
    sampler = ShapeBatchSampler(latent_shapes(dataset), max_area=3 * 64)
    loader = DataLoader(dataset, batch_sampler=sampler, num_workers=1)
    seen = []
    for batch in loader:
        seen += batch["index"].tolist()
        assert batch["latents_a"].shape == batch["latents_b"].shape
        assert batch["latents_a"][0].numel() * len(batch["index"]) <= 3 * 64 * 4
    assert sorted(seen) == list(range(11))


def wait_for(condition, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.slow
def test_killed_and_run_again_loses_and_repeats_nothing(pairs, model, tmp_path):
    source, out, whole = pairs(120, broken={50}), tmp_path / "out", tmp_path / "whole"
    options = "--model", model, "--shard-size", 2, "--num-workers", 0
    command = "training.encode_latents", source, "--out", out, *options
    process = Worker(*command, environment={})
    wait_for(lambda: len(list(out.glob("data/train-*.parquet"))) >= 3, process)
    process.kill()
    process.wait()
    done = {path: path.stat().st_mtime_ns for path in out.glob("data/train-*.parquet")}
    assert 3 <= len(done) < 60

    # As if the machine, too, had stopped in the middle of a shard.
    (out / "data" / ".train-00059-of-00060.partial.parquet").write_bytes(b"PAR1")
    ranks = [Worker(*command, environment=variables) for variables in two_ranks()]
    printed = [rank.communicate(timeout=300)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], printed
    half = 2 * -(-(60 - len(done)) // 2)
    assert f"{half}/{half} [" in printed[0], "the first process does the half of what is left"
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert not list(out.rglob("*.partial*"))
    assert [row["index"] for row in contents(out)] == [index for index in range(120) if index != 50]
    assert json.loads((out / "errors" / "00025.jsonl").read_text())["index"] == 50

    encode(source, "--out", whole, *options)
    for resumed, uninterrupted in zip(contents(out), contents(whole), strict=True):
        latents = [(unpack(row.pop("latents_a")), unpack(row.pop("latents_b"))) for row in (resumed, uninterrupted)]
        assert resumed == uninterrupted
        for first, second in zip(*latents, strict=True):
            assert torch.equal(first, second)
