"""Data sets on a Ray cluster of this machine with two actors: the same scores, though one of them dies."""

import os
import signal
from functools import partial

import pandas as pd
import pytest

from modeling_dina import DinaScorer
from modeling_dina.dataset.run import score_dataset
from modeling_dina.dataset.sources import open_source

# Ray's own models are of an older pydantic.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

PROMPTS = ["a cat", "a dog", "two red cubes"]
ROWS = 60


@pytest.fixture(scope="module", autouse=True)
def cluster():
    ray = pytest.importorskip("ray", reason="needs dina-lrm[ray]")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


def open_deadly_scorer(device, folder, mark):
    """A scorer that kills its process at its fourth batch, if no other process has done so."""
    scorer = DinaScorer.from_pretrained(folder, device=device, batch_size=2)
    batches = []

    def count(module, inputs):
        batches.append(1)
        if len(batches) == 4 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    scorer.pipeline.vae.encoder.register_forward_pre_hook(count)
    return scorer


@pytest.fixture
def manifest(files, tmp_path):
    path = tmp_path / "rows.csv"
    rows = [{"key": i, "prompt": PROMPTS[i % 3], "image": files[i % 6].name} for i in range(ROWS)]
    rows[10]["image"] = "none.png"
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def test_scores_are_those_of_the_scorer_though_an_actor_dies(manifest, files, folder, scorer, tmp_path):
    """The first shard comes from another run, without Ray, which stopped early."""
    from modeling_dina.dataset.on_ray import score_dataset_on_ray

    seen, out = [], tmp_path / "out"
    rows = partial(open_source, str(manifest))
    options = {"shard_size": 7, "num_workers": 2, "num_draws": 2}
    first, *others = score_dataset(scorer, rows(), out, progress=lambda *_: None, **options).paths()
    time = first.stat().st_mtime_ns
    for path in others:
        path.unlink()

    opened = partial(open_deadly_scorer, folder=folder, mark=tmp_path / "mark")
    progress = lambda done, total: seen.append((done, total))  # noqa: E731
    devices = ["cpu", "cpu"]
    shards = score_dataset_on_ray("auto", opened, rows, out, devices=devices, progress=progress, **options)
    assert (tmp_path / "mark").exists()
    assert (seen[0], seen[-1]) == ((7, ROWS), (ROWS, ROWS))
    assert shards.paths() == [first, *others]
    assert first.stat().st_mtime_ns == time
    table = pd.concat([pd.read_parquet(path) for path in shards.paths()], ignore_index=True)
    assert table["key"].tolist() == [str(i) for i in range(ROWS)]
    assert table.index[table["error"].notna()].tolist() == [10]
    prompts, images = [PROMPTS[i % 3] for i in range(ROWS)], [files[i % 6] for i in range(ROWS)]
    expected = scorer.score(prompts=prompts, images=images, num_draws=2).scores.tolist()
    assert table["score"].drop(10).tolist() == pytest.approx([*expected[:10], *expected[11:]], abs=1e-5)


def open_nothing(device, folder):
    raise ValueError("model: expected a folder, got none")


def open_broken_scorer(device, folder):
    def lose_device(module, inputs):
        raise RuntimeError("device lost")

    scorer = DinaScorer.from_pretrained(folder, device=device)
    scorer.pipeline.vae.encoder.register_forward_pre_hook(lose_device)
    return scorer


@pytest.mark.parametrize(
    ("opened", "message"),
    [
        (open_nothing, r"^ray: model: expected a folder, got none$"),
        (open_broken_scorer, r"^model: expected .*device lost"),
    ],
)
def test_errors_are_those_of_the_cause(manifest, folder, tmp_path, opened, message):
    from modeling_dina.dataset.on_ray import score_dataset_on_ray

    options = {"devices": ["cpu"], "shard_size": 7, "num_workers": 1, "progress": print}
    rows = partial(open_source, str(manifest))
    with pytest.raises(ValueError, match=message):
        score_dataset_on_ray("auto", partial(opened, folder=folder), rows, tmp_path / "out", **options)
