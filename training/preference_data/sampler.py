"""Batches of one shape that cover a data set exactly once an epoch, whatever the number of processes."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import Sampler


class ShapeBatchSampler(Sampler[list[int]]):
    """
    A position in an endless stream of epochs, each a new order of batches; iterating goes on to the end of the epoch.

    In an epoch every sample is in exactly one batch of one process, all samples of a batch have one shape, and every
    process gets the same number of batches, none of them empty. Batches are as even as they can be, and those that the
    processes get at the same step have the same shape wherever there are enough of it, so that none waits for another.
    The order depends on `seed` and the epoch alone.

    Args:
        shapes: [N, 2], height and width of each sample.
        max_area: height times width times samples of a batch; a batch has at least one sample.
        num_replicas: number of processes.
        rank: which of them this is.
        seed: of all orders.

    Raises:
        ValueError: an argument is out of range, or the samples cannot be shared out so that every process has a batch
            at every step (there are too few, or nearly all of them fill a batch alone).
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
        """Batches of one process in a whole epoch."""
        return int(self._batches.sum()) // self._identity["num_replicas"]

    def __iter__(self) -> Iterator[list[int]]:
        if self.step == len(self):
            self.set_epoch(self.epoch + 1)
        steps = self._steps()
        while self.step < len(self):
            batch = steps[self.step][self.rank]
            # Counted before it is handed out: a generator runs no further than its last `next`.
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
        # Batches of one shape are neighbours, and so are the processes of a step.
        steps = [batches[start : start + num_replicas] for start in range(0, len(batches), num_replicas)]
        return [steps[index] for index in rng.permutation(len(steps))]

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of `epoch`; a position within that same epoch, just restored, is kept."""
        if epoch != self.epoch or self.step == len(self):
            self.epoch, self.step = epoch, 0

    def state_dict(self, step: int | None = None) -> dict[str, Any]:
        """
        The position, to be restored by `load_state_dict` on any rank.

        Args:
            step: batches of this epoch that have been used. None takes those handed out, which is the same unless a
                data loader with worker processes fetches ahead.
        """
        return {**self._identity, "epoch": self.epoch, "step": self.step if step is None else step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Go to a saved position.

        Raises:
            ValueError: it was saved for other data, batches, seed or number of processes.
        """
        for name, value in self._identity.items():
            if state[name] != value:
                raise ValueError(f"state: expected {name} {value}, got {state[name]}")
        self.epoch, self.step = state["epoch"], state["step"]


def _even_batches(sizes: np.ndarray, limits: np.ndarray, num_replicas: int) -> np.ndarray:
    """
    Into how many batches each shape is split, so that the total is a multiple of `num_replicas`.

    Args:
        sizes: [S], samples of each shape.
        limits: [S], the most of them that a batch may have.
    """
    counts = -(-sizes // limits)
    for _ in range(-counts.sum() % num_replicas):
        # Where batches are largest, one more makes the least difference.
        largest = (sizes / counts).argmax()
        if sizes[largest] == counts[largest]:
            raise ValueError(
                f"shapes: expected samples for the same number of batches in {num_replicas} processes, got "
                f"{sizes.sum()} that fill a batch each; leave out {sizes.sum() % num_replicas}, or raise max_area"
            )
        counts[largest] += 1
    return counts
