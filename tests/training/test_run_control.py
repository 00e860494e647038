"""Checkpoints of a run: which there are, how one is written, and which are removed."""

import signal
import sys

import pytest
from accelerate import Accelerator

from training.run_control import (
    checkpoints,
    last_checkpoint,
    new_checkpoint,
    rotate_checkpoints,
    sigterm_sets_trigger,
)


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


def test_a_checkpoint_is_complete_or_absent(tmp_path):
    def write(step, error=None):
        with new_checkpoint(Accelerator(), tmp_path, step, keep=2, writes=True) as partial:
            (partial / "file").write_text(str(step))
            assert last_checkpoint(tmp_path) != tmp_path / f"checkpoint-{step}"
            if error is not None:
                raise error

    for step in (1, 2, 3):
        write(step)
    with pytest.raises(KeyboardInterrupt):
        write(4, KeyboardInterrupt)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-3"]
    assert (tmp_path / "checkpoint-3" / "file").read_text() == "3"


def checks_after_a_sigterm(accelerator: Accelerator, line: int) -> tuple[bool, bool]:
    """What the check that a SIGTERM interrupts before its `line`-th line returns, and what the next one returns."""
    left = line

    def trace(frame, event, _):
        nonlocal left
        if frame.f_code is not Accelerator.check_trigger.__code__:
            return None
        if event == "line":
            left -= 1
            if left == 0:
                signal.raise_signal(signal.SIGTERM)
        return trace

    previous = sys.gettrace()
    with sigterm_sets_trigger(accelerator):
        sys.settrace(trace)
        try:
            first = accelerator.check_trigger()
        finally:
            sys.settrace(previous)
        return first, accelerator.check_trigger()


@pytest.mark.parametrize("line", [1, 2, 3])
def test_a_sigterm_during_the_first_check_is_not_lost(line):
    assert any(checks_after_a_sigterm(Accelerator(cpu=True), line))
