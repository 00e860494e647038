"""Rows of public data sets from their JSON and Parquet files. Errors name the file or the row at fault."""

import io
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

from modeling_dina.images_dina import load_image, read_image

Kind = TypeVar("Kind")
# Rows of Parquet that are held in memory at a time.
ROWS_A_BATCH = 1000


class RowError(ValueError):
    """A row that cannot be used.

    Attributes:
        name: of the row.
        reason: what is wrong with it.
    """

    def __init__(self, name: str, reason: str):
        super().__init__(f"{name}: {reason}")
        self.name, self.reason = name, reason


@contextmanager
def naming_row(name: str) -> Iterator[None]:
    """Raises a RowError for whatever a row's content makes impossible."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise RowError(name, str(error)) from error
    except (LookupError, AttributeError) as error:  # something nested is not as it should be
        raise RowError(name, repr(error)) from error


@dataclass(frozen=True)
class Cell:
    """An image that a Parquet file contains.

    Attributes:
        name: what reports call it.
        open: decodes it; ValueError if it cannot be used.
    """

    name: str
    open: Callable[[], Image.Image]


class Row:
    """
    A row of a data set.

    Args:
        name: what reports call it.
        fields: its content, an object or whatever stands in the place of one.
        cells: the columns of a Parquet file that hold images, as Arrow data, and the number of the row in them.
    """

    def __init__(self, name: str, fields: Any, cells: tuple[Dataset, int] | None = None):
        self.name, self._fields, self._cells = name, fields, cells

    def __getitem__(self, field: str) -> Any:
        """A field; ValueError if there is none or it is null."""
        value = self.get(field)
        if value is None:
            raise ValueError(f"expected the field {field}, got none")
        return value

    def get(self, field: str) -> Any:
        """A field, None if there is none."""
        if not isinstance(self._fields, dict):
            raise ValueError(f"expected an object, got {type(self._fields).__name__}")
        return self._fields.get(field)

    def read(self, field: str, kind: type[Kind]) -> Kind:
        """A field of a type; ValueError if there is none or it is of another."""
        value = self[field]
        if not isinstance(value, kind):
            raise ValueError(f"{field}: expected a {kind.__name__}, got {value!r}")
        return value

    def image(self, column: str) -> str | Cell:
        """The image in a column: a path, or in Parquet bytes or {"bytes", "path"}; or a list with one of these."""
        if self._cells is None:
            return _only(self[column], column)
        return Cell(f"{self.name}, {column}", partial(_open_cell, *self._cells, column))


def _open_cell(cells: Dataset, index: int, column: str) -> Image.Image:
    value = _only(cells[index][column][0].as_py(), column)
    return open_image({"bytes": value, "path": None} if isinstance(value, bytes) else value, column)


def open_image(cell: dict, name: str = "image") -> Image.Image:
    """
    Decodes an image as `modeling_dina.images_dina.load_image` does.

    Args:
        cell: {"bytes", "path"}, as `datasets.Image(decode=False)` gives it; the path is read where bytes are None.
        name: what errors call it.

    Returns:
        A PIL image of mode "RGB".

    Raises:
        ValueError: there is no image, or one that cannot be used.
    """
    if not cell or (cell["bytes"] is None and cell["path"] is None):
        raise ValueError(f"{name}: expected bytes or a path, got neither")
    if cell["bytes"] is None:
        return load_image(cell["path"], name)
    if cell["path"]:
        name = f"{name} ({cell['path']})"
    return read_image(io.BytesIO(cell["bytes"]), name)


def _only(value: Any, column: str) -> Any:
    if not isinstance(value, list):
        return value
    if len(value) != 1:
        raise ValueError(f"{column}: expected one image, got {len(value)}")
    return value[0]


def read_rows(paths: Sequence[Path], name: str, images: Sequence[str] = ()) -> Iterator[Row]:
    """
    The rows of one JSON file, or of Parquet files.

    Args:
        paths: of the files.
        name: what errors call them.
        images: columns that hold images where the files are Parquet.

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
    """The rows of a table.

    Args:
        table: of any columns.
        name: what reports call it.
        images: columns that hold images.
    """
    # Images stay on the disk, as Arrow data: `datasets` would decode every one that it returns.
    cells = table.with_format("arrow", columns=list(images)) if images else None
    batches = table.remove_columns(list(images)).with_format("arrow").iter(ROWS_A_BATCH)
    for index, fields in enumerate(fields for batch in batches for fields in batch.to_pylist()):
        yield Row(f"{name}, row {index}", fields, None if cells is None else (cells, index))


def read_json(path: Path, name: str) -> list[Any]:
    """
    The rows of a JSON file: a list, or the first list in an object, {"pairs": [...]}, in which some sets wrap theirs.

    Args:
        path: of the file.
        name: what errors call it.

    Raises:
        ValueError: it is no JSON, or there is no list in it.
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
    The rows of Parquet files, memory-mapped. A file without rows among others, which `datasets` may refuse, adds none.

    Args:
        paths: of the files.
        name: what errors call them.
        columns: to read; None reads all.

    Raises:
        ValueError: a file is damaged or lacks a column, or there is no row in any.
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
