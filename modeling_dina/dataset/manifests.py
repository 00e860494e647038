"""Manifests, that is tables with the columns "prompt" and "image", as CSV, JSON lines or Parquet, read row by row."""

import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub.utils.sha import sha_fileobj

from .rows import Row, text_of

TABLE_SUFFIXES = (".csv", ".jsonl", ".parquet")
REQUIRED = ("prompt", "image")
# Number of Parquet rows in memory at a time.
ROWS_A_BATCH = 64


class Manifest:
    """A manifest. Iterating over it reads its rows; a bad row has an error and does not raise.

    Args:
        path: the file.
        group_column: column with the names of groups, if rows have one.

    Attributes:
        path: the file.
        columns: names of the columns.

    Raises:
        ValueError: the file is missing, unreadable or empty, or lacks a column.
    """

    def __init__(self, path: Path, group_column: str | None = None):
        if path.suffix.lower() not in TABLE_SUFFIXES:
            raise ValueError(f"manifest: expected a file ending in {', '.join(TABLE_SUFFIXES)}, got {path}")
        if not path.is_file():
            problem = "is not a file" if path.exists() else "does not exist"
            raise ValueError(f"manifest: expected a file, got {path}, which {problem}")
        self.path, self._group = path, group_column
        self._length, self.columns = self._inspect()
        if not self._length:
            raise ValueError(f"manifest: expected rows with the columns 'prompt' and 'image', got no rows in {path}")
        if not set(REQUIRED) <= set(self.columns):
            raise ValueError(
                f"manifest: expected rows with the columns 'prompt' and 'image', got {self.columns} in {path}"
            )
        if group_column is not None and group_column not in self.columns:
            raise ValueError(f"group_column: expected one of the columns {self.columns}, got {group_column}")

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Row]:
        return self.read()

    def read(self, start: int = 0) -> Iterator[Row]:
        """Read the rows from number `start` on."""
        for record in self._records(start):
            if isinstance(record, dict):
                key, group = text_of(record.get("key")), text_of(self._group and record.get(self._group))
                yield Row(key, record.get("prompt"), record.get("image"), group=group)
            else:
                yield Row(error=record)

    def fingerprint(self) -> str:
        """SHA-256 of the file, as hexadecimal digits."""
        with self.path.open("rb") as file:
            return sha_fileobj(file).hex()

    def _inspect(self) -> tuple[int, list[str]]:
        """Number of rows and names of the columns. Text files are read once, so that no later row stops a run."""
        if self.path.suffix.lower() == ".parquet":
            with _reading(self.path):
                metadata = pq.read_metadata(self.path)
                return metadata.num_rows, sorted(metadata.schema.to_arrow_schema().names)
        names: set[str] = set()
        length = 0
        for record in self._records():
            length += 1
            names.update(map(str, record) if isinstance(record, dict) else ())
        return length, sorted(names)

    def _records(self, start: int = 0) -> Iterator[dict[str, Any] | str]:
        suffix = self.path.suffix.lower()
        with _reading(self.path):
            if suffix == ".parquet":
                wanted = [name for name in self.columns if name in ("key", *REQUIRED, self._group)]
                yield from parquet_records(self.path, wanted, start)
            else:
                records = _csv_records if suffix == ".csv" else _json_records
                yield from islice(records(self.path), start, None)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Context that names the manifest in errors of reading it."""
    try:
        yield
    except (csv.Error, ValueError, OSError, pa.ArrowException) as error:
        raise ValueError(f"manifest: cannot read {path}: {error}") from error


def parquet_records(path: Path, columns: list[str], start: int = 0) -> Iterator[dict[str, Any]]:
    """Read columns of a Parquet file from row number `start` on, a few rows at a time. Row groups before it are not
    read."""
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            if start >= count:
                start -= count
                continue
            for batch in file.iter_batches(ROWS_A_BATCH, row_groups=[group], columns=columns):
                skipped = min(start, len(batch))
                start -= skipped
                yield from batch.slice(skipped).to_pylist()


def _csv_records(path: Path) -> Iterator[dict]:
    # A field is no longer than its file. The limit is global to the process, so it is restored after each row.
    needed = min(path.stat().st_size, 2**31 - 1)
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        while True:
            limit = csv.field_size_limit()
            try:
                csv.field_size_limit(max(limit, needed))
                record = next(reader, None)
            finally:
                csv.field_size_limit(limit)
            if record is None:
                return
            yield record


def _json_records(path: Path) -> Iterator[dict | str]:
    with path.open(newline="\n", encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            line = line.removesuffix("\n")
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield f"line {number}: expected a JSON object, got {error}"
            else:
                is_object = isinstance(record, dict)
                yield record if is_object else f"line {number}: expected a JSON object, got {line[:40]}"
