"""Labels by a scorer of pixels: targets by the stated law, resumed runs, errors of single images, and a training run
on the result."""

import json
import math

import datasets
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from modeling_dina import DinaRewardModel
from modeling_dina.options import EMBEDDED_MODEL
from tests.modeling_dina.evaluation import scorers
from training import encode_latents, label_pairs, train_reward
from training.preference_data.schema import PAIR_FEATURES
from training.preference_data.sources import load_pairs

BRIGHTNESS = "tests.modeling_dina.evaluation.scorers:brightness"
SMALL = {"height": 64, "width": 64, "num_inference_steps": 2, "max_sequence_length": 14}
# Grey values by prompt; the scores of `brightness` are a hundredth of them.
GREYS = {"a stone": [50, 150, 200], "a cloud": [0, 250]}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))


@pytest.fixture
def images(tmp_path):
    """Prompt and file of grey images in a folder."""
    rows = [(prompt, f"{grey}.png", grey) for prompt, greys in GREYS.items() for grey in greys]
    (tmp_path / "images").mkdir()
    for _, name, grey in rows:
        Image.new("RGB", (64, 64), (grey,) * 3).save(tmp_path / "images" / name)
    return [(prompt, name) for prompt, name, _ in rows]


@pytest.fixture
def manifest(images, tmp_path):
    path = tmp_path / "images" / "manifest.csv"
    path.write_text("".join(f"{prompt},{name}\n" for prompt, name in [("prompt", "image"), *images]))
    return path


def label(*arguments, scorer=BRIGHTNESS):
    """Runs the command in this process."""
    words = [str(argument) for argument in (*arguments, "--scorer", scorer)]
    return CliRunner().invoke(label_pairs.app, words, catch_exceptions=False)


def rows_of(out):
    """Grey values of both images, and the target, of every pair."""
    return [
        (*(int(Image.open(row[side]["path"]).getpixel((0, 0))[0]) for side in ("image_a", "image_b")), row["target"])
        for row in load_pairs(str(out))
    ]


def test_targets_follow_bradley_terry(manifest, tmp_path):
    out = tmp_path / "out"
    ran = label(manifest, "--out", out, "--temperature", 0.5, "--batch-size", 2)
    assert ran.exit_code == 0, ran.output
    pairs = load_pairs(str(out))
    assert pairs.features == PAIR_FEATURES
    assert pairs["prompt"][:] == ["a stone"] * 3 + ["a cloud"]
    assert set(pairs["source"]) == {BRIGHTNESS}
    assert set(pairs["weight"]) == {1.0}
    expected = [(50, 150, -1.0), (50, 200, -1.5), (150, 200, -0.5), (0, 250, -2.5)]
    assert rows_of(out) == [(a, b, pytest.approx(1 / (1 + math.exp(-d / 0.5)))) for a, b, d in expected]
    assert "4 pairs, 0 without a label" in ran.stderr


def test_another_law_needs_no_further_scoring(manifest, tmp_path):
    out = tmp_path / "out"
    label(manifest, "--out", out)
    scorers.CALLS.clear()
    assert label(manifest, "--out", out, "--law", "thurstone", "--temperature", 2).exit_code == 0
    assert scorers.CALLS == []
    # Each score has a normal error whose standard deviation is the temperature.
    expected = [0.5 * math.erfc(-d / (2 * 2)) for d in (-1.0, -1.5, -0.5, -2.5)]
    assert [target for *_, target in rows_of(out)] == pytest.approx(expected)


def test_pairs_per_prompt_are_limited(manifest, tmp_path):
    out = tmp_path / "out"
    assert label(manifest, "--out", out, "--max-pairs", 2).exit_code == 0
    assert load_pairs(str(out))["prompt"][:] == ["a stone"] * 2 + ["a cloud"]


def test_a_folder_of_images_with_metadata(images, tmp_path):
    lines = [("file_name", "prompt"), *((name, prompt) for prompt, name in images)]
    (tmp_path / "images" / "metadata.csv").write_text("".join(f"{name},{prompt}\n" for name, prompt in lines))
    assert label(tmp_path / "images", "--out", tmp_path / "out").exit_code == 0
    assert [row[:2] for row in rows_of(tmp_path / "out")] == [(50, 150), (50, 200), (150, 200), (0, 250)]


PAIRS = [("50.png", "150.png"), ("200.png", "150.png"), ("250.png", "50.png")]
RELABELLED = [1 / (1 + math.exp(-difference)) for difference in (-1.0, 0.5, 2.0)]


