"""Pushes checkpoints to the Hub while training goes on: snapshots by hard link, uploaded one after another by a thread
that no fault of the network lets reach the training."""

import logging
import os
import shutil
import tempfile
from collections.abc import Collection
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from threading import Condition, Thread

from huggingface_hub.utils import disable_progress_bars

from modeling_dina.hub.push import LITTER, PushError, check_repo_id, published_files, push_folder, tag_commit

logger = logging.getLogger(__name__)

FINISH_TIMEOUT = 1800.0  # seconds: a large checkpoint over a slow line


@dataclass
class PushReport:
    """What became of the checkpoints that were to be pushed to `repo_id`.

    Args:
        pushed: commit of each step, in the order they were made.
        superseded: steps whose turn had not come when a newer one took their place.
        failed: why a step was not pushed.
        tag: the one made on the last commit of `pushed`, or None.
        tag_fault: why one that was asked for was not made.
    """

    repo_id: str
    pushed: dict[int, str] = field(default_factory=dict)
    superseded: list[int] = field(default_factory=list)
    failed: dict[int, str] = field(default_factory=dict)
    tag: str | None = None
    tag_fault: str | None = None

    def __str__(self) -> str:
        lines = [f"pushed to {self.repo_id}: {_steps(self.pushed)}"]
        if self.pushed:
            lines[0] += f", last commit {list(self.pushed.values())[-1]}" + (f", tag {self.tag}" if self.tag else "")
        if self.superseded:
            lines.append(f"not pushed, for a newer one was there: {_steps(self.superseded)}")
        lines += [f"not pushed: step {step}: {reason}" for step, reason in self.failed.items()]
        if self.tag_fault:
            lines.append(f"not tagged: {self.tag_fault}")
        return "\n".join(lines)


def _steps(steps: Collection[int]) -> str:
    return f"step{'s' if len(steps) > 1 else ''} {', '.join(map(str, steps))}" if steps else "nothing"


@dataclass(frozen=True)
class _Snapshot:
    step: int
    folder: Path

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def training_state(self) -> Path:
        return self.folder / "training-state"


class CheckpointPusher:
    """Pushes checkpoints in the background; for one process of a training only.

    ```python
    >>> pusher = CheckpointPusher("owner/name", output_dir)
    >>> pusher.push(output_dir / "checkpoint-500", step=500)
    >>> print(pusher.finish(tag="v1"))
    ```

    While one checkpoint is uploaded, the newest of those that came meanwhile waits; the others are superseded. After
    the construction nothing raises: what was not pushed, and why, is logged and stands in the report.

    Args:
        repo_id: "owner/name" of a model repository.
        output_dir: the training's own folder, on the file system of the checkpoints. Snapshots are kept in its
            subfolder `.pushing`, which is emptied of what a killed run has left, and removed at the end.
        private: how to create the repository. One that exists keeps its visibility.

    Raises:
        ValueError: `repo_id` is malformed.
    """

    def __init__(self, repo_id: str, output_dir: str | Path, *, private: bool = True):
        check_repo_id(repo_id)
        self._private = private
        self._snapshots = Path(output_dir, ".pushing")
        shutil.rmtree(self._snapshots, ignore_errors=True)
        disable_progress_bars()  # of huggingface_hub, which would be drawn over the training's own
        self._changed = Condition()  # guards what follows
        self._report = PushReport(repo_id)
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
        """Take a snapshot of `folder` to be pushed, and return. The folder may then be renamed or deleted, and its
        files be replaced, but not written into.

        Args:
            folder: a model. Of its files, `published_files` are pushed.
            step: that it was saved at.
            training_state: a folder with what a resumed training needs; it becomes `last-checkpoint/` in the
                repository, in place of what was there.
        """
        if self._closed:
            self._fail(step, "it came after the end of training")
            return
        try:
            snapshot = self._take_snapshot(Path(folder), step, training_state)
        except Exception as error:
            self._fail(step, f"no snapshot could be taken: {error}")
            return
        with self._changed:
            superseded, self._waiting = self._waiting, snapshot
            if superseded is not None and superseded.step != step:
                self._report.superseded.append(superseded.step)
            self._changed.notify()
        if superseded is not None:
            shutil.rmtree(superseded.folder, ignore_errors=True)

    def finish(self, tag: str | None = None, timeout: float = FINISH_TIMEOUT) -> PushReport:
        """Wait for what is still to be pushed, and tag the last commit. Nothing can be pushed afterwards.

        Args:
            tag: a new tag.
            timeout: seconds to wait at most. What is not done by then is reported so, and left: it ends with the
                process, or, where huggingface_hub sends several files in threads of its own, when these time out.
        """
        with self._changed:
            self._tag = tag
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout)
        with self._changed:
            report = deepcopy(self._report)  # the thread may live on
            unfinished = [snapshot.step for snapshot in (self._uploading, self._waiting) if snapshot is not None]
            self._waiting = self._tag = None
        too_late = f"not done {timeout:g} s after the end of training"
        report.failed |= dict.fromkeys(unfinished, too_late)
        if tag is not None and report.tag is None and report.tag_fault is None:
            report.tag_fault = too_late
        shutil.rmtree(self._snapshots, ignore_errors=True)
        return report

    def _take_snapshot(self, folder: Path, step: int, training_state: str | Path | None) -> _Snapshot:
        self._snapshots.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix=f"{step}-", dir=self._snapshots))
        try:
            snapshot = _Snapshot(step, place)
            _link(folder, published_files(folder), snapshot.model)
            if training_state is not None:
                _link(Path(training_state), published_files(training_state, but=LITTER), snapshot.training_state)
            return snapshot
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
        """The snapshot to upload now, or None when there will be no more."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting is not None or self._closed)
            self._uploading, self._waiting = self._waiting, None
            return self._uploading

    def _upload(self, snapshot: _Snapshot) -> None:
        try:
            commit = push_folder(
                snapshot.model,
                self._report.repo_id,
                private=self._private,
                message=f"Step {snapshot.step}",
                training_state=snapshot.training_state if snapshot.training_state.is_dir() else None,
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
            logger.info("step %d is pushed: %s", snapshot.step, commit.commit_url)

    def _make_tag(self, tag: str) -> None:
        commits = list(self._report.pushed.values())
        try:
            if not commits:
                raise PushError("nothing was pushed")
            tag_commit(self._report.repo_id, tag, commits[-1])
            self._report.tag = tag
        except Exception as error:
            self._report.tag_fault = str(error)

    def _fail(self, step: int, reason: str) -> None:
        logger.warning("step %d is not pushed: %s", step, reason)
        with self._changed:
            self._report.failed[step] = reason


def _link(folder: Path, paths: list[str], target: Path) -> None:
    """Hard links to the files `paths` of `folder` under `target`; copies where the file system has no links."""
    for path in paths:
        source, link = (folder / path).resolve(), target / path
        link.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, link)
        except OSError:
            shutil.copy2(source, link)
