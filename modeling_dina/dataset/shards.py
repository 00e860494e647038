"""The output of a data set, in Parquet shards that are complete or absent."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count as count_from
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from modeling_dina.files import atomic_path

from .rows import Chunk, Row, Unit
from .sources import Source

COLUMNS = {
    "key": pa.string(),
    "prompt": pa.string(),
    "score": pa.float32(),
    "spread": pa.float32(),
    "error": pa.string(),
}
NUMBERS = pa.list_(pa.float32())
LEVELS = {"level_scores": NUMBERS}
# What `ranking` computes win probabilities from: `samples` [K, N] in row-major order, and the K variances and weights
# of the levels, which Parquet stores only once.
SAMPLES = {"group": pa.string(), "samples": NUMBERS, "variance": NUMBERS, "weights": NUMBERS}


class Selection(Protocol):
    """Some of a source's units."""

    def may_have(self, piece: int, pieces: int) -> bool:
        """Whether the selection may have units of a piece, of so many."""

    def has(self, unit: Unit, pieces: int) -> bool:
        """Whether the selection has a unit of one of so many pieces."""


@dataclass(frozen=True)
class Share:
    """The part of a source's units that one of several runs on one folder computes: whole pieces, or single units if
    there are fewer pieces than runs.

    Attributes:
        index: number of the run, from 0.
        count: number of runs.
    """

    index: int
    count: int

    def may_have(self, piece: int, pieces: int) -> bool:
        return pieces < self.count or piece % self.count == self.index

    def has(self, unit: Unit, pieces: int) -> bool:
        if pieces < self.count:
            return (unit.piece + unit.block) % self.count == self.index
        return unit.piece % self.count == self.index


WHOLE = Share(0, 1)


class Units(ABC):
    """The units of a source's rows, of which some are finished.

    Args:
        size: number of rows of the source in a unit; the last unit of a piece may have fewer.
    """

    def __init__(self, size: int):
        self.size = size

    @abstractmethod
    def is_done(self, unit: Unit) -> bool:
        """Whether a unit is finished."""

    @abstractmethod
    def is_short(self, unit: Unit) -> bool:
        """Whether a finished unit has fewer rows than `size`, so that it is the last of its piece."""

    def missing(self, source: Source, chunk_size: int, selection: Selection = WHOLE) -> Iterator[Chunk]:
        """Read the rows of the units that are not finished.

        Args:
            source: the rows.
            chunk_size: maximum number of rows in a chunk, which are of one unit.
            selection: the units that this run computes.
        """
        for piece in range(source.pieces):
            if not selection.may_have(piece, source.pieces):
                continue
            rows: Iterator[Row] | None = None
            for unit in self._units(source, piece):
                is_done = self.is_done(unit)
                if is_done or (source.lengths and not selection.has(unit, source.pieces)):
                    rows = None
                    if is_done and source.lengths is None and self.is_short(unit):
                        break
                    continue
                if rows is None:
                    rows = source.read(piece, unit.block * self.size)
                if not selection.has(unit, source.pieces):
                    # These rows are read, because only this shows whether there are more.
                    count = sum(1 for _ in islice(rows, self.size))
                else:
                    count = 0
                    for chunk, is_last in _split(islice(rows, self.size), chunk_size):
                        yield Chunk(unit, count, chunk, is_last)
                        count += len(chunk)
                if count < self.size:
                    break

    def _units(self, source: Source, piece: int) -> Iterator[Unit]:
        """The units of a piece; endless if its length is unknown."""
        blocks = count_from() if source.lengths is None else range(-(-source.lengths[piece] // self.size))
        return (Unit(piece, block) for block in blocks)


class Shards(Units):
    """A file for each finished unit.

    Args:
        folder: folder of the shards.
        size: as in `Units`.
    """

    def __init__(self, folder: Path, size: int):
        super().__init__(size)
        self.folder = folder

    @abstractmethod
    def path(self, unit: Unit) -> Path:
        """File of a unit."""

    @abstractmethod
    def write(self, unit: Unit, rows: list[dict[str, Any]]) -> None:
        """Write a shard.

        Args:
            unit: the unit.
            rows: columns of every row.
        """

    def is_done(self, unit: Unit) -> bool:
        return self.path(unit).exists()

    def is_short(self, unit: Unit) -> bool:
        return pq.read_metadata(self.path(unit)).num_rows < self.size


class ScoreShards(Shards):
    """Shards of scores. Shard `scores-PPPPP-BBBBB.parquet` has block B of piece P, that is the rows from number
    B times `size` on, in order. So the files in the order of their names have the rows in the order of the source,
    whichever processes wrote them.

    Args:
        folder, size: as in `Shards`.
        with_levels: shards have the column `level_scores`.
        with_samples: shards have the columns of `SAMPLES`.
    """

    def __init__(self, folder: Path, size: int, *, with_levels: bool = False, with_samples: bool = False):
        super().__init__(folder, size)
        self.schema = pa.schema(COLUMNS | (LEVELS if with_levels else {}) | (SAMPLES if with_samples else {}))

    def path(self, unit: Unit) -> Path:
        return self.folder / f"scores-{unit.piece:05d}-{unit.block:05d}.parquet"

    def paths(self) -> list[Path]:
        """Files of the finished shards, in order."""
        return sorted(self.folder.glob("scores-*.parquet"))

    def write(self, unit: Unit, rows: list[dict[str, Any]]) -> None:
        """Write a shard; a row without a key gets its position in the source, PPPPP-NUMBER."""
        start = unit.block * self.size
        named = [
            row | {"key": f"{unit.piece:05d}-{number}" if row["key"] is None else row["key"]}
            for number, row in enumerate(rows, start=start)
        ]
        with atomic_path(self.path(unit)) as partial:
            pq.write_table(pa.Table.from_pylist(named, self.schema), partial)

    def finished(self) -> dict[Unit, int]:
        """Numbers of rows of the finished units."""
        numbers = {path: path.stem.split("-")[1:] for path in self.paths()}
        return {
            Unit(int(piece), int(block)): pq.read_metadata(path).num_rows for path, (piece, block) in numbers.items()
        }

    def count(self) -> tuple[int, int]:
        """Numbers of rows and of rows with an error in the finished shards."""
        rows = errors = 0
        for path in self.paths():
            column = pq.read_table(path, columns=["error"])["error"]
            rows += len(column)
            errors += pc.count(column).as_py()
        return rows, errors


def _split(rows: Iterable[Row], size: int) -> Iterator[tuple[list[Row], bool]]:
    """Parts of the rows, and whether a part is the last one."""
    rows = iter(rows)
    part = list(islice(rows, size))
    while part:
        following = list(islice(rows, size))
        yield part, not following
        part = following