def test_votes_on_files_are_relabelled(images, tmp_path):
    """Each of four files is scored once."""
    annotations = tmp_path / "images" / "all.json"
    annotations.write_text(json.dumps([{"prompt": "a stone", "path1": a, "path2": b} for a, b in PAIRS]))
    scorers.CALLS.clear()
    assert label(annotations, "--format", "hpdv3", "--out", tmp_path / "out").exit_code == 0
    assert sum(scorers.CALLS) == 4
    expected = [(int(a[:-4]), int(b[:-4])) for a, b in PAIRS]
    assert [row[:2] for row in rows_of(tmp_path / "out")] == expected
    assert load_pairs(str(tmp_path / "out"))["target"][:] == pytest.approx(RELABELLED)


def test_votes_on_embedded_images_are_relabelled(images, tmp_path):
    """The images are told apart by their rows, because their paths mean nothing."""
    sides = [
        [{"bytes": (tmp_path / "images" / file).read_bytes(), "path": "image.png"} for file in files]
        for files in zip(*PAIRS, strict=True)
    ]
    columns = {"prompt": ["a stone"] * 3, "image_a": sides[0], "image_b": sides[1]}
    columns |= {"target": [1.0, 0.0, 0.5], "weight": [1.0] * 3, "source": ["people"] * 3}
    datasets.Dataset.from_dict(columns, features=PAIR_FEATURES).save_to_disk(tmp_path / "pairs")
    assert label(tmp_path / "pairs", "--format", "pairs", "--out", tmp_path / "out").exit_code == 0
    labelled = load_pairs(str(tmp_path / "out"))
    assert labelled["target"][:] == pytest.approx(RELABELLED)
    assert [cell["bytes"] for cell in labelled["image_b"]] == [cell["bytes"] for cell in sides[1]]
    assert set(labelled["source"]) == {BRIGHTNESS}


def test_images_that_fail_cost_no_others(manifest, tmp_path):
    (tmp_path / "images" / "150.png").write_bytes(b"no picture")
    with manifest.open("a") as file:
        file.write("a cloud,100.png\na cloud,250.png\na cloud,\n")
    out = tmp_path / "out"
    ran = label(manifest, "--out", out, scorer="tests.modeling_dina.evaluation.scorers:out_of_memory_for_black")
    assert ran.exit_code == 0, ran.output
    assert [row[:2] for row in rows_of(out)] == [(50, 200), (250, 250)]
    errors = [json.loads(line) for line in (out / "errors.jsonl").read_text().splitlines()]
    assert [error["name"].rpartition("/")[2] for error in errors] == [
        "manifest.csv, row 7",
        "150.png",
        "0.png",
        "100.png",
    ]
    assert errors[0]["error"] == "image: expected a text, got ''"
    assert errors[2]["error"] == "MemoryError"
    assert "2 pairs, 7 without a label" in ran.stderr


def test_an_interrupted_run_goes_on(manifest, tmp_path):
    out = tmp_path / "out"
    label(manifest, "--out", out, "--batch-size", 2)
    whole = rows_of(out)
    # As if it had been killed while it wrote the second batch.
    scores = out / "scores.jsonl"
    scores.write_bytes(b"".join(scores.read_bytes().splitlines(keepends=True)[:2]) + b'{"items": [2')
    (out / "data" / "train-00000-of-00001.parquet").unlink()
    scorers.CALLS.clear()
    assert label(manifest, "--out", out, "--batch-size", 2).exit_code == 0
    assert scorers.CALLS == [2, 1]
    assert rows_of(out) == whole


def test_scores_of_other_images_do_not_mix_into_a_folder(manifest, tmp_path):
    label(manifest, "--out", tmp_path / "out")
    lines = manifest.read_text().splitlines()
    for other in (lines[:-1], [*lines[:-1], "a sun,250.png"], [*lines[:-1], "a cloud,50.png"]):
        manifest.write_text("\n".join(other))
        ran = label(manifest, "--out", tmp_path / "out")
        assert ran.exit_code == 2
        assert "other settings" in " ".join(ran.stderr.split())


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "source, generator"),
        (["x.csv", "--generator", "y"], "source, generator"),
        (["--generator", "y"], "generator, prompts"),
        (["--generator", EMBEDDED_MODEL, "--prompts", "world"], "num_prompts"),
        (["--generator", "/nowhere", "--prompts", "world", "--num-prompts", "1"], "generator"),
        (["--generator", "y", "--format", "hpdv3"], "format"),
        (["x.csv"], "source"),
        (["x", "--format", "reference_cache"], "format"),
        (["x", "--format", "pairs", "--max-pairs", "1"], "max_pairs"),
        (["x.csv", "--temperature", "0"], "temperature"),
        (["x.csv", "--temperature", "nan"], "temperature"),
    ],
)
def test_bad_arguments(arguments, named, tmp_path):
    ran = label(*arguments, "--out", tmp_path / "out")
    assert ran.exit_code == 2
    assert f"Error: {named}: " in ran.stderr
    assert not (tmp_path / "out").exists()


