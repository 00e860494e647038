"""Rows of a public data set as its repository holds them, in JSON or Parquet, with the images they name or contain."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset
from PIL import Image

from modeling_dina.data.images import open_image
from modeling_dina.data.tables import read_json, read_parquet
from modeling_dina.evaluation.benchmarks.image_files import ImageFiles
from modeling_dina.evaluation.benchmarks.preference_set import Item


class Annotations:
    """
    The rows of a data set.

    Args:
        files: of the data set.
        patterns: where its rows may be, the best first: one JSON file, or Parquet files. The first that is there.
        images: columns that hold images in Parquet files: bytes, {"bytes", "path"}, or a list with one of these. In
            JSON files they hold a path, or a list with one.
        limit: rows to read; None for all.

    Raises:
        ValueError: there is no such file, or no rows or columns in it.
    """

    def __init__(
        self, files: ImageFiles, patterns: tuple[str, ...], images: tuple[str, ...] = (), limit: int | None = None
    ):
        paths = next((found for pattern in patterns if (found := sorted(files.folder.glob(pattern)))), None)
        if not paths:
            raise ValueError(f"data: expected {' or '.join(patterns)} in {files.folder}, got none")
        self._files = files
        self._name = paths[0].name
        self._cells: Dataset | None = None
        if paths[0].suffix == ".parquet":
            self._rows = self._read_parquet(paths, images, limit)
        else:
            self._rows = read_json(paths[0], "data")[:limit]
        if not self._rows:
            raise ValueError(f"data: expected rows in {paths[0]}, got none")

    def __iter__(self) -> Iterator[tuple[str, "Row"]]:
        """The name for reports and the content of every row."""
        for index, fields in enumerate(self._rows):
            yield f"{self._name}, row {index}", Row(self, index, fields)

    def _read_parquet(self, paths: list[Path], images: tuple[str, ...], limit: int | None) -> list[dict]:
        table = read_parquet(paths, "data")
        absent = [name for name in images if name not in table.column_names]
        if absent:
            raise ValueError(f"data: expected the columns {list(images)} in {paths[0]}, got none named {absent}")
        if limit is not None:
            table = table.select(range(min(limit, len(table))))
        # Images stay on the disk, as Arrow holds them: `datasets` would decode every one that it hands out.
        self._cells = table.with_format("arrow", columns=list(images))
        return table.remove_columns(list(images)).to_list()

    def image(self, index: int, fields: dict, prompt: str, column: str) -> Item:
        """The image in a column of a row, for a prompt."""
        if self._cells is None:
            return self._files.item(prompt, _only(fields.get(column), column))
        return Item(prompt, f"{self._name}, row {index}, {column}", partial(self._open_cell, index, column))

    def _open_cell(self, index: int, column: str) -> Image.Image:
        value = _only(self._cells[index][column][0].as_py(), column)
        if isinstance(value, bytes):
            value = {"bytes": value, "path": None}
        return open_image(value, column)


class Row:
    """A row of annotations."""

    def __init__(self, annotations: Annotations, index: int, fields: Any):
        self._annotations, self._index, self._fields = annotations, index, fields

    def __getitem__(self, name: str) -> Any:
        """A field; ValueError if there is none or it is null."""
        value = self.get(name)
        if value is None:
            raise ValueError(f"expected the field {name}, got none")
        return value

    def get(self, name: str) -> Any:
        """A field, None if there is none."""
        if not isinstance(self._fields, dict):
            raise ValueError(f"expected an object, got {type(self._fields).__name__}")
        return self._fields.get(name)

    def image(self, prompt: str, column: str) -> Item:
        """The image in a column, for a prompt."""
        return self._annotations.image(self._index, self._fields, prompt, column)


def _only(value: Any, column: str) -> Any:
    if not isinstance(value, list):
        return value
    if len(value) != 1:
        raise ValueError(f"{column}: expected one image, got {len(value)}")
    return value[0]
