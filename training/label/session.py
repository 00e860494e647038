"""Who sees which pair next. People at the page and simulated annotators use the same `Session`."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from training.label.pairs import Pair
from training.label.votes import SIDES, Choice, Side, Vote, VoteFile

# A repeated pair was seen at least this many presentations before, so that it is not remembered.
REPEAT_GAP = 10
# Number of last votes from which the time of a vote is estimated.
RECENT_VOTES = 20


@dataclass(frozen=True)
class Plan:
    """How many votes are collected.

    Attributes:
        repeats: number of hidden repeats over the number of pairs, for each annotator.
        goal: number of pairs that each annotator votes on; None for all.
        annotators_per_pair: number of annotators that vote on a pair; None for all.
    """

    repeats: float = 0.1
    goal: int | None = None
    annotators_per_pair: int | None = None


@dataclass(frozen=True)
class Presentation:
    """A pair as an annotator sees it.

    Attributes:
        number: number of the vote that answers it.
        pair: the pair.
        left: the picture on the left.
    """

    number: int
    pair: Pair
    left: Side


@dataclass(frozen=True)
class Progress:
    """
    Attributes:
        done: number of presentations that were answered, hidden repeats included.
        remaining: number of presentations to come.
        seconds: estimate of the time that these take; None before the first votes.
    """

    done: int
    remaining: int
    seconds: float | None


class Session:
    """Presents pairs to annotators, and takes their votes.

    Which pair comes next depends only on the seed and on the file of votes, so that a server that was restarted goes
    on where it was.

    Args:
        pairs: the pairs.
        order: indices of the pairs, in the order in which they are presented.
        votes: file of votes.
        annotators: names.
        seed: seed of the sides and of the hidden repeats.
        plan: how many votes are collected.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        order: Sequence[int],
        votes: VoteFile,
        annotators: Sequence[str],
        seed: int = 0,
        plan: Plan | None = None,
    ) -> None:
        self.annotators = tuple(annotators)
        self.pairs = {pairs[index].key: pairs[index] for index in order}
        self._votes = votes
        self._seed = seed
        self._plan = plan or Plan()
        self._shown: dict[str, Presentation] = {}
        self._dropped: set[str] = set()

    def present(self, annotator: str) -> Presentation | None:
        """The pair that the annotator has to vote on: the same one until there is a vote. None at the end."""
        number = self.next_number(annotator)
        shown = self._shown.get(annotator)
        if shown is None or shown.number != number or shown.pair.key in self._dropped:
            self._shown.pop(annotator, None)
            shown = self._choose(annotator, number)
            if shown is not None:
                self._shown[annotator] = shown
        return shown

    def vote(
        self, annotator: str, number: int, pair: str, left: Side, choice: Choice, seconds: float | None = None
    ) -> bool:
        """
        Record a vote, unless the presentation has been answered.

        Args:
            annotator: name.
            number, pair, left: number, key of the pair and picture on the left of the presentation.
            choice: the vote.
            seconds: time that it took.

        Returns:
            Whether it was recorded.

        Raises:
            ValueError: an argument is impossible.
            OSError: the vote cannot be written. Nothing has changed.
        """
        if pair not in self.pairs:
            raise ValueError(f"pair: expected the key of a pair, got {pair!r}")
        if not self._is_next(annotator, number):
            return False
        self._votes.vote(Vote(annotator, number, pair, left, choice, seconds, time.time()))
        return True

    def undo(self, annotator: str, number: int) -> bool:
        """
        Take back the annotator's last vote; its pair is presented again.

        Args:
            annotator: name.
            number: number of the present presentation.

        Returns:
            Whether a vote was taken back by this call.

        Raises:
            ValueError, OSError: as for `vote`.
        """
        if not self._is_next(annotator, number) or not self.can_undo(annotator):
            return False
        self._votes.undo(annotator)
        return True

    def next_number(self, annotator: str) -> int:
        """Number of the annotator's next vote or undo."""
        return self._votes.next_number(annotator)

    def can_undo(self, annotator: str) -> bool:
        """Whether a vote of the annotator stands."""
        return bool(self._votes.tally.votes.get(annotator))

    def drop(self, pair: Pair) -> None:
        """Never present a pair again, because its pictures cannot be shown."""
        self._dropped.add(pair.key)

    def progress(self, annotator: str) -> Progress:
        """How far an annotator is."""
        seen = self._counts(annotator)
        fresh = len(self._fresh(annotator, seen))
        repeats = self._missing_repeats(seen, fresh)
        remaining = fresh + min(repeats, len(self._repeatable(annotator, seen)) if not fresh else repeats)
        times = [vote.seconds for vote in self._voted(annotator) if vote.seconds is not None][-RECENT_VOTES:]
        return Progress(seen.total(), remaining, remaining * median(times) if times else None)

    def _is_next(self, annotator: str, number: int) -> bool:
        """Whether a presentation has no answer; a number that was never given is an error."""
        expected = self.next_number(annotator)
        if number < 0 or number > expected:
            raise ValueError(f"number: expected 0 to {expected}, got {number}")
        return number == expected

    def _choose(self, annotator: str, number: int) -> Presentation | None:
        undone = self._votes.tally.undone.get(annotator)
        if undone is not None and undone.pair in self.pairs and undone.pair not in self._dropped:
            return Presentation(number, self.pairs[undone.pair], undone.left)
        rng = np.random.default_rng([self._seed, number, *annotator.encode()])
        left = SIDES[rng.integers(2)]
        seen = self._counts(annotator)
        fresh = self._fresh(annotator, seen)
        repeats = self._missing_repeats(seen, len(fresh))
        repeatable = self._repeatable(annotator, seen) if repeats else []
        if repeatable and rng.random() < repeats / (repeats + len(fresh)):
            return Presentation(number, self.pairs[repeatable[rng.integers(len(repeatable))]], left)
        return Presentation(number, fresh[0], left) if fresh else None

    def _voted(self, annotator: str) -> list[Vote]:
        """The annotator's votes on pairs of this session."""
        return [vote for vote in self._votes.tally.votes.get(annotator, ()) if vote.pair in self.pairs]

    def _counts(self, annotator: str) -> Counter[str]:
        """Number of the annotator's votes by pair."""
        return Counter(vote.pair for vote in self._voted(annotator))

    def _fresh(self, annotator: str, seen: Counter[str]) -> list[Pair]:
        """The pairs that the annotator sees for the first time from now on, in order."""
        fresh = [pair for key, pair in self.pairs.items() if key not in seen and key not in self._dropped]
        limit = self._plan.annotators_per_pair
        if limit is not None:
            voted, shown = self._taken_by_others(annotator)
            fresh = [pair for pair in fresh if voted[pair.key] < limit]
            # Those that others have before them come last, in case they are never answered.
            fresh.sort(key=lambda pair: voted[pair.key] + shown[pair.key] >= limit)
        return fresh if self._plan.goal is None else fresh[: max(0, self._plan.goal - len(seen))]

    def _taken_by_others(self, annotator: str) -> tuple[Counter[str], Counter[str]]:
        """For each pair, the numbers of other annotators who voted on it, and who have it before them."""
        voted: Counter[str] = Counter()
        for name, votes in self._votes.tally.votes.items():
            if name != annotator:
                voted.update({vote.pair for vote in votes if vote.choice != "skip"})
        shown = Counter(
            shown.pair.key
            for name, shown in self._shown.items()
            if name != annotator and shown.number == self.next_number(name)
        )
        return voted, shown

    def _missing_repeats(self, seen: Counter[str], fresh: int) -> int:
        """Number of repeats that are still to come if all fresh pairs do."""
        repeated = sum(count > 1 for count in seen.values())
        return max(0, round(self._plan.repeats * (len(seen) + fresh)) - repeated)

    def _repeatable(self, annotator: str, seen: Counter[str]) -> list[str]:
        """Keys of the pairs that may be repeated now."""
        latest = self.next_number(annotator) - REPEAT_GAP
        return [
            vote.pair
            for vote in self._voted(annotator)
            if seen[vote.pair] == 1
            and vote.choice != "skip"
            and vote.number <= latest
            and vote.pair not in self._dropped
        ]