def test_a_bad_scorer(manifest, tmp_path):
    for scorer, message in (
        ("nowhere:f", "scorer: expected module:function"),
        (f"{BRIGHTNESS[:-10]}too_few", "scorer: "),
    ):
        ran = label(manifest, "--out", tmp_path / "out", scorer=scorer)
        assert ran.exit_code == 2
        assert message in " ".join(ran.stderr.split())


@pytest.fixture
def sampled(tmp_path):
    """Runs the command on two prompts with two samples each, of the embedded generator."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("two red circles\na blue square\n")
    out = tmp_path / "sampled"
    options = ["--generator", EMBEDDED_MODEL, "--prompts", prompts, "--samples", 2, "--temperature", 0.05]
    return out, lambda *more: label(*options, "--sampling", json.dumps(SMALL), "--out", out, *more)


@pytest.mark.slow
def test_from_samples_of_a_generator_to_a_trained_reward(sampled, tmp_path):
    out, run = sampled
    ran = run()
    assert ran.exit_code == 0, ran.output
    assert sorted(load_pairs(str(out))["prompt"]) == ["a blue square", "two red circles"]
    files = sorted((out / "images").iterdir())
    assert [file.name for file in files] == ["000000-00.png", "000000-01.png", "000001-00.png", "000001-01.png"]
    assert len({file.read_bytes() for file in files}) == 4
    latents = tmp_path / "latents"
    encoded = CliRunner().invoke(
        encode_latents.app, [str(out), "--out", str(latents), "--model", EMBEDDED_MODEL, "--num-workers", "0"]
    )
    assert encoded.exit_code == 0, encoded.output
    flags = {"train_data": latents, "output_dir": tmp_path / "run", "report_to": "none", "use_cpu": True}
    flags |= {"max_steps": 2, "per_device_train_batch_size": 2, "warmup_steps": 1, "eval_strategy": "no"}
    flags |= {"validation_data": latents, "eval_steps": 2, "eval_strategy": "steps"}
    train_reward.main(
        ["--config", "training/configs/small_world.yaml", *(f"--{name}={value}" for name, value in flags.items())]
    )
    model = DinaRewardModel.from_pretrained(tmp_path / "run" / "model")
    assert all(weight.isfinite().all() for weight in model.parameters())


def test_samples_resume_and_depend_only_on_the_seed(sampled):
    out, run = sampled
    run()
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in sorted((out / "images").iterdir())}
    journal = out / "samples.jsonl"
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:2]))
    for file in list(before)[2:]:
        file.unlink()
    assert run().exit_code == 0
    for index, (file, (content, time)) in enumerate(before.items()):
        assert file.read_bytes() == content
        assert (file.stat().st_mtime_ns == time) == (index < 2)
    assert run("--seed", 1).exit_code == 2


def test_a_prompt_without_samples_costs_no_other(tmp_path):
    from training.preference_data.samples import sample_images

    def pipeline(prompt, *, num_images_per_prompt, generator=None):
        if "bad" in prompt:
            raise MemoryError
        grey = generator[0].initial_seed() % 256 if generator else 0
        return type("Output", (), {"images": [Image.new("RGB", (8, 8), (grey,) * 3)] * num_images_per_prompt})

    options = {"count": 2, "seed": 0, "call": {}, "progress": lambda done, total: None}
    rows, failures = sample_images(pipeline, ["good", "bad", "better"], tmp_path, {}, **options)
    assert [prompt for prompt, _ in rows] == ["good"] * 2 + ["better"] * 2
    assert failures == [{"name": "prompt 1: bad", "error": "MemoryError"}]
    assert np.asarray(Image.open(rows[2][1])).shape == (8, 8, 3)
