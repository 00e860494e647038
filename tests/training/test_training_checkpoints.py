"""Folders that are whole or not there, and which of them a run goes on from."""

import pytest

from training.checkpoints import atomic_directory, checkpoints, last_checkpoint, rotate_checkpoints


def save(folder, text="new"):
    with atomic_directory(folder) as partial:
        (partial / "deep").mkdir()
        (partial / "deep" / "file").write_text(text)
        assert partial.parent == folder.parent
        there = folder / "deep" / "file"
        assert not there.exists() or there.read_text() != text


def test_a_folder_is_replaced_at_once(tmp_path):
    folder = tmp_path / "checkpoint-1"
    save(folder, "old")
    save(folder, "new")
    assert (folder / "deep" / "file").read_text() == "new"
    assert list(tmp_path.iterdir()) == [folder]


def test_a_failure_leaves_what_was_there(tmp_path):
    folder = tmp_path / "checkpoint-1"
    save(folder, "old")

    def fail():
        with atomic_directory(folder) as partial:
            (partial / "file").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert (folder / "deep" / "file").read_text() == "old"
    assert list(tmp_path.iterdir()) == [folder]


def test_checkpoints_are_in_the_order_of_their_steps(tmp_path):
    assert last_checkpoint(tmp_path / "nowhere") is None
    for name in ("checkpoint-10", "checkpoint-9", "checkpoint-100", "checkpoint-", "checkpoint-5-old", ".partial"):
        (tmp_path / name).mkdir()
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-9", "checkpoint-10", "checkpoint-100"]
    assert last_checkpoint(tmp_path).name == "checkpoint-100"


@pytest.mark.parametrize(("keep", "left"), [(None, [1, 2, 3]), (2, [2, 3]), (5, [1, 2, 3])])
def test_the_newest_are_kept(tmp_path, keep, left):
    for step in (1, 2, 3):
        (tmp_path / f"checkpoint-{step}").mkdir()
    rotate_checkpoints(tmp_path, keep)
    assert [path.name for path in checkpoints(tmp_path)] == [f"checkpoint-{step}" for step in left]
    assert len(list(tmp_path.iterdir())) == len(left)
