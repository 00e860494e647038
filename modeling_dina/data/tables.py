"""Rows of public data sets from their JSON and Parquet files; an unreadable file or one without rows is named."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset
from datasets.exceptions import DatasetGenerationError


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
        ValueError: a file is damaged, or there is no row in any.
    """
    try:
        filled = [str(path) for path in paths if pq.read_metadata(path).num_rows]
        if not filled:
            raise ValueError(f"{name}: expected rows in {paths[0]}, got none")
        return Dataset.from_parquet(filled, columns=columns)
    except (DatasetGenerationError, pa.ArrowException) as error:
        raise ValueError(f"{name}: cannot read {', '.join(map(str, paths))}: {error.__cause__ or error}") from error
