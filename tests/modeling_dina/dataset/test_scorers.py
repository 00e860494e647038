"""Scorers in processes of their own: the same scores, whatever happens to the processes."""

import multiprocessing
import os
import signal
import time
from functools import partial
from pathlib import Path

import pandas as pd
import pytest

from modeling_dina import DinaScorer
from modeling_dina.dataset.run import score_dataset
from modeling_dina.dataset.scorers import ATTEMPTS, DeviceScorers
from modeling_dina.dataset.sources import ManifestSource
from tests import processes

PROMPTS = ["a cat", "a dog", "two red cubes"]
ROWS = 40


def open_scorer(device, folder):
    return DinaScorer.from_pretrained(folder, device=device, batch_size=2)


def identify(scorer):
    time.sleep(0.05)
    return os.getpid()


def die(scorer):
    os.kill(os.getpid(), signal.SIGKILL)


def die_once(scorer, path):
    if not path.exists():
        path.touch()
        die(scorer)
    return os.getpid()


@pytest.fixture
def scorers(folder):
    with DeviceScorers(partial(open_scorer, folder=folder), ["cpu", "cpu"]) as scorers:
        yield scorers


@pytest.mark.slow
def test_scores_are_those_of_one_scorer_though_processes_die(scorers, scorer, files, tmp_path):
    manifest = tmp_path / "rows.csv"
    rows = [{"key": i, "prompt": PROMPTS[i % 3], "image": files[i % 6].name} for i in range(ROWS)]
    pd.DataFrame(rows).to_csv(manifest, index=False)
    killed = []

    def kill_some(done, total):
        if done >= 10 * (len(killed) + 1) and len(killed) < 2:
            pids = {future.result() for future in [scorers.call(identify) for _ in range(4)]}
            killed.append(max(pids))
            os.kill(killed[-1], signal.SIGKILL)

    options = {"shard_size": 7, "num_workers": 1, "num_draws": 2}
    shards = score_dataset(scorers, ManifestSource(manifest), tmp_path / "out", progress=kill_some, **options)
    assert len(killed) == 2
    table = pd.concat([pd.read_parquet(path) for path in shards.paths()], ignore_index=True)
    assert table["key"].tolist() == [str(i) for i in range(ROWS)]
    assert table["error"].isna().all()
    prompts, images = [PROMPTS[i % 3] for i in range(ROWS)], [files[i % 6] for i in range(ROWS)]
    expected = scorer.score(prompts=prompts, images=images, num_draws=2)
    assert table["score"].tolist() == pytest.approx(expected.scores.tolist(), abs=1e-5)


@pytest.mark.slow
def test_both_devices_work(scorers):
    assert len({future.result() for future in [scorers.call(identify) for _ in range(4)]}) == 2


@pytest.mark.slow
def test_a_call_is_repeated_after_its_process_died(scorers, tmp_path):
    assert scorers.call(die_once, tmp_path / "died").result() != os.getpid()


@pytest.mark.slow
def test_a_call_that_kills_every_process(scorers):
    with pytest.raises(ValueError, match=f"device: expected a process on cpu .* got {ATTEMPTS} times"):
        scorers.call(die).result()
    assert scorers.call(identify).result() > 0


def test_a_model_that_cannot_be_loaded(tmp_path):
    scorers = DeviceScorers(partial(open_scorer, folder=tmp_path / "none"), ["cpu"])
    with scorers, pytest.raises(OSError, match="none"):
        scorers.call(identify).result()


def is_alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def report_and_wait(connection, folder):
    """A run that is killed while its scorer waits for calls."""
    multiprocessing.current_process().daemon = False
    with DeviceScorers(partial(open_scorer, folder=folder), ["cpu"]) as scorers:
        connection.send(scorers.call(identify).result())
        time.sleep(600)


@pytest.mark.slow
def test_processes_end_with_a_run_that_was_killed(folder):
    context = multiprocessing.get_context(processes.START_METHOD)
    ours, theirs = context.Pipe()
    run = context.Process(target=report_and_wait, args=(theirs, folder), daemon=True)
    run.start()
    pid = ours.recv()
    run.kill()
    run.join()
    deadline = time.monotonic() + 60
    while is_alive(pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)
