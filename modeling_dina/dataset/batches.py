"""Processing of decoded rows in batches of one shape, which may come from many chunks of a unit."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any, NamedTuple

import numpy as np

from modeling_dina.isolation import PROBE_PROMPT, isolate_failures

from .rows import Decoded, Unit, writable

# Decoded rows that wait for others of their shape, in batches. It bounds memory if nearly all shapes differ.
MAX_WAITING_BATCHES = 16

# Columns of a row in the output.
Columns = dict[str, Any]
# Maps prompts and inputs [B, …] of one shape to the columns of each input.
Function = Callable[[Sequence[str], np.ndarray], Sequence[Columns]]
# Begins to process prompts and inputs [B, …] of one shape. The result has the columns of each input, or its error.
Submit = Callable[[Sequence[str], np.ndarray], "Future[list[Columns | str]]"]


def process_batch(function: Function, prompts: Sequence[str], inputs: np.ndarray) -> list[Columns | str]:
    """Apply a function to a batch; a bad input does not affect the others.

    Returns:
        The columns of each input, or the error of an input for which the function fails.

    Raises:
        ValueError: the function also fails for a plain input.
    """

    def apply(rows: Sequence[int]) -> Sequence[Columns]:
        part = slice(rows[0], rows[-1] + 1)
        return function(prompts[part], inputs[part])

    def probe() -> None:
        function([PROBE_PROMPT], _plain(inputs[:1]))

    results, failures = isolate_failures(apply, range(len(prompts)), probe)
    outcomes: dict[int, Columns | str] = {**dict(results), **dict(failures)}
    return [outcomes[row] for row in range(len(prompts))]


def _plain(inputs: np.ndarray) -> np.ndarray:
    """Small grey images [B, 64, 64, 3], or zeros [..., 64, 64], if `inputs` are of this kind and not smaller."""
    if inputs.dtype == np.uint8:
        return np.full_like(inputs[:, :64, :64], 128)
    return np.zeros_like(inputs[..., :64, :64])


class _Input(NamedTuple):
    unit: Unit
    number: int
    prompt: str
    values: np.ndarray


class _Open:
    """A unit of which rows are missing: its chunks so far, and the results by number of the row."""

    def __init__(self) -> None:
        self.chunks: list[Decoded] = []
        self.outcomes: dict[int, Columns | str] = {}
        self.is_read = False

    def rows(self) -> list[Columns] | None:
        """All rows in order, or None if some are missing."""
        if not self.is_read or len(self.outcomes) < sum(len(chunk.columns) for chunk in self.chunks):
            return None
        rows = [columns for chunk in self.chunks for columns in chunk.columns]
        return [
            columns | ({"error": writable(outcome)} if isinstance(outcome, str) else {"error": None, **outcome})
            for columns, outcome in ((row, self.outcomes[number]) for number, row in enumerate(rows))
        ]


class Batches:
    """Processes rows in batches of one shape. While batches are processed, this thread collects the next ones.

    Args:
        submit: begins to process a batch.
        batch_size: number of rows in a batch.
        max_running: number of batches that are processed at a time.
        progress: called with a number of further finished rows.
    """

    def __init__(self, submit: Submit, batch_size: int, max_running: int, progress: Callable[[int], None]):
        self._submit, self._batch_size, self._max_running, self._progress = submit, batch_size, max_running, progress
        self._units: dict[Unit, _Open] = {}
        self._waiting: dict[tuple[int, ...], list[_Input]] = defaultdict(list)
        self._running: dict[Future, list[tuple[Unit, int]]] = {}

    def process(self, chunks: Iterable[Decoded]) -> Iterator[tuple[Unit, list[Columns]]]:
        """Process all chunks, of one unit after another.

        Yields:
            Each unit, once all of its rows are finished, with the columns of every row in order: those of the chunk,
            `error`, and what processing adds.

        Raises:
            ValueError: processing also fails for a plain input.
        """
        try:
            yield from self._process(chunks)
        except Exception:
            yield from self._finished()  # so that these are not lost
            raise

    def _process(self, chunks: Iterable[Decoded]) -> Iterator[tuple[Unit, list[Columns]]]:
        for chunk in chunks:
            if chunk.unit not in self._units:
                self._finish_reading()
            self._add(chunk)
            yield from self._finished()
        self._finish_reading()
        while self._running:
            self._collect()
            yield from self._finished()
        yield from self._finished()

    def _add(self, chunk: Decoded) -> None:
        unit = self._units.setdefault(chunk.unit, _Open())
        unit.chunks.append(chunk)
        unit.outcomes |= chunk.errors
        self._progress(len(chunk.errors))
        for numbers, inputs in chunk.groups:
            group = self._waiting[inputs.shape[1:]]
            for number, values in zip(numbers, inputs, strict=True):
                prompt = chunk.columns[number - chunk.start]["prompt"]
                group.append(_Input(chunk.unit, number, prompt, values))
                if len(group) == self._batch_size:
                    self._begin(group)
        while sum(map(len, self._waiting.values())) > MAX_WAITING_BATCHES * self._batch_size:
            self._begin(max(self._waiting.values(), key=len))

    def _finish_reading(self) -> None:
        """Begin with what waits, because the rest of its unit is not far away, and its results should not wait."""
        for group in self._waiting.values():
            self._begin(group)
        self._waiting.clear()
        for unit in self._units.values():
            unit.is_read = True

    def _begin(self, group: list[_Input]) -> None:
        """Begin to process a group, and empty it."""
        if not group:
            return
        if len(self._running) == self._max_running:
            self._collect()
        batch = self._submit([each.prompt for each in group], np.stack([each.values for each in group]))
        self._running[batch] = [(each.unit, each.number) for each in group]
        group.clear()

    def _collect(self) -> None:
        """Wait until a batch is finished."""
        done = wait(self._running, return_when=FIRST_COMPLETED).done
        # Failures are last, so that the other results are not lost.
        for future in sorted(done, key=lambda each: each.exception() is not None):
            outcomes = future.result()
            rows = self._running.pop(future)
            for (unit, number), outcome in zip(rows, outcomes, strict=True):
                self._units[unit].outcomes[number] = outcome
            self._progress(len(rows))

    def _finished(self) -> Iterator[tuple[Unit, list[Columns]]]:
        for unit, opened in list(self._units.items()):
            rows = opened.rows()
            if rows is not None:
                del self._units[unit]
                yield unit, rows
