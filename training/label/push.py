"""Pushes the exported votes to a private data set repository while people go on voting."""

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from modeling_dina.files import write_text
from modeling_dina.hub.background import CheckpointPusher, PushReport
from training.label.export import write_export

logger = logging.getLogger(__name__)

CARD = """---
task_categories: [text-to-image]
configs:
- config_name: default
  data_files: data/*.parquet
---
Votes of people on pairs of pictures. Each row has a prompt, two pictures, the share of votes for the first one
(`target`), and the number of annotators (`weight`).
"""


class VotePusher:
    """Exports the votes in a folder, with the pictures, and pushes them in the background. Errors are logged and
    listed in the report of `finish`; they do not reach the page.

    Args:
        folder: folder of the votes. The export is in its subfolder `.export`.
        repo_id: "owner/name" of a data set repository, created as a private one.
        every: number of votes and undos between two pushes.
        annotators: whether the names of annotators are pushed.

    Raises:
        ValueError: `repo_id` is malformed.
    """

    def __init__(self, folder: Path, repo_id: str, *, every: int, annotators: bool) -> None:
        self._folder = folder
        self._every = every
        self._annotators = annotators
        self._changes = 0
        self._pusher = CheckpointPusher(repo_id, folder, repo_type="dataset", unit="vote")
        # One at a time, because they write the same files.
        self._exporter = ThreadPoolExecutor(max_workers=1, thread_name_prefix="export")

    def note(self, votes: int) -> None:
        """Begin a push if there were enough changes, of which this is one; `votes` is the number of votes that
        stand."""
        self._changes += 1
        if self._changes >= self._every:
            self._changes = 0
            self._push(votes)

    def finish(self, votes: int) -> PushReport:
        """Push the present votes, if there are any, and wait for all pushes."""
        if votes:
            self._push(votes)
        self._exporter.shutdown()
        return self._pusher.finish()

    def _push(self, votes: int) -> None:
        self._exporter.submit(self._export_and_push, votes)

    def _export_and_push(self, votes: int) -> None:
        out = self._folder / ".export"
        try:
            write_export(self._folder, out, annotators=self._annotators, embed=True)
            # Errors contain paths of this machine.
            (out / "errors.jsonl").unlink()
            write_text(out / "README.md", CARD)
        except (OSError, ValueError) as error:
            logger.warning("votes are not exported: %s", error)
        else:
            self._pusher.push(out, votes)
