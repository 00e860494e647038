"""Which checkpoints of a run there are, and which are removed."""

import pytest

from training.checkpoints import checkpoints, last_checkpoint, rotate_checkpoints


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
