"""Pushes checkpoints, or states of a data set, to the Hub in the background. Snapshots are hard links, which a thread
uploads one after another; errors of the network do not reach the training."""

import logging
import os
import shutil
import tempfile
from collections.abc import Collection
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from threading import Condition, Thread
from typing import NamedTuple

from huggingface_hub.utils import disable_progress_bars

from modeling_dina.hub.push import (
    IGNORED_FILES,
    PushError,
    RepoType,
    check_repo_id,
    published_files,
    push_folder,
    tag_commit,
)

logger = logging.getLogger(__name__)

FINISH_TIMEOUT = 1800.0  # seconds, enough for a large checkpoint over a slow connection


@dataclass
class PushReport:
    """The results of all pushes to `repo_id`.

    Args:
        pushed: commit of each step, in the order of the pushes.
        superseded: steps that were replaced by a newer one before their upload began.
        failed: the reason for each step that was not pushed.
        tag: tag of the last commit of `pushed`, or None.
        tag_fault: the reason why the requested tag was not created, or None.
        unit: what is counted in place of steps.
    """

    repo_id: str
    pushed: dict[int, str] = field(default_factory=dict)
    superseded: list[int] = field(default_factory=list)
    failed: dict[int, str] = field(default_factory=dict)
    tag: str | None = None
    tag_fault: str | None = None
    unit: str = "step"

    def __str__(self) -> str:
        lines = [f"pushed to {self.repo_id}: {self._steps(self.pushed)}"]
        if self.pushed:
            lines[0] += f", last commit {list(self.pushed.values())[-1]}" + (f", tag {self.tag}" if self.tag else "")
        if self.superseded:
            lines.append(f"skipped because a newer checkpoint was ready: {self._steps(self.superseded)}")
        lines += [f"not pushed: {self.unit} {step}: {reason}" for step, reason in self.failed.items()]
        if self.tag_fault:
            lines.append(f"not tagged: {self.tag_fault}")
        return "\n".join(lines)

    def _steps(self, steps: Collection[int]) -> str:
        return f"{self.unit}{'s' if len(steps) > 1 else ''} {', '.join(map(str, steps))}" if steps else "nothing"


class _Snapshot(NamedTuple):
    step: int
    folder: Path  # with the subfolders "model" and, if it is pushed, "training-state"


