"""Control of a training run, for both trainers: atomic checkpoints, resuming, SIGTERM, averaged weights, and the error
for numbers that are not finite."""

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

TERMINATED = 128 + 15  # exit status that a shell reports after SIGTERM
_NAME = re.compile(r"checkpoint-(\d+)")


class NonFiniteError(ArithmeticError):
    """A loss, a gradient or too many rewards are NaN or infinite. The weights have not been updated with them."""


@contextmanager
def sigterm_sets_trigger(accelerator: Accelerator) -> Iterator[None]:
    """Context in which SIGTERM sets the accelerator's trigger. All processes call `check_trigger` after every update,
    so that they stop after the same one."""
    accelerator.check_trigger()  # The first check creates the flag, and would overwrite one that a signal has set.
    previous = signal.signal(signal.SIGTERM, lambda *_: accelerator.set_trigger())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def averaged_weights(average: EMAModel | None, parameters: Iterable[torch.nn.Parameter]) -> Iterator[None]:
    """Context in which the parameters have the values of their moving average, if there is one."""
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
    """The folders `checkpoint-<step>` of `output_dir` by ascending step. All are complete."""
    found = [entry for entry in Path(output_dir).glob("checkpoint-*") if _NAME.fullmatch(entry.name)]
    return sorted(found, key=lambda entry: int(entry.name.rpartition("-")[2]))


def last_checkpoint(output_dir: Path) -> Path | None:
    """The newest checkpoint in `output_dir`, or None."""
    return next(reversed(checkpoints(output_dir)), None)


def checkpoint_to_resume(output_dir: Path, wanted: str | bool | None, state: str) -> Path | None:
    """
    Find the checkpoint to resume from.

    Args:
        output_dir: output folder of the run.
        wanted: value of `resume_from_checkpoint`: a checkpoint; "last" or, as in transformers, True for the newest one
            in `output_dir`, if any; None or False to start a new run. The last three may also be texts.
        state: name of a file that every checkpoint of such a run contains.

    Returns:
        The checkpoint, or None to start a new run.

    Raises:
        ValueError: `wanted` is not a checkpoint, a new run would start in a folder with checkpoints, or `output_dir`
            cannot be a folder.
    """
    check_folder("output_dir", output_dir)
    last, word = last_checkpoint(output_dir), str(wanted).lower()
    if word in ("last", "true"):
        return last
    if word in ("none", "false"):
        if last is not None:
            raise ValueError(
                f"output_dir: expected a folder without checkpoints, got {last}; resume it with "
                "--resume_from_checkpoint last, or use another folder"
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
    Context with a temporary folder for all processes, which is then renamed to `checkpoint-<step>` in `output_dir`.

    Args:
        accelerator: synchronises the processes.
        output_dir: output folder of the run.
        step: number of updates.
        keep: number of checkpoints to keep, as in `rotate_checkpoints`.
        writes: whether this process creates, renames and deletes folders; exactly one process per file system.
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
    """Delete all but the newest `keep` checkpoints; None keeps all."""
    for path in checkpoints(output_dir)[:-keep] if keep else []:
        outgoing = path.with_name(f".{path.name}.outgoing")
        os.rename(path, outgoing)
        shutil.rmtree(outgoing)
