"""The output of a data set's scores: Parquet shards that are complete or absent."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

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
LEVELS = {"level_scores": pa.list_(pa.float32())}


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
        """Whether the share has units of a piece, of so many."""
        return pieces < self.count or piece % self.count == self.index

    def has(self, unit: Unit, pieces: int) -> bool:
        """Whether the share has a unit of one of so many pieces."""
        if pieces < self.count:
            return (unit.piece + unit.block) % self.count == self.index
        return unit.piece % self.count == self.index


WHOLE = Share(0, 1)


class Shards:
    """Shards of a source's scores. Shard `scores-PPPPP-BBBBB.parquet` has block B of piece P, that is the rows from
    number B times `size` on, in order; the last shard of a piece may have fewer. So the files in the order of their
    names have the rows in the order of the source, whichever processes wrote them.

    Args:
        folder: folder of the shards.
        size: number of rows in a shard.
        with_levels: shards have the column `level_scores`.
    """

    def __init__(self, folder: Path, size: int, *, with_levels: bool = False):
        self.folder, self.size = folder, size
        self._schema = pa.schema(COLUMNS | (LEVELS if with_levels else {}))

    def path(self, unit: Unit) -> Path:
        """File of a unit's scores."""
        return self.folder / f"scores-{unit.piece:05d}-{unit.block:05d}.parquet"

    def paths(self) -> list[Path]:
        """Files of the finished shards, in order."""
        return sorted(self.folder.glob("scores-*.parquet"))

    def write(self, unit: Unit, rows: list[dict[str, Any]]) -> None:
        """Write a shard.

        Args:
            unit: the unit.
            rows: columns of every row; a row without a key gets its position in the source, PPPPP-NUMBER.
        """
        start = unit.block * self.size
        named = [
            row | {"key": f"{unit.piece:05d}-{number}" if row["key"] is None else row["key"]}
            for number, row in enumerate(rows, start=start)
        ]
        with atomic_path(self.path(unit)) as partial:
            pq.write_table(pa.Table.from_pylist(named, self._schema), partial)

    def missing(self, source: Source, chunk_size: int, share: Share = WHOLE) -> Iterator[Chunk]:
        """Read the rows of the shards that are absent.

        Args:
            source: the rows.
            chunk_size: maximum number of rows in a chunk, which are of one unit.
            share: the units that this run computes.
        """
        for piece in range(source.pieces):
            if not share.may_have(piece, source.pieces):
                continue
            rows: Iterator[Row] | None = None
            block, is_last = 0, False
            while not is_last:
                unit = Unit(piece, block)
                block += 1
                if self.path(unit).exists():
                    is_last = pq.read_metadata(self.path(unit)).num_rows < self.size
                    rows = None
                    continue
                if rows is None:
                    rows = source.read(piece, unit.block * self.size)
                if not share.has(unit, source.pieces):
                    is_last = sum(1 for _ in islice(rows, self.size)) < self.size
                    continue
                count = 0
                for chunk in _split(islice(rows, self.size), chunk_size):
                    yield Chunk(unit, count, chunk)
                    count += len(chunk)
                is_last = count < self.size

    def count(self) -> tuple[int, int]:
        """Numbers of rows and of rows with an error in the finished shards."""
        rows = errors = 0
        for path in self.paths():
            column = pq.read_table(path, columns=["error"])["error"]
            rows += len(column)
            errors += pc.count(column).as_py()
        return rows, errors


def _split(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    rows = iter(rows)
    while chunk := list(islice(rows, size)):
        yield chunk
