"""Cached latents: a data set of the shards of `training.encode_latents`."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from datasets import Dataset

from modeling_dina.data.latents import unpack


def read_latents(folder: Path) -> Dataset:
    """
    Load the pairs written by `python -m training.encode_latents`, for random access.

    The shards are copied once to memory-mapped Arrow files in the cache of `datasets`, from which single rows can be
    read. Parquet would decode the complete row group.

    Args:
        folder: folder of `--out`.

    Returns:
        Rows of `schema.LATENT_FEATURES` in the order of `index`; on access, latents_a and latents_b are float16
        tensors [C, height, width].

    Raises:
        ValueError: there are no shards, some are missing, or all are empty.
    """
    paths = sorted((folder / "data").glob("train-*-of-*.parquet"))
    if not paths:
        raise ValueError(f"folder: expected shards of latents, got {folder} without data/train-*.parquet")
    count = int(paths[0].stem.rpartition("-")[2])
    if len(paths) != count:
        raise ValueError(f"folder: expected {count} shards, got {len(paths)}: {folder} is incomplete")
    if not any(pq.read_metadata(path).num_rows for path in paths):
        raise ValueError(f"folder: expected pairs of latents, got {folder} without any pair; see its errors")
    return Dataset.from_parquet([str(path) for path in paths]).with_transform(_unpack_batch)


def _unpack_batch(batch: dict) -> dict:
    for name in {"latents_a", "latents_b"} & batch.keys():
        batch[name] = [unpack(data) for data in batch[name]]
    return batch


def latent_shapes(dataset: Dataset) -> np.ndarray:
    """Height and width of every pair's latents, [N, 2], without loading latents."""
    columns = dataset.select_columns(["height", "width"]).with_format("numpy")[:]
    return np.stack([columns["height"], columns["width"]], axis=1)
