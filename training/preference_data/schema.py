"""The schema of preference data: a prompt, two images or two cached latents, and a soft target."""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features, Image, Value

from modeling_dina.files import atomic_path, write_text

_LABELS = {
    # Probability that a is preferred: 1 or 0 for a single vote, the share of several votes, or 0.5 for a tie.
    "target": Value("float64"),
    # Factor on the pair's loss.
    "weight": Value("float64"),
    # Name of the pair's data set.
    "source": Value("string"),
}
# Images are not decoded: {"bytes", "path"} of a file, which `modeling_dina.images_dina` decodes.
PAIR_FEATURES = Features(
    {"prompt": Value("string"), "image_a": Image(decode=False), "image_b": Image(decode=False), **_LABELS}
)
# Latents are `.npy` bytes of float16 [C, height, width] in model space; index is the row in the source.
LATENT_FEATURES = Features(
    {
        "index": Value("int64"),
        "prompt": Value("string"),
        "latents_a": Value("binary"),
        "latents_b": Value("binary"),
        "height": Value("int32"),
        "width": Value("int32"),
        **_LABELS,
    }
)


def as_pairs(dataset: Dataset) -> Dataset:
    """
    Check pairs of images, and convert them to `PAIR_FEATURES`.

    Args:
        dataset: data set with at least these columns; images in any form that `datasets.Image` supports.

    Raises:
        ValueError: a column is missing, a target is outside [0, 1], or a weight is negative or not finite.
    """
    missing = [name for name in PAIR_FEATURES if name not in dataset.column_names]
    if missing:
        raise ValueError(f"dataset: expected the columns {list(PAIR_FEATURES)}, got none named {', '.join(missing)}")
    dataset = dataset.select_columns(list(PAIR_FEATURES))
    labels = dataset.select_columns(["target", "weight"]).with_format("numpy")[:]
    # In this form, NaN also fails.
    _refuse(dataset, "target", labels["target"], ~((labels["target"] >= 0) & (labels["target"] <= 1)), "within [0, 1]")
    _refuse(dataset, "weight", labels["weight"], ~((labels["weight"] >= 0) & (labels["weight"] < np.inf)), ">= 0")
    for name in ("image_a", "image_b"):
        dataset = dataset.cast_column(name, PAIR_FEATURES[name])
    return dataset


def _refuse(dataset: Dataset, name: str, values: np.ndarray, is_wrong: np.ndarray, expected: str) -> None:
    if is_wrong.any():
        row = int(is_wrong.argmax())
        raise ValueError(f"{name}: expected numbers {expected}, got {values[row]} in row {row} of {len(dataset)}")


def write_pairs(folder: Path, pairs: Dataset, failures: Sequence[dict[str, str]]) -> None:
    """Write pairs to `folder`/data, as a data set that `datasets` can load, and {"name", "error"} of failures to
    `folder`/errors.jsonl."""
    write_text(folder / "errors.jsonl", "".join(json.dumps(failure) + "\n" for failure in failures))
    with atomic_path(folder / "data" / "train-00000-of-00001.parquet") as path:
        pairs.to_parquet(path)


def fingerprint(dataset: Dataset, columns: Sequence[str] = ("prompt", "target")) -> str:
    """Hash of columns with plain values, by default prompts and targets, in order, as sixteen hexadecimal digits."""
    digest = hashlib.sha256()
    for batch in dataset.select_columns(list(columns)).iter(batch_size=10_000):
        digest.update(repr(tuple(batch[name] for name in columns)).encode())
    return digest.hexdigest()[:16]


def contents_fingerprint(dataset: Dataset) -> str:
    """
    Hash of everything except prompts and targets: weights, sources, and the paths of the images, or their sizes if the
    data set contains their bytes. Images are not read.

    Returns:
        Sixteen hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name in dataset.column_names:
        if name in ("prompt", "target"):
            continue
        # The underlying table without a selection of rows, because with a selection, Arrow would copy all bytes.
        for chunk in dataset.data.column(name).chunks:
            digest.update("".join(f"{cell}\n" for cell in _described(chunk)).encode(errors="backslashreplace"))
    return digest.hexdigest()[:16]


def _described(cells: pa.Array) -> Iterator:
    if pa.types.is_struct(cells.type):
        sizes, paths = pc.binary_length(cells.field("bytes")), cells.field("path")
        for size, path in zip(sizes.to_pylist(), paths.to_pylist(), strict=True):
            yield os.path.abspath(path) if size is None and path is not None else size
    else:
        yield from (pc.binary_length(cells) if pa.types.is_binary(cells.type) else cells).to_pylist()
