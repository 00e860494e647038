"""Loading of preference pairs from all supported formats. Image files are referred to by path, not copied."""

import os
from pathlib import Path
from typing import Literal

from datasets import Dataset, load_dataset, load_from_disk

from modeling_dina.data import preferences
from modeling_dina.data.tables import naming_row, read_parquet, read_rows, table_rows
from modeling_dina.options import loading
from training.preference_data.schema import PAIR_FEATURES, as_pairs

# The package's own schema (pairs), or the format of a published data set.
Format = Literal["pairs", "hpdv3", "hpdv2", "image_reward", "pick_a_pic", "reference_cache"]
# Formats of annotations that contain the paths of images.
_READERS = {"hpdv3": preferences.hpdv3, "hpdv2": preferences.hpdv2, "image_reward": preferences.image_reward}


def load_pairs(source: str, source_format: Format = "pairs", image_root: Path | None = None) -> Dataset:
    """
    Load preference pairs in the package's schema; those of "reference_cache" have latents in place of images.

    Args:
        source: for "pairs", a folder written by `Dataset.save_to_disk`, or any data set that
            `datasets.load_dataset` can load, such as a Hub id, with a split "train". For Pick-a-Pic and the reference
            cache, a folder with Parquet files at any depth. For the others, a file of annotations; see
            `modeling_dina.data.preferences`.
        source_format: format of `source`.
        image_root: folder that paths in annotations are relative to; None uses the folder of the annotations.

    Raises:
        ValueError: there are no pairs, or they do not have the given format.
    """
    match source_format:
        case "pairs":
            with loading("source", source):
                dataset = open_dataset(source)
            pairs = as_pairs(dataset)
        case "pick_a_pic":
            pairs = _pick_a_pic(Path(source))
        case "reference_cache":
            pairs = _reference_cache(Path(source))
        case _:
            pairs = _from_annotations(Path(source), source_format, image_root or Path(source).parent)
    if len(pairs) == 0:
        raise ValueError(f"source: expected preference pairs, got none in {source}")
    return pairs


def open_dataset(source: str) -> Dataset:
    """Load a folder written by `Dataset.save_to_disk`, or the split "train" of what `datasets.load_dataset` can load,
    such as a Hub id."""
    is_saved = os.path.isfile(os.path.join(source, "state.json"))
    return load_from_disk(source) if is_saved else load_dataset(source, split="train")


def _from_annotations(annotations: Path, source_format: Format, root: Path) -> Dataset:
    if not annotations.is_file():
        raise ValueError(f"annotations: expected a JSON or Parquet file, got {annotations}, which is not a file")
    columns: dict[str, list] = {name: [] for name in PAIR_FEATURES}
    rows = read_rows([annotations], "annotations")
    for annotation in _READERS[source_format](rows, "train", naming_row):
        for (image_a, image_b), _, target in annotation.pairs():
            assert isinstance(image_a, str)
            assert isinstance(image_b, str)
            row = annotation.prompt, str(root / image_a), str(root / image_b), target, 1.0, source_format
            for column, value in zip(columns.values(), row, strict=True):
                column.append(value)
    return as_pairs(Dataset.from_dict(columns, features=PAIR_FEATURES))


def _pick_a_pic(folder: Path) -> Dataset:
    images = {"jpg_0": "image_a", "jpg_1": "image_b"}
    columns = {"caption": "prompt", **images, "label_0": "target"}
    table = _read_folder(folder, [*columns, "has_label", "are_different"])
    rows = table_rows(table, folder.name, list(images))
    chosen = [index for index, row in enumerate(rows) if any(preferences.pick_a_pic([row], "train", naming_row))]
    dataset = _with_constants(table.rename_columns(columns), weight=1.0, source="pick_a_pic")
    # Rows are selected last, so that images remain memory-mapped and are not copied.
    return as_pairs(dataset.select(chosen))


def _reference_cache(folder: Path) -> Dataset:
    """
    Load the latent cache of the reference implementation: Parquet files `{prompt, latent1, latent2}` with `.npy`
    bytes, in which `latent1` is preferred. Latents are not unpacked.
    """
    columns = {"latent1": "latents_a", "latent2": "latents_b"}
    dataset = _read_folder(folder, ["prompt", *columns]).rename_columns(columns)
    return _with_constants(dataset, target=1.0, weight=1.0, source="reference_cache")


def _read_folder(folder: Path, columns: list[str]) -> Dataset:
    paths = sorted(folder.rglob("*.parquet"))
    if not paths:
        raise ValueError(f"folder: expected Parquet files, got {folder} without any")
    return read_parquet(paths, "folder", columns)


def _with_constants(dataset: Dataset, **constants: float | str) -> Dataset:
    for name, value in constants.items():
        dataset = dataset.add_column(name, [value] * len(dataset))
    return dataset
