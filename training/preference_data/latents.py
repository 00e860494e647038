"""Cached latents: how one is written and read, and a data set over the shards of `training.encode_latents`."""

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from datasets import Dataset


def pack(latents: torch.Tensor) -> bytes:
    """Latents [C, H, W] as `.npy` bytes in their own precision."""
    file = io.BytesIO()
    np.save(file, latents.cpu().numpy(), allow_pickle=False)
    return file.getvalue()


def unpack(data: bytes) -> torch.Tensor:
    """
    Latents [C, H, W] from `.npy` bytes.

    Nothing is unpickled: bytes that hold Python objects are refused.

    Raises:
        ValueError: the bytes are no such array of floating-point numbers.
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
    The pairs that `python -m training.encode_latents` wrote, for random access.

    The shards are copied once into Arrow files in the cache of `datasets`, which are memory-mapped: a row costs what
    it holds, where Parquet would decode the whole row group around it.

    Args:
        folder: what `--out` named.

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
        raise ValueError(f"folder: expected {count} shards, got {len(paths)}: {folder} is not encoded to its end")
    if not any(pq.read_metadata(path).num_rows for path in paths):
        raise ValueError(f"folder: expected pairs of latents, got {folder} without a single pair; see its errors")
    return Dataset.from_parquet([str(path) for path in paths]).with_transform(_unpack_batch)


def _unpack_batch(batch: dict) -> dict:
    for name in {"latents_a", "latents_b"} & batch.keys():
        batch[name] = [unpack(data) for data in batch[name]]
    return batch


def latent_shapes(dataset: Dataset) -> np.ndarray:
    """Height and width of every pair's latents, [N, 2], without reading any."""
    columns = dataset.select_columns(["height", "width"]).with_format("numpy")[:]
    return np.stack([columns["height"], columns["width"]], axis=1)
