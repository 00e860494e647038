"""Checkpoints pushed in the background to a Hub in memory."""

import os
import shutil
import tempfile
import time
from math import inf
from pathlib import Path

import pytest

from modeling_dina.hub import push
from modeling_dina.hub.background import CheckpointPusher
from tests.processes import run_code
from training.reward.trainer import EMA, SAMPLER, TRAINABLE

SHARED_MEMORY = Path("/dev/shm")


def checkpoint(output_dir, step):
    folder = output_dir / f"checkpoint-{step}"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"%d" % step * 1000)
    (folder / "optimizer.pt").write_bytes(b"%d" % step)
    return folder


def weights(repo, revision="main"):
    return repo.files(revision)["model.safetensors"]


@pytest.fixture
def output_dir(tmp_path):
    """A training's folder, where no snapshot may be left behind."""
    yield tmp_path
    assert not (tmp_path / ".pushing").exists()


def wait_for(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_pushes_and_tags(connected_hub, output_dir):
    pusher = CheckpointPusher("owner/name", output_dir)
    first = checkpoint(output_dir, 10)
    pusher.push(first, 10)
    wait_for(lambda: "commit" in connected_hub.requests)
    pusher.push(checkpoint(output_dir, 20), 20)
    report = pusher.finish(tag="v1")
    repo = connected_hub.repos["owner/name"]
    assert repo.private
    assert repo.titles() == ["Step 20", "Step 10", "initial commit"]
    assert report.pushed == {10: repo.commits[repo.main].parent, 20: repo.main}
    assert repo.tags == {"v1": repo.main}
    assert set(repo.files()) == {".gitattributes", "config.json", "model.safetensors"}
    assert weights(repo) == b"20" * 1000
    assert str(report) == f"pushed to owner/name: steps 10, 20, last commit {repo.main}, tag v1"
    assert sorted(path.name for path in first.iterdir()) == ["config.json", "model.safetensors", "optimizer.pt"]


def test_public_if_asked(connected_hub, output_dir):
    pusher = CheckpointPusher("owner/name", output_dir, private=False)
    pusher.push(checkpoint(output_dir, 1), 1)
    pusher.finish()
    assert not connected_hub.repos["owner/name"].private


def test_states_of_a_data_set(connected_hub, output_dir):
    (output_dir / "pairs").mkdir()
    (output_dir / "pairs" / "train.parquet").write_bytes(b"rows")
    pusher = CheckpointPusher("owner/name", output_dir, repo_type="dataset", unit="vote")
    pusher.push(output_dir / "pairs", 40)
    report = pusher.finish(tag="v1")
    assert list(connected_hub.repos) == ["datasets/owner/name"]
    repo = connected_hub.repos["datasets/owner/name"]
    assert repo.private
    assert repo.titles() == ["Vote 40", "initial commit"]
    assert repo.files("v1")["train.parquet"] == b"rows"
    assert str(report) == f"pushed to owner/name: vote 40, last commit {repo.main}, tag v1"


def test_a_newer_checkpoint_takes_the_place_of_one_that_waits(connected_hub, output_dir):
    connected_hub.fail("commit", delay=0.5)
    pusher = CheckpointPusher("owner/name", output_dir)
    for step in (1, 2, 3):
        pusher.push(checkpoint(output_dir, step), step)
        wait_for(lambda: "commit" in connected_hub.requests)
    # What waits is linked to, not written out again.
    assert (output_dir / "checkpoint-3" / "model.safetensors").stat().st_nlink == 2
    assert (output_dir / "checkpoint-2" / "model.safetensors").stat().st_nlink == 1
    report = pusher.finish()
    assert list(report.pushed) == [1, 3]
    assert report.superseded == [2]
    assert not report.failed
    assert connected_hub.repos["owner/name"].titles() == ["Step 3", "Step 1", "initial commit"]
    assert "newer checkpoint was ready: step 2" in str(report)


def test_a_checkpoint_may_be_replaced_and_deleted_while_it_is_uploaded(connected_hub, output_dir):
    connected_hub.fail("preupload", delay=0.3)
    pusher = CheckpointPusher("owner/name", output_dir)
    first, second = checkpoint(output_dir, 1), checkpoint(output_dir, 2)
    pusher.push(first, 1)
    (output_dir / "new").write_bytes(b"other weights")
    os.replace(output_dir / "new", first / "model.safetensors")
    shutil.rmtree(first)
    wait_for(lambda: "preupload" in connected_hub.requests)
    pusher.push(second, 2)
    shutil.rmtree(second)
    report = pusher.finish()
    repo = connected_hub.repos["owner/name"]
    assert weights(repo, report.pushed[1]) == b"1" * 1000
    assert weights(repo, report.pushed[2]) == b"2" * 1000


@pytest.mark.skipif(not SHARED_MEMORY.is_dir(), reason="needs a second file system")
def test_a_checkpoint_on_another_file_system_is_copied(connected_hub, output_dir):
    with tempfile.TemporaryDirectory(dir=SHARED_MEMORY) as elsewhere:
        pusher = CheckpointPusher("owner/name", output_dir)
        pusher.push(checkpoint(Path(elsewhere), 1), 1)
        assert list(pusher.finish().pushed) == [1]
    assert weights(connected_hub.repos["owner/name"]) == b"1" * 1000


def test_what_the_trainer_keeps_beside_the_model_is_not_published(tmp_path):
    folder = checkpoint(tmp_path, 1)
    for name in (TRAINABLE, EMA, SAMPLER):
        (folder / name).write_bytes(b"")
    assert push.published_files(folder) == ["config.json", "model.safetensors"]


def test_training_state_goes_under_last_checkpoint(connected_hub, output_dir):
    pusher = CheckpointPusher("owner/name", output_dir)
    folder = checkpoint(output_dir, 1)
    pusher.push(folder, 1, training_state=folder)
    assert not pusher.finish().failed
    state = {f"last-checkpoint/{name}" for name in ("config.json", "model.safetensors", "optimizer.pt")}
    files = connected_hub.repos["owner/name"].files()
    assert set(files) == {".gitattributes", "config.json", "model.safetensors"} | state
    assert files["last-checkpoint/optimizer.pt"] == b"1"


def test_what_a_killed_run_left_is_removed(connected_hub, output_dir):
    (output_dir / ".pushing" / "7-x").mkdir(parents=True)
    pusher = CheckpointPusher("owner/name", output_dir)
    assert not (output_dir / ".pushing").exists()
    assert str(pusher.finish()) == "pushed to owner/name: nothing"


def test_a_refused_push_is_reported_and_the_next_one_tried(connected_hub, output_dir):
    connected_hub.fail("commit", status=401)
    pusher = CheckpointPusher("owner/name", output_dir)
    pusher.push(checkpoint(output_dir, 1), 1)
    wait_for(lambda: "commit" in connected_hub.requests)
    pusher.push(checkpoint(output_dir, 2), 2)
    report = pusher.finish(tag="v1")
    assert list(report.pushed) == [2]
    assert report.failed.keys() == {1}
    assert report.tag == "v1"
    assert "not pushed: step 1: owner/name: the Hub refused the token (401): set HF_TOKEN" in str(report)


def test_a_step_that_fails_and_then_succeeds_is_pushed(connected_hub, output_dir):
    connected_hub.fail("commit", status=403)
    pusher = CheckpointPusher("owner/name", output_dir)
    folder = checkpoint(output_dir, 1)
    pusher.push(folder, 1)
    wait_for(lambda: "commit" in connected_hub.requests)
    pusher.push(folder, 1)
    report = pusher.finish()
    assert list(report.pushed) == [1]
    assert not report.failed
    assert not report.superseded


def test_a_tag_that_exists_is_reported(connected_hub, output_dir):
    push.push_folder(checkpoint(output_dir, 1), "owner/name", tag="v1")
    tags = dict(connected_hub.repos["owner/name"].tags)
    pusher = CheckpointPusher("owner/name", output_dir)
    pusher.push(checkpoint(output_dir, 2), 2)
    report = pusher.finish(tag="v1")
    assert report.tag is None
    assert "not tagged: owner/name" in str(report)
    assert "409 Conflict: Tag reference exists already" in report.tag_fault
    assert connected_hub.repos["owner/name"].tags == tags


def test_a_missing_checkpoint_is_reported(connected_hub, output_dir):
    pusher = CheckpointPusher("owner/name", output_dir)
    pusher.push(output_dir / "checkpoint-1", 1)
    report = pusher.finish(tag="v1")
    assert "folder: expected a folder" in report.failed[1]
    assert report.tag_fault == "nothing was pushed"


def test_a_checkpoint_after_the_end_is_reported(connected_hub, output_dir):
    pusher = CheckpointPusher("owner/name", output_dir)
    pusher.push(checkpoint(output_dir, 1), 1)
    pusher.finish()
    pusher.push(checkpoint(output_dir, 2), 2)
    report = pusher.finish()
    assert list(report.pushed) == [1]
    assert report.failed == {2: "push was called after finish"}


def test_a_dead_hub_is_reported_soon(connected_hub, output_dir):
    connected_hub.stop()
    pusher = CheckpointPusher("owner/name", output_dir)
    folder = checkpoint(output_dir, 1)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    pusher.push(folder, 1)
    started = time.monotonic()
    report = pusher.finish(tag="v1")
    assert time.monotonic() - started < 15
    assert report.failed.keys() == {1}
    assert f"cannot reach {connected_hub.url}" in report.failed[1]
    assert not report.pushed
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_the_end_waits_no_longer_than_asked(connected_hub, output_dir):
    connected_hub.fail("commit", delay=30, times=inf)
    pusher = CheckpointPusher("owner/name", output_dir)
    pusher.push(checkpoint(output_dir, 1), 1)
    wait_for(lambda: "commit" in connected_hub.requests)
    pusher.push(checkpoint(output_dir, 2), 2)
    started = time.monotonic()
    report = pusher.finish(tag="v1", timeout=0.3)
    assert time.monotonic() - started < 10
    assert report.failed == dict.fromkeys((1, 2), "not finished 0.3 s after the end of training")
    assert report.tag_fault == "not finished 0.3 s after the end of training"


@pytest.mark.slow
def test_a_process_ends_though_the_hub_is_silent(loopback_hub, output_dir):
    loopback_hub.fail("commit", delay=600, times=inf)
    checkpoint(output_dir, 1)
    code = """
import sys
from modeling_dina.hub.background import CheckpointPusher
from tests.processes import run_code
from training.reward.trainer import EMA, SAMPLER, TRAINABLE
pusher = CheckpointPusher("owner/name", sys.argv[1])
pusher.push(sys.argv[1] + "/checkpoint-1", 1)
print(pusher.finish(timeout=2))
"""
    printed = run_code(code, output_dir, folder=output_dir, environment=loopback_hub.environment(output_dir / "home"))
    assert printed[-1].endswith("not pushed: step 1: not finished 2 s after the end of training")


def test_a_malformed_name_is_refused_at_once(tmp_path):
    with pytest.raises(ValueError, match="repo_id: expected owner/name"):
        CheckpointPusher("name", tmp_path)
