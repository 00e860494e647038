"""Rows of public data sets from JSON and Parquet files. Errors name the file or the row."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset
from datasets.exceptions import DatasetGenerationError
from PIL import Image

from modeling_dina.data.images import open_image

Kind = TypeVar("Kind")
# Number of Parquet rows in memory at a time.
ROWS_A_BATCH = 1000


class RowError(ValueError):
    """A row is unusable.

    Attributes:
        name: name of the row.
        reason: description of the error.
    """

    def __init__(self, name: str, reason: str):
        super().__init__(f"{name}: {reason}")
        self.name, self.reason = name, reason


@contextmanager
def naming_row(name: str) -> Iterator[None]:
    """Context that converts errors in a row's content to a RowError."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise RowError(name, str(error)) from error
    except (LookupError, AttributeError) as error:  # a nested value has the wrong structure
        raise RowError(name, repr(error)) from error


@dataclass(frozen=True)
class Cell:
    """An image that a Parquet file contains.

    Attributes:
        name: name of the image in reports.
        open: decodes the image; raises a ValueError if it is unusable.
    """

    name: str
    open: Callable[[], Image.Image]


class Row:
    """
    A row of a data set.

    Args:
        name: name of the row in reports.
        fields: content of the row: a dict, or any other value, which raises an error on access.
        cells: image columns of a Parquet file, as Arrow data, and the index of the row.
    """

    def __init__(self, name: str, fields: Any, cells: tuple[Dataset, int] | None = None):
        self.name, self._fields, self._cells = name, fields, cells

    def __getitem__(self, field: str) -> Any:
        """The value of a field; raises a ValueError if it is missing or null."""
        value = self.get(field)
        if value is None:
            raise ValueError(f"expected the field {field}, got none")
        return value

    def get(self, field: str) -> Any:
        """The value of a field, or None if it is missing."""
        if not isinstance(self._fields, dict):
            raise ValueError(f"expected an object, got {type(self._fields).__name__}")
        return self._fields.get(field)

    def read(self, field: str, kind: type[Kind]) -> Kind:
        """The value of a field; raises a ValueError if it is missing or has another type."""
        value = self[field]
        if not isinstance(value, kind):
            raise ValueError(f"{field}: expected a {kind.__name__}, got {value!r}")
        return value

    def image(self, column: str) -> str | Cell:
        """The image in a column of paths or, in Parquet, of bytes, {"bytes", "path"}, or lists with one of these."""
        if self._cells is None:
            return _only(self[column], column)
        return Cell(f"{self.name}, {column}", partial(_open_cell, *self._cells, column))


def _open_cell(cells: Dataset, index: int, column: str) -> Image.Image:
    value = _only(cells[index][column][0].as_py(), column)
    return open_image({"bytes": value, "path": None} if isinstance(value, bytes) else value, column)


def _only(value: Any, column: str) -> Any:
    if not isinstance(value, list):
        return value
    if len(value) != 1:
        raise ValueError(f"{column}: expected one image, got {len(value)}")
    return value[0]


def read_rows(paths: Sequence[Path], name: str, images: Sequence[str] = ()) -> Iterator[Row]:
    """
    Read the rows of one JSON file or of Parquet files.

    Args:
        paths: paths of the files.
        name: name of the files in errors.
        images: columns with images, if the files are Parquet.

    Raises:
        ValueError: a file is damaged, or Parquet files have no rows or lack these columns.
    """
    if paths[0].suffix.lower() != ".parquet":
        for index, fields in enumerate(read_json(paths[0], name)):
            yield Row(f"{paths[0].name}, row {index}", fields)
        return
    table = read_parquet(paths, name)
    absent = sorted(set(images).difference(table.column_names))
    if absent:
        raise ValueError(f"{name}: expected the columns {list(images)} in {paths[0]}, got none named {absent}")
    yield from table_rows(table, paths[0].name, images)


def table_rows(table: Dataset, name: str, images: Sequence[str] = ()) -> Iterator[Row]:
    """Iterate over the rows of a table.

    Args:
        table: table with any columns.
        name: name of the table in reports.
        images: columns with images.
    """
    # Images remain on disk, as Arrow data, because `datasets` would decode each returned image.
    cells = table.with_format("arrow", columns=list(images)) if images else None
    batches = table.remove_columns(list(images)).with_format("arrow").iter(ROWS_A_BATCH)
    for index, fields in enumerate(fields for batch in batches for fields in batch.to_pylist()):
        yield Row(f"{name}, row {index}", fields, None if cells is None else (cells, index))


def read_json(path: Path, name: str) -> list[Any]:
    """
    Read the rows of a JSON file: a list, or the first list in an object such as {"pairs": [...]}.

    Args:
        path: path of the file.
        name: name of the file in errors.

    Raises:
        ValueError: the file is not valid JSON or contains no list.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}: cannot read {path}: {error}") from error
    if isinstance(content, dict):
        content = next((value for value in content.values() if isinstance(value, list)), None)
    if not isinstance(content, list):
        raise ValueError(f"{name}: expected a list of rows in {path}, got {type(content).__name__}")
    return content


def read_parquet(paths: Sequence[Path], name: str, columns: list[str] | None = None) -> Dataset:
    """
    Read Parquet files, memory-mapped. Files without rows, which `datasets` may refuse, are skipped.

    Args:
        paths: paths of the files.
        name: name of the files in errors.
        columns: columns to read; None reads all.

    Raises:
        ValueError: a file is damaged or lacks a column, or no file has rows.
    """
    try:
        filled = []
        for path in paths:
            metadata = pq.read_metadata(path)
            missing = set(columns or ()).difference(metadata.schema.to_arrow_schema().names)
            if missing:
                raise ValueError(f"{name}: {path}: expected the columns {columns}, got none named {sorted(missing)}")
            if metadata.num_rows:
                filled.append(str(path))
        if not filled:
            raise ValueError(f"{name}: expected rows in {paths[0]}, got none")
        return Dataset.from_parquet(filled, columns=columns)
    except (DatasetGenerationError, pa.ArrowException) as error:
        raise ValueError(f"{name}: cannot read {', '.join(map(str, paths))}: {error.__cause__ or error}") from error
