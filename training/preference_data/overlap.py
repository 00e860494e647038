"""Pairs that occur twice, and training pairs that a test set knows already, found by prompt and by image."""

import hashlib
import unicodedata
from collections import defaultdict
from dataclasses import dataclass

from datasets import Dataset, Features, Value

from training.preference_data.images import open_image

_HASHES = Features({"prompt": Value("string"), "image_a": Value("string"), "image_b": Value("string")})


@dataclass(frozen=True)
class Overlap:
    """
    Rows of a training set that share something with a test set, in rising order.

    Attributes:
        prompts: rows whose prompt is one of the test set's, but for case, spacing and Unicode form.
        images: rows of which an image is one of the test set's, pixel by pixel.
    """

    prompts: list[int]
    images: list[int]


def find_overlap(train: Dataset, test: Dataset, *, num_proc: int | None = None) -> Overlap:
    """
    Rows of `train` that share a prompt or an image with `test`.

    Args:
        train, test: pairs of images, as `schema.as_pairs` gives them. An image that cannot be read equals no other.
        num_proc: processes that read images.
    """
    known = _hashed(test, num_proc)
    prompts = {row["prompt"] for row in known}
    images = {image for row in known for image in (row["image_a"], row["image_b"])} - {None}
    rows = list(_hashed(train, num_proc))
    return Overlap(
        prompts=[index for index, row in enumerate(rows) if row["prompt"] in prompts],
        images=[index for index, row in enumerate(rows) if not images.isdisjoint((row["image_a"], row["image_b"]))],
    )


def find_duplicates(dataset: Dataset, *, num_proc: int | None = None) -> list[list[int]]:
    """
    Groups of rows with the same prompt and the same two images, in either order.

    Rows of a group may differ in their targets: several people were asked. A row with an unreadable image is in none.

    Args:
        dataset: pairs of images.
        num_proc: processes that read images.

    Returns:
        Groups of two rows or more, each in rising order.
    """
    groups = defaultdict(list)
    for index, row in enumerate(_hashed(dataset, num_proc)):
        images = row["image_a"], row["image_b"]
        if None not in images:
            groups[row["prompt"], frozenset(images)].append(index)
    return [rows for rows in groups.values() if len(rows) > 1]


def _hashed(pairs: Dataset, num_proc: int | None) -> Dataset:
    return pairs.select_columns(list(_HASHES)).map(
        _hash_row, features=_HASHES, num_proc=num_proc, desc="Hashing images"
    )


def _hash_row(row: dict) -> dict:
    return {
        "prompt": " ".join(unicodedata.normalize("NFKC", row["prompt"]).casefold().split()),
        "image_a": _hash_image(row["image_a"]),
        "image_b": _hash_image(row["image_b"]),
    }


def _hash_image(cell: dict) -> str | None:
    """SHA-256 of the picture, not of the file: another container or other metadata leave it the same."""
    try:
        image = open_image(cell)
    except ValueError:
        return None
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()
