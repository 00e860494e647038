"""Data sets whose rows, worker processes or runs fail: every row is once in the output, with the scorer's score."""

import json
import multiprocessing
import os
import signal
import time

import pandas as pd
import pytest
import torch
from PIL import Image

from modeling_dina import DinaScorer
from modeling_dina.dataset.decoding import ChunkDecoder
from modeling_dina.dataset.rows import Row
from modeling_dina.dataset.run import ATTEMPTS, score_dataset
from modeling_dina.dataset.sources import ManifestSource
from tests.processes import Worker

PROMPTS = ["a cat", "a dog", "two red cubes"]
ROWS = 14


@pytest.fixture
def manifest(tmp_path, files):
    """14 rows of images of three sizes and three prompts."""
    path = tmp_path / "rows.jsonl"
    rows = [{"key": f"row {i}", "prompt": PROMPTS[i % 3], "image": files[i % 6].name} for i in range(ROWS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(
    scorer, source, out, batch_size=2, shard_size=4, num_workers=0, progress=lambda *_: None, num_draws=2, **options
):
    own = DinaScorer(scorer.model, scorer.pipeline, batch_size=batch_size)
    return score_dataset(
        own,
        source,
        out,
        shard_size=shard_size,
        num_workers=num_workers,
        progress=progress,
        num_draws=num_draws,
        **options,
    )


def read(shards):
    return pd.concat([pd.read_parquet(path) for path in shards.paths()], ignore_index=True)


@pytest.fixture
def expected(scorer, files):
    """Scores of the manifest's rows."""
    return scorer.score(
        prompts=[PROMPTS[i % 3] for i in range(ROWS)], images=[files[i % 6] for i in range(ROWS)], num_draws=2
    )


@pytest.mark.parametrize(
    ("batch_size", "shard_size", "num_workers"), [(1, 5, 0), (3, 4, 0), (4, 100, 0), (2, 7, 1), (2, 3, 2)]
)
def test_scores_are_those_of_the_scorer(scorer, manifest, tmp_path, expected, batch_size, shard_size, num_workers):
    shards = run(scorer, ManifestSource(manifest), tmp_path / "out", batch_size, shard_size, num_workers)
    table = read(shards)
    assert list(table.columns) == ["key", "prompt", "score", "spread", "error"]
    assert table["key"].tolist() == [f"row {i}" for i in range(ROWS)]
    assert table["prompt"].tolist() == [PROMPTS[i % 3] for i in range(ROWS)]
    assert table["score"].tolist() == pytest.approx(expected.scores.tolist(), abs=1e-5)
    assert table["spread"].tolist() == pytest.approx(expected.spread.tolist(), abs=1e-5)
    assert table["error"].isna().all()
    sizes = [len(pd.read_parquet(path)) for path in shards.paths()]
    assert sizes == [min(shard_size, ROWS - start) for start in range(0, ROWS, shard_size)]


def test_images_are_batched_by_size_across_chunks(scorer, manifest, tmp_path):
    """8 of the rows are scored at one size, and 6 at another."""
    sizes = []
    hook = scorer.pipeline.vae.encoder.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    try:
        run(scorer, ManifestSource(manifest), tmp_path / "out", batch_size=8, shard_size=100)
    finally:
        hook.remove()
    assert sorted(sizes) == [6, 8]


def test_levels(scorer, manifest, tmp_path, files):
    table = read(run(scorer, ManifestSource(manifest), tmp_path / "out", with_levels=True, sigmas=[0.2, 0.5]))
    result = scorer.score(prompts=[PROMPTS[0]], images=files[:1], num_draws=2, sigmas=[0.2, 0.5], with_levels=True)
    assert table["level_scores"][0].tolist() == pytest.approx(
        result.level_samples.mean(dim=1)[:, 0].tolist(), abs=1e-5
    )


# Rows that fail


def test_a_bad_row_is_an_error_in_its_row(scorer, manifest, tmp_path, files, expected):
    lines = manifest.read_text().splitlines()
    lines[1] = "{cut"
    lines[2] = json.dumps({"prompt": " ", "image": files[2].name})
    lines[3] = json.dumps({"prompt": "\ud800", "image": files[3].name})
    lines[4] = json.dumps({"key": 5, "prompt": "a dog", "image": "none.png"})
    lines[5] = json.dumps({"prompt": "a dog", "image": "\ud800.png"})
    manifest.write_text("\n".join(lines))
    table = read(run(scorer, ManifestSource(manifest), tmp_path / "out"))
    assert table.index[table["error"].notna()].tolist() == [1, 2, 3, 4, 5]
    assert table["score"].notna().tolist() == table["error"].isna().tolist()
    assert "expected a JSON object" in table["error"][1]
    assert "none.png, which does not exist" in table["error"][4]
    assert table["key"][1:5].tolist() == ["00000-1", "00000-2", "00000-3", "5"]
    good = table["error"].isna()
    assert table["score"][good].tolist() == pytest.approx(expected.scores[torch.tensor(good)].tolist(), abs=1e-5)


def is_black(pixels):
    return (pixels == -1).flatten(1).all(dim=1)


def test_an_image_that_the_model_cannot_score_costs_no_other(scorer, manifest, tmp_path, files, expected):
    Image.new("RGB", (64, 64)).save(files[1])

    def spoil(module, inputs):
        inputs[0][is_black(inputs[0])] = torch.nan

    hook = scorer.pipeline.vae.encoder.register_forward_pre_hook(spoil)
    try:
        table = read(run(scorer, ManifestSource(manifest), tmp_path / "out", batch_size=4, shard_size=100))
    finally:
        hook.remove()
    assert table.index[table["error"].notna()].tolist() == [1, 7, 13]
    assert "finite" in table["error"][1]
    good = table["error"].isna()
    assert table["score"][good].tolist() == pytest.approx(expected.scores[torch.tensor(good)].tolist(), abs=1e-5)


def test_a_model_that_fails_at_everything_stops_the_run(scorer, manifest, tmp_path, expected):
    calls = []

    def lose_device(module, inputs):
        calls.append(1)
        if len(calls) > 4:
            raise RuntimeError("device lost")

    hook = scorer.pipeline.vae.encoder.register_forward_pre_hook(lose_device)
    try:
        with pytest.raises(ValueError, match=r"model: expected .*device lost"):
            run(scorer, ManifestSource(manifest), tmp_path / "out")
    finally:
        hook.remove()
    assert [path.name for path in (tmp_path / "out" / "data").iterdir()] == ["scores-00000-00000.parquet"]
    table = read(run(scorer, ManifestSource(manifest), tmp_path / "out"))
    assert table["score"].tolist() == pytest.approx(expected.scores.tolist(), abs=1e-5)


# Runs that go on


def test_only_missing_shards_are_computed(scorer, manifest, tmp_path, expected):
    out = tmp_path / "out"
    shards = run(scorer, ManifestSource(manifest), out)
    whole = read(shards)
    shards.paths()[1].unlink()
    times = {path: path.stat().st_mtime_ns for path in shards.paths()}
    scored = []
    hook = scorer.pipeline.vae.encoder.register_forward_pre_hook(lambda _, inputs: scored.append(len(inputs[0])))
    seen = []
    try:
        run(scorer, ManifestSource(manifest), out, progress=lambda done, total: seen.append((done, total)))
    finally:
        hook.remove()
    assert sum(scored) == 4
    assert (seen[0], seen[-1]) == ((10, 14), (14, 14))
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    pd.testing.assert_frame_equal(read(shards), whole, check_exact=False, atol=1e-5)


@pytest.mark.parametrize("change", [{"seed": 1}, {"num_draws": 5}, {"shard_size": 5}, {"with_levels": True}])
def test_other_settings_do_not_go_on(scorer, manifest, tmp_path, change):
    run(scorer, ManifestSource(manifest), tmp_path / "out")
    name = {"num_draws": "draws", "with_levels": "levels"}.get(*change, *change)
    with pytest.raises(ValueError, match=f"{name}: expected .* was begun, got"):
        run(scorer, ManifestSource(manifest), tmp_path / "out", **change)


def test_another_manifest_does_not_go_on(scorer, manifest, tmp_path):
    run(scorer, ManifestSource(manifest), tmp_path / "out")
    manifest.write_text(manifest.read_text().replace("a dog", "a cow"))
    with pytest.raises(ValueError, match=r"manifest: expected .* was begun, got"):
        run(scorer, ManifestSource(manifest), tmp_path / "out")


# Processes that die


@pytest.mark.slow
def test_a_dead_worker_is_replaced(scorer, manifest, tmp_path, expected):
    """Its rows are done again, and no row has an error."""
    killed = []

    def kill_one(done, total):
        workers = multiprocessing.active_children()
        if done >= 4 and workers and len(killed) < 2:
            killed.append(workers[0].pid)
            os.kill(workers[0].pid, signal.SIGKILL)

    source = SlowSource(manifest)
    table = read(run(scorer, source, tmp_path / "out", num_workers=1, progress=kill_one))
    assert len(killed) == 2
    assert table["key"].tolist() == [f"row {i}" for i in range(ROWS)]
    assert table["error"].isna().all()
    assert table["score"].tolist() == pytest.approx(expected.scores.tolist(), abs=1e-5)


class SlowSource(ManifestSource):
    """Leaves the workers something to do until the end of a run."""

    def read(self, piece, start):
        for row in super().read(piece, start):
            time.sleep(0.02)
            yield row


def test_an_image_that_kills_every_worker_ends_the_run(scorer, manifest, tmp_path, monkeypatch):
    decode, main = ChunkDecoder.__getitem__, os.getpid()

    def die(self, chunk):
        if chunk.unit.block == 1:
            assert os.getpid() != main
            os.kill(os.getpid(), signal.SIGKILL)
        return decode(self, chunk)

    monkeypatch.setattr(ChunkDecoder, "__getitem__", die)
    with pytest.raises(ValueError, match=f"num_workers: expected .* rows after 4, got {ATTEMPTS} times"):
        run(scorer, ManifestSource(manifest), tmp_path / "out", num_workers=1)


@pytest.mark.slow
def test_a_run_outlives_kills(scorer, folder, manifest, tmp_path, expected):
    """Killed after the first, and again after the third shard, with different numbers of workers."""
    out = tmp_path / "out"
    for workers, shards in ((1, 1), (0, 3)):
        arguments = ["--model", folder, "--shard-size", 2, "--batch-size", 2, "--num-workers", workers, "--draws", 2]
        process = Worker("tests.dina", "score-dataset", manifest, "--out", out, *arguments, environment={})
        deadline = time.monotonic() + 300
        while len(list((out / "data").glob("scores-*"))) < shards:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    done = len(list((out / "data").glob("scores-*")))
    assert done >= 3
    table = read(run(scorer, ManifestSource(manifest), out, shard_size=2))
    assert table["key"].tolist() == [f"row {i}" for i in range(ROWS)]
    assert table["score"].tolist() == pytest.approx(expected.scores.tolist(), abs=1e-5)
    assert not [path for path in out.rglob("*") if "partial" in path.name]


# Memory


class CountingSource:
    """Rows of one image; counts those that were read."""

    pieces, lengths, has_latents, group_column, identity = 1, None, False, None, {"source": "counted"}

    def __init__(self, image, count):
        self.image, self.count, self.read_rows = image, count, 0

    def read(self, piece, start):
        for number in range(start, self.count):
            self.read_rows += 1
            yield Row(str(number), "a cat", str(self.image))


@pytest.mark.slow
def test_rows_are_read_only_a_few_chunks_ahead(scorer, files, tmp_path):
    source, ahead = CountingSource(files[0], 60), []
    run(
        scorer,
        source,
        tmp_path / "out",
        shard_size=4,
        num_workers=1,
        progress=lambda done, total: ahead.append(source.read_rows - done),
    )
    # At most two chunks in the worker, those of the unit, and the two running batches.
    assert max(ahead) <= 2 * 2 + 4 + 2 * 2
    assert source.read_rows == 60
