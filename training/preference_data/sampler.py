"""Batches of one shape that cover a data set exactly once per epoch, for any number of processes."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import Sampler


class ShapeBatchSampler(Sampler[list[int]]):
    """
    A sampler with a position in an endless sequence of epochs. Iteration continues to the end of the current epoch.

    In an epoch, every sample is in exactly one batch of one process, all samples of a batch have the same shape, and
    every process has the same number of batches, none of them empty. Batch sizes are as even as possible. At each
    step, the batches of all processes have the same shape if enough of them exist, so that no process waits for
    another. The order depends only on `seed` and the epoch.

    Args:
        shapes: [N, 2], height and width of each sample.
        max_area: maximum of height times width times samples in a batch; a batch has at least one sample.
        num_replicas: number of processes.
        rank: index of this process.
        seed: seed of the orders.

    Raises:
        ValueError: an argument is out of range, or the samples cannot be divided so that every process has a batch at
            every step (there are too few, or nearly all of them fill a batch alone).
    """

    def __init__(
        self, shapes: np.ndarray, *, max_area: int, num_replicas: int = 1, rank: int = 0, seed: int = 0
    ) -> None:
        shapes = np.asarray(shapes)
        if shapes.ndim != 2 or shapes.shape[1] != 2 or len(shapes) == 0:
            raise ValueError(f"shapes: expected height and width of each sample, [N, 2], got {list(shapes.shape)}")
        if max_area < 1:
            raise ValueError(f"max_area: expected at least 1, got {max_area}")
        if not 0 <= rank < num_replicas:
            raise ValueError(f"rank: expected 0 to {num_replicas - 1} for {num_replicas} processes, got {rank}")
        kinds, kind_of = np.unique(shapes, axis=0, return_inverse=True)
        self._members = [np.flatnonzero(kind_of == kind) for kind in range(len(kinds))]
        sizes = np.bincount(kind_of)
        self._batches = _even_batches(sizes, np.maximum(1, max_area // kinds.prod(axis=1)), num_replicas)
        self._identity = {"samples": len(shapes), "max_area": max_area, "num_replicas": num_replicas, "seed": seed}
        self.rank = rank
        self.epoch = 0
        self.step = 0

    def __len__(self) -> int:
        """Number of batches of one process per epoch."""
        return int(self._batches.sum()) // self._identity["num_replicas"]

    def __iter__(self) -> Iterator[list[int]]:
        if self.step == len(self):
            self.set_epoch(self.epoch + 1)
        steps = self._steps()
        while self.step < len(self):
            batch = steps[self.step][self.rank]
            # Counted before the batch is returned, because a generator stops at its last `next`.
            self.step += 1
            yield batch.tolist()

    def _steps(self) -> list[list[np.ndarray]]:
        """The batches of this epoch by step and process."""
        rng = np.random.default_rng((self._identity["seed"], self.epoch))
        batches = [
            batch
            for members, count in zip(self._members, self._batches, strict=True)
            for batch in np.array_split(rng.permutation(members), count)
        ]
        num_replicas = self._identity["num_replicas"]
        # Consecutive batches, which mostly have the same shape, form a step of all processes.
        steps = [batches[start : start + num_replicas] for start in range(0, len(batches), num_replicas)]
        return [steps[index] for index in rng.permutation(len(steps))]

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of `epoch`, unless the position, which may have been restored, is within this epoch."""
        if epoch != self.epoch or self.step == len(self):
            self.epoch, self.step = epoch, 0

    def state_dict(self, step: int | None = None) -> dict[str, Any]:
        """
        The position, which `load_state_dict` restores on any rank.

        Args:
            step: number of used batches in this epoch. None counts the returned batches, which differ if a data loader
                with worker processes prefetches.
        """
        return {**self._identity, "epoch": self.epoch, "step": self.step if step is None else step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Restore a position.

        Raises:
            ValueError: the position was saved with other data, batches, seed or number of processes.
        """
        for name, value in self._identity.items():
            if state[name] != value:
                raise ValueError(f"state: expected {name} {value}, got {state[name]}")
        self.epoch, self.step = state["epoch"], state["step"]


def _even_batches(sizes: np.ndarray, limits: np.ndarray, num_replicas: int) -> np.ndarray:
    """
    Number of batches for each shape, [S], so that the total is a multiple of `num_replicas`.

    Args:
        sizes: [S], number of samples of each shape.
        limits: [S], maximum number of samples in a batch of each shape.
    """
    counts = -(-sizes // limits)
    for _ in range(-counts.sum() % num_replicas):
        # An additional batch changes the batch size least where batches are largest.
        largest = (sizes / counts).argmax()
        if sizes[largest] == counts[largest]:
            raise ValueError(
                f"shapes: expected samples for the same number of batches in {num_replicas} processes, got "
                f"{sizes.sum()} that fill a batch each; leave out {sizes.sum() % num_replicas}, or raise max_area"
            )
        counts[largest] += 1
    return counts
