"""The votes, in a file of JSON lines to which every vote and every undo is appended at once.

A line is numbered within its annotator's lines, and the presentation that it answers has the same number. An answer
that comes twice, after a lost response or from a second browser, has a number that is taken and is not written again.
"""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from filelock import FileLock, Timeout

from modeling_dina.files import Journal

VOTES_FILE = "votes.jsonl"
HEADER = {"format": "dina votes", "version": 1}
Side = Literal["a", "b"]
Choice = Literal["left", "right", "tie", "both_bad", "skip"]
SIDES: tuple[Side, ...] = get_args(Side)
CHOICES: tuple[Choice, ...] = get_args(Choice)


@dataclass(frozen=True)
class Vote:
    """
    Attributes:
        annotator: name.
        number: number of the annotator's lines before this one, undos included.
        pair: key of the pair.
        left: the picture that was on the left.
        choice: what was chosen.
        seconds: time from the display of both pictures to the vote; None if unknown.
        time: time of the vote in seconds since 1970.
    """

    annotator: str
    number: int
    pair: str
    left: Side
    choice: Choice
    seconds: float | None = None
    time: float = 0.0

    @property
    def preference(self) -> float | None:
        """1 if a is preferred, 0 if b is, 0.5 for a tie and for two bad pictures, None for a skipped pair."""
        match self.choice:
            case "left":
                return 1.0 if self.left == "a" else 0.0
            case "right":
                return 0.0 if self.left == "a" else 1.0
            case "skip":
                return None
            case _:
                return 0.5


class Tally:
    """What stands of a sequence of votes and undos.

    Args:
        records: lines of a file of votes.

    Attributes:
        votes: for each annotator, the votes that were not undone, in order.
        lines: for each annotator, the number of votes and undos.
        undone: for each annotator, the vote that was undone last if no vote came after that.
    """

    def __init__(self, records: Iterable[dict[str, Any]] = ()) -> None:
        self.votes: dict[str, list[Vote]] = {}
        self.lines: dict[str, int] = {}
        self.undone: dict[str, Vote] = {}
        for record in records:
            self.add(record)

    def add(self, record: dict[str, Any]) -> None:
        """Count one line of the file."""
        name = record["annotator"]
        votes = self.votes.setdefault(name, [])
        if record.get("undo"):
            self.undone[name] = votes.pop()
        else:
            votes.append(Vote(**record))
            self.undone.pop(name, None)
        self.lines[name] = self.lines.get(name, 0) + 1

    def standing(self) -> list[Vote]:
        """The votes of all annotators that were not undone."""
        return [vote for votes in self.votes.values() for vote in votes]


def read_votes(folder: Path) -> list[Vote]:
    """The votes in a folder that stand, by annotator. A server may be adding votes at the same time.

    Raises:
        ValueError: there is no file of votes, or it is damaged.
    """
    with _reading(folder):
        return Tally(Journal.read(folder / VOTES_FILE)).standing()


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """Convert the errors of a file that is missing or damaged to a ValueError."""
    try:
        yield
    except (OSError, TypeError, KeyError, IndexError) as error:
        raise ValueError(f"out: expected a folder with votes, got {folder}: {error!r}") from error


class VoteFile:
    """The file of votes of a folder, for the one process that writes it. A vote that is cut off by a crash was never
    confirmed, and is removed.

    Args:
        folder: the folder, which is created.

    Attributes:
        tally: what the file says.

    Raises:
        ValueError: another process writes the file, or it is damaged.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # The system releases the lock when the process ends, however it ends.
        self._lock = FileLock(folder / ".votes.lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise ValueError(f"out: expected a folder that no other server writes to, got {folder}") from error
        with _reading(folder):
            self._journal = Journal(folder / VOTES_FILE, HEADER)
            self.tally = Tally(self._journal.records)

    def next_number(self, annotator: str) -> int:
        """The number of the annotator's next line."""
        return self.tally.lines.get(annotator, 0)

    def vote(self, vote: Vote) -> None:
        """Append a vote, and wait until the disk has it.

        Raises:
            OSError: it cannot be written, for example because the disk is full. Nothing has changed.
        """
        self._append(asdict(vote))

    def undo(self, annotator: str) -> None:
        """Append the undo of the annotator's last vote that stands, of which there is at least one. Errors as for
        `vote`."""
        record = {"annotator": annotator, "number": self.next_number(annotator), "undo": True, "time": time.time()}
        self._append(record)

    def close(self) -> None:
        """Let other processes write the file."""
        self._lock.release()

    def _append(self, record: dict[str, Any]) -> None:
        self._journal.append(record)
        self.tally.add(record)
