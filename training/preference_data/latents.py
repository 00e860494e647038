"""Cached latents: serialisation of latents, and a data set of the shards of `training.encode_latents`."""

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from datasets import Dataset


def pack(latents: torch.Tensor) -> bytes:
    """Convert latents [C, H, W] to `.npy` bytes, with their dtype."""
    file = io.BytesIO()
    np.save(file, latents.cpu().numpy(), allow_pickle=False)
    return file.getvalue()


def unpack(data: bytes) -> torch.Tensor:
    """
    Convert `.npy` bytes to latents [C, H, W]. Python objects are refused, not unpickled.

    Raises:
        ValueError: the bytes are not an array of floating-point numbers with three dimensions.
    """
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, TypeError) as error:
        raise ValueError(f"latents: expected .npy bytes, got {len(data or b'')} bytes: {error}") from error
    if not isinstance(array, np.ndarray) or array.ndim != 3 or array.dtype.kind != "f":
        found = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
        raise ValueError(f"latents: expected floating-point numbers [C, H, W], got {found}")
    return torch.from_numpy(array)


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
