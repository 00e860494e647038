"""`dina score-dataset` on real files."""

import json

import pandas as pd
import pytest
from typer.testing import CliRunner

from modeling_dina.cli.app import app
from tests import processes  # noqa: F401, its processes begin with the libraries

PROMPTS = ["a cat", "a dog", "a cat", "the sea", "two red cubes", "a dog"]


@pytest.fixture
def run(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(source, *options):
        arguments = [source, "--out", "out", "--model", folder, "--num-workers", 0, "--draws", 2, *options]
        return CliRunner().invoke(app, ["score-dataset", *map(str, arguments)])

    return call


@pytest.fixture
def manifest(tmp_path, files):
    path = tmp_path / "rows.csv"
    pd.DataFrame({"prompt": PROMPTS, "image": [file.name for file in files]}).to_csv(path, index=False)
    return path


@pytest.mark.slow
def test_summary_and_table(run, manifest, files, scorer, tmp_path):
    files[1].write_bytes(b"no image")
    result = run(manifest, "--json", "--levels", "--shard-size", 4)
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert summary.pop("rows_per_second") > 0
    assert summary == {"rows": 6, "errors": 1, "out": "out"}
    table = pd.read_parquet(tmp_path / "out" / "data")
    expected = scorer.score(prompts=[PROMPTS[0], *PROMPTS[2:]], images=[files[0], *files[2:]], num_draws=2)
    assert table["score"].drop(1).tolist() == pytest.approx(expected.scores.tolist(), abs=1e-5)
    assert table["level_scores"][0].shape == expected.sigmas.shape
    again = run(manifest, "--json", "--levels", "--shard-size", 4)
    assert json.loads(again.stdout)["rows_per_second"] == 0  # nothing was left to do


def test_rank_within_a_column(run, manifest, tmp_path):
    """Parts of a run do not rank; the run after them does."""
    arguments = (manifest, "--rank-within", "prompt", "--shard-size", 1)
    for part in (1, 2):
        assert run(*arguments, "--shard", f"{part}/2").exit_code == 0
        assert not (tmp_path / "out" / "ranked").exists()
    assert run(*arguments).exit_code == 0
    table = pd.read_parquet(tmp_path / "out" / "ranked")
    best = table.groupby("prompt")["score"].transform("max")
    assert ((table["rank"] == 1) == (table["score"] == best)).all()
    assert (table["win_probability"][table["rank"] == 2] < 0.5).all()
    assert "rank_within: expected prompt, with" in " ".join(run(manifest, "--shard-size", 1).stderr.split())


@pytest.mark.slow
def test_several_devices(run, manifest, files, scorer, tmp_path):
    result = run(manifest, "--device", "cpu", "--device", "cpu")
    assert result.exit_code == 0, result.output
    table = pd.read_parquet(tmp_path / "out" / "data")
    expected = scorer.score(prompts=PROMPTS, images=files, num_draws=2)
    assert table["score"].tolist() == pytest.approx(expected.scores.tolist(), abs=1e-5)
    other = run(manifest, "--device", "cpu", "--device", "cuda:0")
    assert "device: expected devices of one kind" in other.stderr


def test_no_row_can_be_scored(run, manifest, files, tmp_path):
    for file in files:
        file.unlink()
    result = run(manifest)
    assert result.exit_code == 1
    assert "no row could be scored" in result.stderr
    assert pd.read_parquet(tmp_path / "out" / "data")["error"].notna().all()


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "a/b", "1/0"])
def test_parts_that_do_not_exist(run, manifest, shard):
    result = run(manifest, "--shard", shard)
    assert result.exit_code == 2
    assert "shard: expected I/N" in " ".join(result.stderr.split())


def test_bad_input_ends_before_anything_is_written(run, tmp_path):
    result = run(tmp_path / "none.csv")
    assert result.exit_code == 2
    assert "manifest: expected a file" in " ".join(result.stderr.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_parts_together_are_the_whole(run, manifest, files, scorer, tmp_path):
    for part in (3, 1, 2):
        assert run(manifest, "--shard", f"{part}/3", "--shard-size", 1, "--json").exit_code == 0
        done = [path.name for path in sorted((tmp_path / "out" / "data").iterdir())]
        assert len(done) == {3: 2, 1: 4, 2: 6}[part]
    table = pd.read_parquet(tmp_path / "out" / "data")
    assert table["key"].tolist() == [f"00000-{row}" for row in range(6)]
    expected = scorer.score(prompts=PROMPTS, images=files, num_draws=2)
    assert table["score"].tolist() == pytest.approx(expected.scores.tolist(), abs=1e-5)
