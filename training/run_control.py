"""What both trainers share to control a run: atomic checkpoints, which of them a run resumes from, SIGTERM, averaged
weights, and the error of a run whose numbers are not finite."""

import os
import re
import shutil
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel

from modeling_dina.files import commit
from modeling_dina.options import check_folder

TERMINATED = 128 + 15  # what a shell reports of a process that SIGTERM ended
_NAME = re.compile(r"checkpoint-(\d+)")


class NonFiniteError(ArithmeticError):
    """A loss, gradients or too many rewards are not finite. Training has stopped before they reached the weights."""


@contextmanager
def sigterm_sets_trigger(accelerator: Accelerator) -> Iterator[None]:
    """Within, SIGTERM sets the accelerator's trigger. After every update, all processes call `check_trigger`, so that
    they stop after the same one."""
    accelerator.check_trigger()  # The first check makes the flag, and would overwrite what a signal sets meanwhile.
    previous = signal.signal(signal.SIGTERM, lambda *_: accelerator.set_trigger())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def averaged_weights(average: EMAModel | None, parameters: Iterable[torch.nn.Parameter]) -> Iterator[None]:
    """Within, the parameters have the weights of their moving average, if there is one."""
    if average is None:
        yield
        return
    parameters = list(parameters)
    average.store(parameters)
    average.copy_to(parameters)
    try:
        yield
    finally:
        average.restore(parameters)


def checkpoints(output_dir: Path) -> list[Path]:
    """The folders `checkpoint-<step>` of `output_dir`, all complete, by rising step."""
    found = [entry for entry in Path(output_dir).glob("checkpoint-*") if _NAME.fullmatch(entry.name)]
    return sorted(found, key=lambda entry: int(entry.name.rpartition("-")[2]))


def last_checkpoint(output_dir: Path) -> Path | None:
    """The newest checkpoint under `output_dir`, or None."""
    return next(reversed(checkpoints(output_dir)), None)


def checkpoint_to_resume(output_dir: Path, wanted: str | bool | None, state: str) -> Path | None:
    """
    The checkpoint that `resume_from_checkpoint` names, or None to begin.

    Args:
        output_dir: of the run.
        wanted: a checkpoint; "last" or, as transformers has it, True for the newest one of `output_dir`, if there is
            one; None or False to begin. The last two may be texts, as flags are.
        state: a file that every checkpoint of such a run has.

    Raises:
        ValueError: `wanted` is no checkpoint, a run would begin anew where another has left some, or `output_dir`
            cannot be a folder.
    """
    check_folder("output_dir", output_dir)
    last, word = last_checkpoint(output_dir), str(wanted).lower()
    if word in ("last", "true"):
        return last
    if word in ("none", "false"):
        if last is not None:
            raise ValueError(
                f"output_dir: expected a folder without checkpoints, got {last}; go on from it with "
                "--resume_from_checkpoint last, or name another folder"
            )
        return None
    named = Path(str(wanted))
    if not (named / state).is_file():
        raise ValueError(f"resume_from_checkpoint: expected 'last' or a checkpoint of a run, got {wanted}")
    return named


@contextmanager
def new_checkpoint(
    accelerator: Accelerator, output_dir: Path, step: int, *, keep: int | None, writes: bool
) -> Iterator[Path]:
    """
    The folder `checkpoint-<step>`, which all processes may write into and which is in `output_dir` when it is whole.

    Args:
        accelerator: of the processes, which wait for one another.
        output_dir: of the run.
        step: number of updates.
        keep: as `rotate_checkpoints`, which follows.
        writes: whether this process makes, commits and rotates the folders: exactly one on each file system.
    """
    partial = output_dir / ".partial" / f"checkpoint-{step}"
    if writes:
        shutil.rmtree(partial.parent, ignore_errors=True)
        partial.mkdir(parents=True)
    accelerator.wait_for_everyone()
    try:
        yield partial
        accelerator.wait_for_everyone()
        if writes:
            commit(partial, output_dir / partial.name)
            rotate_checkpoints(output_dir, keep)
    finally:
        if writes:
            shutil.rmtree(partial.parent, ignore_errors=True)
    accelerator.wait_for_everyone()


def rotate_checkpoints(output_dir: Path, keep: int | None) -> None:
    """Remove all but the newest `keep` checkpoints; None keeps them all."""
    for path in checkpoints(output_dir)[:-keep] if keep else []:
        outgoing = path.with_name(f".{path.name}.outgoing")
        os.rename(path, outgoing)
        shutil.rmtree(outgoing)