class CheckpointPusher:
    """Pushes checkpoints in the background. Only one process of a training may use it.

    ```python
    >>> pusher = CheckpointPusher("owner/name", output_dir)
    >>> pusher.push(output_dir / "checkpoint-500", step=500)
    >>> print(pusher.finish(tag="v1"))
    ```

    During an upload, only the newest of the further checkpoints waits; the others are superseded. Only the constructor
    raises exceptions. Later errors are logged and listed in the report.

    Args:
        repo_id: "owner/name" of a repository.
        output_dir: output folder of the training, on the file system of the checkpoints. Snapshots are in its
            subfolder `.pushing`, which is emptied at the start and removed at the end.
        private: whether to create a private repository. An existing one keeps its visibility.
        repo_type: kind of the repository.
        unit: what is counted in place of steps, for messages of commits and for the report.

    Raises:
        ValueError: `repo_id` is malformed.
    """

    def __init__(
        self,
        repo_id: str,
        output_dir: str | Path,
        *,
        private: bool = True,
        repo_type: RepoType = "model",
        unit: str = "step",
    ):
        check_repo_id(repo_id)
        self._private = private
        self._repo_type: RepoType = repo_type
        self._snapshots = Path(output_dir, ".pushing")
        shutil.rmtree(self._snapshots, ignore_errors=True)
        disable_progress_bars()  # those of huggingface_hub would overwrite the training's progress bar
        self._changed = Condition()  # guards the attributes below
        self._report = PushReport(repo_id, unit=unit)
        self._uploading: _Snapshot | None = None
        self._waiting: _Snapshot | None = None
        self._tag: str | None = None
        self._closed = False
        self._thread = Thread(target=self._work, name="checkpoint-pusher", daemon=True)
        self._thread.start()

    @property
    def is_finished(self) -> bool:
        """Whether `finish` has been called."""
        return self._closed

    def push(self, folder: str | Path, step: int, training_state: str | Path | None = None) -> None:
        """Take a snapshot of `folder`, and return while it is pushed. Afterwards the folder may be renamed or deleted,
        and its files may be replaced, but they must not be modified in place.

        Args:
            folder: model folder, of which `published_files` are pushed.
            step: training step of the checkpoint.
            training_state: folder with the training state, which replaces `last-checkpoint/` in the repository.
        """
        if self._closed:
            self._fail(step, "push was called after finish")
            return
        try:
            snapshot = self._take_snapshot(Path(folder), step, training_state)
        except Exception as error:
            self._fail(step, f"cannot take a snapshot: {error}")
            return
        with self._changed:
            superseded, self._waiting = self._waiting, snapshot
            if superseded is not None and superseded.step != step:
                self._report.superseded.append(superseded.step)
            self._changed.notify()
        if superseded is not None:
            shutil.rmtree(superseded.folder, ignore_errors=True)

    def finish(self, tag: str | None = None, timeout: float = FINISH_TIMEOUT) -> PushReport:
        """Wait for the remaining pushes, and tag the last commit. Nothing can be pushed afterwards.

        Args:
            tag: new tag, or None.
            timeout: maximum number of seconds to wait. Later pushes are reported as failed. They end with the process
                or, if huggingface_hub uploads several files in its own threads, when these time out.
        """
        with self._changed:
            self._tag = tag
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout)
        with self._changed:
            report = deepcopy(self._report)  # because the thread may still run
            unfinished = [snapshot.step for snapshot in (self._uploading, self._waiting) if snapshot is not None]
            self._waiting = self._tag = None
        too_late = f"not finished {timeout:g} s after the end of training"
        report.failed |= dict.fromkeys(unfinished, too_late)
        if tag is not None and report.tag is None and report.tag_fault is None:
            report.tag_fault = too_late
        shutil.rmtree(self._snapshots, ignore_errors=True)
        return report

    def _take_snapshot(self, folder: Path, step: int, training_state: str | Path | None) -> _Snapshot:
        self._snapshots.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix=f"{step}-", dir=self._snapshots))
        try:
            _link(folder, published_files(folder), place / "model")
            if training_state is not None:
                state = Path(training_state)
                _link(state, published_files(state, but=IGNORED_FILES), place / "training-state")
            return _Snapshot(step, place)
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise

    def _work(self) -> None:
        while (snapshot := self._next()) is not None:
            self._upload(snapshot)
            shutil.rmtree(snapshot.folder, ignore_errors=True)
        if self._tag is not None:
            self._make_tag(self._tag)

    def _next(self) -> _Snapshot | None:
        """Wait for the next snapshot to upload; None after the last one."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting is not None or self._closed)
            self._uploading, self._waiting = self._waiting, None
            return self._uploading

    def _upload(self, snapshot: _Snapshot) -> None:
        state = snapshot.folder / "training-state"
        try:
            commit = push_folder(
                snapshot.folder / "model",
                self._report.repo_id,
                private=self._private,
                message=f"{self._report.unit.capitalize()} {snapshot.step}",
                training_state=state if state.is_dir() else None,
                repo_type=self._repo_type,
            )
        except Exception as error:
            with self._changed:
                self._uploading = None
                self._fail(snapshot.step, str(error))
        else:
            with self._changed:
                self._uploading = None
                self._report.pushed[snapshot.step] = commit.oid
                self._report.failed.pop(snapshot.step, None)
            logger.info("pushed %s %d: %s", self._report.unit, snapshot.step, commit.commit_url)

    def _make_tag(self, tag: str) -> None:
        commits = list(self._report.pushed.values())
        try:
            if not commits:
                raise PushError("nothing was pushed")
            tag_commit(self._report.repo_id, tag, commits[-1], self._repo_type)
            self._report.tag = tag
        except Exception as error:
            self._report.tag_fault = str(error)

    def _fail(self, step: int, reason: str) -> None:
        logger.warning("%s %d was not pushed: %s", self._report.unit, step, reason)
        with self._changed:
            self._report.failed[step] = reason


def _link(folder: Path, paths: list[str], target: Path) -> None:
    """Create hard links in `target` to the files `paths` of `folder`, or copies if the file system has no hard
    links."""
    for path in paths:
        source, link = (folder / path).resolve(), target / path
        link.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, link)
        except OSError:
            shutil.copy2(source, link)
