"""The command line on real files: results, figures, refusals, and manifests that outlive a kill."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModel
from typer.testing import CliRunner

from modeling_dina import DinaScorer
from modeling_dina.cli.app import app
from modeling_dina.dataset.shards import ScoreShards
from modeling_dina.manifest import SHARD_SIZE
from tests.processes import Worker, kill_after

PARITY = Path(__file__).parents[1] / "parity"


@pytest.fixture
def run(folder):
    def run(*arguments, model=folder):
        choice = [] if model is None else ["--model", str(model)]
        return CliRunner().invoke(app, [*map(str, arguments), *choice])

    return run


def refused(result):
    """The one paragraph that bad input ends in."""
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert isinstance(result.exception, SystemExit)
    return " ".join(result.stderr.split())


def result_of(result):
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def assert_same(printed, expected):
    assert list(printed) == list(expected.to_dict())
    for name, value in expected.to_dict().items():
        torch.testing.assert_close(torch.tensor(printed[name]), torch.tensor(value), rtol=0, atol=1e-5)


# Results


def test_score(run, files, scorer):
    expected = scorer.score(prompts=["a cat", "a dog"], images=files[:2], num_draws=2, mode="mean", sigmas=[0.3, 0.6])
    options = ("--draws", 2, "--mode", "mean", "--sigmas", "0.3,0.6")
    prompts = ("--prompt", "a cat", "--prompt", "a dog")
    assert_same(result_of(run("score", *files[:2], *prompts, *options, "--json")), expected)
    text = run("score", *files[:2], "--prompt", "a [red] cat").stdout
    assert "a [red] cat" in text
    assert "unknown (one draw)" in text


def test_compare(run, files, scorer):
    expected = scorer.compare(prompt="a cat", images=files[:2], num_draws=2, seed=5)
    options = ("--prompt", "a cat", "--draws", 2, "--seed", 5)
    assert_same(result_of(run("compare", *files[:2], *options, "--json")), expected)
    text = run("compare", *files[:2], *options).stdout
    assert f"{expected.win_probability:.3f}" in text
    assert f"{expected.entropy:.2f} nats ({expected.disagreement:.3f}" in text


@pytest.mark.parametrize("name", ["figure.png", "figure.pdf", "figure.svg", "figure.JPEG"])
@pytest.mark.slow
def test_compare_plot(run, files, tmp_path, name):
    before = set(tmp_path.iterdir())
    result = run("compare", files[0], files[3], "--prompt", "$5 for a cat_1, " * 30, "--plot", tmp_path / name)
    assert result.exit_code == 0, result.output
    assert set(tmp_path.iterdir()) - before == {tmp_path / name}
    if name.endswith(".png"):
        with Image.open(tmp_path / name) as figure:
            assert figure.size[0] > 1500


def test_rank_images(run, files, scorer):
    expected = scorer.rank(prompt="a cat", images=files)
    assert_same(result_of(run("rank", *files, "--prompt", "a cat", "--json")), expected)
    lines = run("rank", *files, "--prompt", "a cat").stdout.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("│")] == [str(place) for place in range(1, 7)]


def test_info(run, folder):
    facts = result_of(run("info", "--json"))
    weights = load_file(folder / "model.safetensors")
    assert sum(facts["parameters"].values()) <= sum(weight.numel() for weight in weights.values())
    assert facts["conditioning"] == [str(folder), None]
    assert facts["config"]["num_layers"] == 3
    assert "backbone parameters" in run("info").stdout


def test_half_precision(run, files):
    scores = result_of(run("score", files[0], "--prompt", "a cat", "--dtype", "bfloat16", "--device", "cpu", "--json"))
    assert len(scores["scores"]) == 1


@pytest.mark.parametrize("keep_adapter", [False, True])
def test_convert(run, tmp_path, keep_adapter, monkeypatch):
    monkeypatch.chdir(PARITY / "lora_text")  # a relative backbone must be found again from anywhere
    flags = ["--keep-adapter"] if keep_adapter else []
    result = run("convert", "official", tmp_path / "out", "--backbone", "backbone", *flags, model=None)
    assert result.exit_code == 0, result.output
    monkeypatch.chdir(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    saved = load_file(tmp_path / "out" / "model.safetensors")
    assert any("lora" in key for key in saved) == keep_adapter
    assert AutoModel.from_pretrained(tmp_path / "out", trust_remote_code=True).config.num_layers == 3


def test_help_needs_no_torch():
    code = "import sys; from modeling_dina.cli.app import app; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["score", "0.png", "none.png", "--prompt", "a"], "images[1]: expected an image file, got none.png"),
        (["score", "0.png", "--prompt", ""], "prompts[0]: expected a text, got ''"),
        (["score", "0.png", "--prompt", "a", "--prompt", "b"], "prompts, images: expected one prompt for each"),
        (["compare", "0.png", "text.png", "--prompt", "a"], "IMAGE_B (text.png): expected a picture of PNG"),
        (["compare", "cut.png", "0.png", "--prompt", "a"], "IMAGE_A (cut.png): cannot be used"),
        (["compare", "0.png", "1.png", "--prompt", " "], "prompt: expected a text, got ' '"),
        (["compare", "0.png", "1.png", "--prompt", "a", "--sigmas", "0.5,1.5"], "expected noise levels in [0, 1]"),
        (["compare", "0.png", "1.png", "--prompt", "a", "--sigmas", "nan"], "expected noise levels in [0, 1]"),
        (["compare", "0.png", "1.png", "--prompt", "a", "--draws", "0"], "--draws"),
        (["compare", "0.png", "1.png", "--prompt", "a", "--mode", "median"], "--mode"),
        (["compare", "0.png", "1.png", "--prompt", "a", "--device", "gpu"], "device: expected one that torch can use"),
        (["compare", "0.png", "1.png", "--prompt", "a", "--plot", "a.txt"], "plot: expected a file ending in .png"),
        (["compare", "0.png", "1.png", "--prompt", "a", "--plot", "no/a.png"], "plot: expected a file that can be"),
        (["compare", "0.png", "1.png", "--prompt", "a", "--plot", "/proc/a.png"], "plot: expected a file that can be"),
        (["rank", "0.png"], "expected --prompt and image files, or --manifest and --out"),
        (["rank", "--manifest", "a.csv", "--out", "b.txt"], "out: expected a file ending in .csv, .jsonl, .parquet"),
        (["rank", "--manifest", "a.txt", "--out", "b.csv"], "manifest: expected a file ending in .csv, .jsonl"),
        (["rank", "--manifest", "none.csv", "--out", "b.csv"], "manifest: expected a file, got none.csv"),
        (["rank", "--manifest", "columns.csv", "--out", "b.csv"], "with the columns 'prompt' and 'image', got"),
        (
            ["rank", "--manifest", "empty.jsonl", "--out", "b.csv"],
            "with the columns 'prompt' and 'image', got no rows",
        ),
        (["rank", "--manifest", "text.parquet", "--out", "b.csv"], "manifest: cannot read text.parquet"),
        (["rank", "--manifest", "latin.csv", "--out", "b.csv"], "manifest: cannot read latin.csv"),
        (["rank", "--manifest", "rows.csv", "--out", "rows.csv"], "out: expected a new file, got rows.csv"),
    ],
)
def test_refusals(run, files, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    for name in ("text.png", "text.parquet"):
        Path(name).write_text("hello")
    Path("cut.png").write_bytes(files[0].read_bytes()[:200])
    Path("columns.csv").write_text("caption,file\na,0.png\n")
    Path("rows.csv").write_text("prompt,image\na,0.png\n")
    Path("latin.csv").write_bytes("prompt,image\ncafé,0.png\n".encode("latin-1"))
    Path("empty.jsonl").touch()
    before = sorted(tmp_path.iterdir())
    # Boxes are drawn around the messages of the option parser.
    assert message in refused(run(*arguments)).replace("│ ", "").replace(" │", "")
    assert sorted(tmp_path.iterdir()) == before


def test_wrong_folders(run, files, folder, tmp_path):
    pair = ("compare", *files[:2], "--prompt", "a")
    for model in (tmp_path, folder / "vae"):
        assert f"model: cannot load {model}: model_type: expected 'dina'" in refused(run(*pair, model=model))
    for model in (tmp_path / "none", files[0], "./none"):
        assert "model: expected a folder or a Hub id" in refused(run(*pair, model=model))
    start = time.perf_counter()
    assert "model: cannot load some/model: We couldn't connect" in refused(run(*pair, model="some/model"))
    assert time.perf_counter() - start < 5


def spoil(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


NAME = "backbone.context_embedder.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop(NAME), f"missing: {NAME}"),
        (lambda weights: weights.update(stray=torch.zeros(1)), "unexpected: stray"),
        (lambda weights: weights.update({NAME: torch.zeros(2, 2)}), f"wrong shape: {NAME}"),
    ],
)
def test_wrong_weights(run, files, folder, tmp_path, change, message):
    copy = shutil.copytree(folder, tmp_path / "copy")
    spoil(copy, change)
    assert message in refused(run("score", files[0], "--prompt", "a", model=copy))


def test_damaged_weights(run, files, folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    weights = (copy / "model.safetensors").read_bytes()
    for damaged in (weights[:1000], weights[:-1000], b"\0" * 100):
        (copy / "model.safetensors").write_bytes(damaged)
        assert "model: cannot load" in refused(run("score", files[0], "--prompt", "a", model=copy))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "visual_layers": [1, 9]}))
    assert "visual_layers: expected" in refused(run("score", files[0], "--prompt", "a", model=copy))


def test_convert_refusals(run, tmp_path):
    lora = PARITY / "lora_text"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    arguments = ("convert", lora / "official", tmp_path / "full", "--backbone", lora / "backbone")
    assert "OUT_DIR: expected a new or an empty folder" in refused(run(*arguments, model=None))
    broken = shutil.copytree(lora / "official", tmp_path / "broken")
    (broken / "checkpoint" / "rm_head.pt").write_bytes(b"PK not a pickle")
    for official, backbone in (
        (tmp_path, lora / "backbone"),
        (lora / "official", tmp_path),
        (broken, lora / "backbone"),
    ):
        arguments = ("convert", official, tmp_path / "out", "--backbone", backbone)
        assert f"cannot load {official} on {backbone}" in refused(run(*arguments, model=None))
    arguments = ("convert", PARITY / "frozen_projin" / "official", tmp_path / "out")
    backbone = PARITY / "frozen_projin" / "backbone"
    assert "adapter_only" in refused(run(*arguments, "--backbone", backbone, "--keep-adapter", model=None))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "full"]


# Manifests


def write_manifest(path, rows):
    if path.suffix == ".csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pd.DataFrame(rows).to_parquet(path)
    return path


def read_table(path):
    if path.suffix == ".parquet":
        return pd.read_parquet(path)
    return pd.read_csv(path) if path.suffix == ".csv" else pd.read_json(path, lines=True)


PROMPTS = ["a cat", "a dog", "a cat", "the sea", "two red cubes", "a dog"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_manifest(run, files, tmp_path, scorer, suffix):
    rows = [{"prompt": prompt, "image": path.name, "id": 7} for prompt, path in zip(PROMPTS, files, strict=True)]
    manifest, out = write_manifest(tmp_path / f"rows{suffix}", rows), tmp_path / f"out{suffix}"
    summary = result_of(run("rank", "--manifest", manifest, "--out", out, "--draws", 2, "--batch-size", 4, "--json"))
    assert summary == {"rows": 6, "errors": 0, "out": str(out)}
    table = read_table(out)
    expected = scorer.score(prompts=PROMPTS, images=files, num_draws=2)
    assert list(table.columns) == ["row", "prompt", "image", "score", "spread", "rank", "error"]
    assert table["score"].tolist() == pytest.approx(expected.scores.tolist(), abs=1e-5)
    assert table["spread"].tolist() == pytest.approx(expected.spread.tolist(), abs=1e-5)
    cats = table[table["prompt"] == "a cat"].sort_values("rank")
    assert cats["rank"].tolist() == [1, 2]
    assert cats["score"].is_monotonic_decreasing
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".png") == [
        f"out{suffix}",
        f"rows{suffix}",
    ]


@pytest.mark.slow
def test_bad_rows_are_kept(run, files, tmp_path):
    (tmp_path / "text.png").write_text("hello")
    lines = [
        '{"prompt": "a cat", "image": "0.png"}',
        '{"prompt": "a cat", "image": "none.png"}',
        '{"prompt": "a cat", "image": "text.png"}',
        '{"prompt": "", "image": "0.png"}',
        '{"prompt": 5, "image": "0.png"}',
        '{"prompt": "a cat"}',
        '{"prompt": "\\ud800", "image": "0.png"}',
        '{"prompt": "a cat", "image": ["0.png"]}',
        "[1, 2]",
        "{cut",
        "",
        '{"prompt": "a cat", "image": "1.png"}',
    ]
    manifest = tmp_path / "rows.jsonl"
    manifest.write_text("\n".join(lines))
    for suffix in (".csv", ".jsonl", ".parquet"):
        out = tmp_path / f"out{suffix}"
        summary = result_of(run("rank", "--manifest", manifest, "--out", out, "--json"))
        assert (summary["rows"], summary["errors"]) == (11, 9)
        table = read_table(out)
        assert table.index[table["error"].isna()].tolist() == [0, 10]
        assert table["score"].notna().tolist() == table["error"].isna().tolist()
        assert "none.png, which does not exist" in table["error"][1]
        assert "expected a JSON object" in table["error"][9]


def test_exit_code_of_a_manifest_without_a_score(run, files, tmp_path):
    """The table is written all the same."""
    manifest = write_manifest(tmp_path / "rows.csv", [{"prompt": "a", "image": f"none{index}.png"} for index in "01"])
    result = run("rank", "--manifest", manifest, "--out", tmp_path / "out.csv")
    assert result.exit_code == 1
    assert "no row could be scored" in result.stderr
    assert "none0.png, which does not exist" in " ".join(result.stderr.split())
    assert read_table(tmp_path / "out.csv")["error"].notna().tolist() == [True, True]


ROWS = 5 * SHARD_SIZE - 2  # the last six rows have the six images in order


def long_manifest(tmp_path, files):
    rows = [{"prompt": f"{number % 6} cats", "image": files[number % 6].name} for number in range(ROWS)]
    return write_manifest(tmp_path / "rows.csv", rows)


@pytest.mark.slow
def test_manifest_outlives_a_kill(run, files, images, folder, tmp_path):
    manifest, out = long_manifest(tmp_path, files), tmp_path / "out.csv"
    shards = tmp_path / "out.csv.partial" / "data"
    arguments = ["rank", "--manifest", manifest, "--out", out, "--model", folder, "--draws", 2]
    process = Worker("tests.dina", *arguments, environment={})
    kill_after(process, lambda: len([*shards.glob("scores-*")]) > 1)
    assert not out.exists()
    done = {path: path.stat().st_mtime_ns for path in shards.glob("scores-*")}
    assert 1 < len(done) < 5

    assert "draws: expected 2, with" in refused(run(*arguments[:-1], 3))
    kept = pd.concat([pd.read_parquet(path) for path in sorted(done)])
    seen = []
    write = ScoreShards.write
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ScoreShards, "write", lambda self, unit, rows: seen.append(unit) or write(self, unit, rows))
        result = run(*arguments)
    assert result.exit_code == 0, result.output
    assert len(seen) == 5 - len(done)
    assert not shards.parent.exists()
    table = read_table(out)
    assert table["row"].tolist() == list(range(ROWS))
    assert table["error"].isna().all()
    assert table["score"][: len(kept)].tolist() == pytest.approx(kept["score"].tolist(), abs=1e-12)

    scorer = DinaScorer.from_pretrained(folder)
    last = scorer.score(prompts=[f"{number} cats" for number in range(6)], images=images, num_draws=2)
    assert table["score"][-6:].tolist() == pytest.approx(last.scores.tolist(), abs=1e-5)


def test_a_strangers_file_is_left_alone(run, files, tmp_path):
    manifest, partial = long_manifest(tmp_path, files), tmp_path / "out.csv.partial"
    partial.write_bytes(b"my notes")
    assert "out.csv.partial" in refused(run("rank", "--manifest", manifest, "--out", tmp_path / "out.csv"))
    assert partial.read_bytes() == b"my notes"
