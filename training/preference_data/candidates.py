"""Images with their prompts, and the pairs of images to compare, before a scorer labels them."""

from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
from datasets import Dataset, Features, Image, Value, concatenate_datasets

from modeling_dina.dataset.manifests import TABLE_SUFFIXES, Manifest
from modeling_dina.options import loading
from training.preference_data.sources import Format, load_pairs, open_dataset

# Images are not decoded: {"bytes", "path"} of a file.
IMAGE_FEATURES = Features({"prompt": Value("string"), "image": Image(decode=False)})


class Candidates(NamedTuple):
    """
    Attributes:
        images: rows of `IMAGE_FEATURES`.
        first, second: [N], rows of the two images of each pair, which have the same prompt.
        failures: {"name", "error"} of unusable rows of the source.
    """

    images: Dataset
    first: np.ndarray
    second: np.ndarray
    failures: list[dict[str, str]]


def load_images(source: str) -> tuple[Dataset, list[dict[str, str]]]:
    """
    Load images with their prompts.

    Args:
        source: a manifest (.csv, .jsonl or .parquet) with the columns prompt and image, where paths are relative to
            its folder; or any data set with these columns that `datasets` can load, such as a folder of images with
            a `metadata.csv` that has the columns file_name and prompt.

    Returns:
        Rows of `IMAGE_FEATURES`, and {"name", "error"} of unusable rows of a manifest.

    Raises:
        ValueError: the source cannot be loaded or lacks a column.
    """
    with loading("source", source):
        if Path(source).suffix.lower() in TABLE_SUFFIXES:
            return _read_manifest(Path(source))
        dataset = open_dataset(source)
    missing = [name for name in IMAGE_FEATURES if name not in dataset.column_names]
    if missing:
        raise ValueError(
            f"source: expected the columns {list(IMAGE_FEATURES)} in {source}, got none named {', '.join(missing)}"
        )
    return dataset.select_columns(list(IMAGE_FEATURES)).cast_column("image", IMAGE_FEATURES["image"]), []


def _read_manifest(path: Path) -> tuple[Dataset, list[dict[str, str]]]:
    rows, failures = [], []
    for index, row in enumerate(Manifest(path)):
        wrong = [name for name in IMAGE_FEATURES if not isinstance(getattr(row, name), str) or not getattr(row, name)]
        if row.error or wrong:
            error = row.error or f"{wrong[0]}: expected a text, got {getattr(row, wrong[0])!r}"
            failures.append({"name": f"{path.name}, row {index}", "error": error})
        else:
            rows.append((row.prompt, str(path.parent.absolute() / row.image)))
    return images_of_files(rows), failures


def images_of_files(rows: list[tuple[str, str]]) -> Dataset:
    """Rows of `IMAGE_FEATURES` for prompts and paths."""
    columns = {"prompt": [prompt for prompt, _ in rows], "image": [path for _, path in rows]}
    return Dataset.from_dict(columns, features=IMAGE_FEATURES)


def flat_images(images: Dataset) -> Dataset:
    """The columns "prompt", "image.bytes" and "image.path" of rows of `IMAGE_FEATURES`, without a copy."""
    # `flatten` leaves a selection of columns with their old names.
    return images.flatten().with_format(None)


def pair_images(images: Dataset, failures: list[dict[str, str]], limit: int | None, seed: int) -> Candidates:
    """
    Pair the images of each prompt.

    Args:
        images: rows of `IMAGE_FEATURES`.
        failures: as in `Candidates`.
        limit: maximum number of pairs per prompt, drawn at random; None pairs every image with every other.
        seed: seed of that draw.

    Raises:
        ValueError: no prompt has two images.
    """
    rows: dict[str, list[int]] = {}
    for row, prompt in enumerate(images["prompt"]):
        rows.setdefault(prompt, []).append(row)
    rng = np.random.default_rng(seed)
    pairs: list[tuple[int, int]] = []
    for members in rows.values():
        found = list(combinations(members, 2))
        if limit is not None and len(found) > limit:
            found = [found[index] for index in sorted(rng.choice(len(found), limit, replace=False))]
        pairs += found
    if not pairs:
        raise ValueError(
            f"source: expected two images or more of a prompt, got {len(images)} images of {len(rows)} prompts; "
            f"failures: {failures[:3]}"
        )
    first, second = np.array(pairs).T
    return Candidates(images, first, second, failures)


def load_paired_images(source: str, source_format: Format, image_root: Path | None) -> Candidates:
    """
    Load the pairs of a preference data set, without their labels; arguments are as in `sources.load_pairs`. An image
    file of several pairs becomes one row.
    """
    pairs = load_pairs(source, source_format, image_root)
    sides = [pairs.select_columns(["prompt", name]).rename_column(name, "image") for name in ("image_a", "image_b")]
    images = concatenate_datasets(sides)
    rows = np.arange(len(images))
    content = flat_images(images)
    if content.data.column("image.bytes").null_count == content.data.num_rows:
        names = list(zip(content["prompt"], content["image.path"], strict=True))
        kept: dict[tuple, int] = {}
        rows = np.array([kept.setdefault(name, len(kept)) for name in names])
        images = images.select(np.unique(rows, return_index=True)[1])
    return Candidates(images, rows[: len(pairs)], rows[len(pairs) :], [])
