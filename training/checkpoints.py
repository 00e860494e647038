"""Checkpoints of a training, each complete or absent: which there are, and which a run resumes from."""

import os
import re
import shutil
from pathlib import Path

from modeling_dina.options import check_folder

TERMINATED = 128 + 15  # what a shell reports of a process that SIGTERM ended
_NAME = re.compile(r"checkpoint-(\d+)")


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
    if not (Path(wanted) / state).is_file():
        raise ValueError(f"resume_from_checkpoint: expected 'last' or a checkpoint of a run, got {wanted}")
    return Path(wanted)


def rotate_checkpoints(output_dir: Path, keep: int | None) -> None:
    """Remove all but the newest `keep` checkpoints; None keeps them all."""
    for path in checkpoints(output_dir)[:-keep] if keep else []:
        outgoing = path.with_name(f".{path.name}.outgoing")
        os.rename(path, outgoing)
        shutil.rmtree(outgoing)
