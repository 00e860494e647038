"""Batches of preference pairs for training and evaluation, from cached latents."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from torch.utils.data import DataLoader

from training.preference_data.latents import latent_shapes, read_latents
from training.preference_data.sampler import ShapeBatchSampler


def load_pairs(folders: Sequence[str | Path]) -> Dataset:
    """
    Load and concatenate the pairs of several folders written by `training.encode_latents`, and add their row numbers
    as the column "row"; see `read_latents`.

    Raises:
        ValueError: a folder has no latents or is incomplete.
    """
    parts = [read_latents(Path(folder)) for folder in folders]
    pairs = concatenate_datasets(parts)
    # The noise of a row depends on its number. Concatenation drops the transform that unpacks latents.
    numbered = pairs.add_column("row", np.arange(len(pairs)))
    return numbered.with_transform(parts[0].format["format_kwargs"]["transform"])


def with_targets(pairs: Dataset, targets: Sequence[float]) -> Dataset:
    """The pairs of `load_pairs` with other targets, one for each pair."""
    transform = pairs.format["format_kwargs"]["transform"]
    unlabelled = pairs.with_format(None).remove_columns("target")
    return unlabelled.add_column("target", list(targets)).with_transform(transform)


class PairLoader(DataLoader):
    """
    Batches of one latent shape, divided between processes, with every pair once per epoch.

    A batch contains the lists "index" (rows of `pairs`) and "prompt", "latents" [2, B, C, H, W] of images a and b in
    float32, "target" [B] and "weight" [B].

    Args:
        pairs: data set from `load_pairs`.
        max_area: maximum number of latent positions (height x width) in a batch, counting one image per pair.
        num_replicas, rank: number of processes, and index of this process.
        seed: seed of the order.
        num_workers: number of processes that prefetch.
    """

    def __init__(
        self, pairs: Dataset, *, max_area: int, num_replicas: int, rank: int, seed: int, num_workers: int
    ) -> None:
        self.pair_sampler = ShapeBatchSampler(
            latent_shapes(pairs), max_area=max_area, num_replicas=num_replicas, rank=rank, seed=seed
        )
        super().__init__(
            pairs,
            batch_sampler=self.pair_sampler,
            collate_fn=collate_pairs,
            num_workers=num_workers,
            pin_memory=torch.cuda.is_available(),
        )

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer before each epoch."""
        self.pair_sampler.set_epoch(epoch)


def collate_pairs(rows: list[dict]) -> dict[str, torch.Tensor | list]:
    """Collate rows of `load_pairs` to a batch of `PairLoader`."""
    sides = [torch.stack([row[f"latents_{side}"] for row in rows]) for side in "ab"]
    return {
        "index": [row["row"] for row in rows],
        "prompt": [row["prompt"] for row in rows],
        "latents": torch.stack(sides).float(),
        "target": torch.tensor([row["target"] for row in rows], dtype=torch.float32),
        "weight": torch.tensor([row["weight"] for row in rows], dtype=torch.float32),
    }
