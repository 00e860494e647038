"""Drawing of the small world's sets ahead of their use, by all cores."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Generic, TypeVar

import torch

from modeling_dina.processes import end_with_parent

Part = TypeVar("Part")
CHUNK = 128  # items per task


@contextmanager
def drawing_pool(workers: int | None = None) -> Iterator[Executor]:
    """Processes with one thread each, one per core unless `workers` says otherwise. Unfinished tasks are cancelled."""
    # A fork of this process would inherit its CUDA context and its locks.
    context = get_context("forkserver")
    context.set_forkserver_preload(["training.world.groups"])
    pool = ProcessPoolExecutor(workers or os.cpu_count(), context, _begin)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _begin() -> None:
    torch.set_num_threads(1)
    end_with_parent()


class Ahead(Generic[Part]):
    """
    Items 0 to total - 1 of a set, drawn by a pool in chunks. Drawing starts at once, in the order of the items.

    Args:
        pool: pool of processes; see `drawing_pool`.
        draw: draws the items with the given indices. It has to be picklable.
        total: number of items.
        size: items per chunk.
    """

    def __init__(self, pool: Executor, draw: Callable[[range], Part], total: int, size: int = CHUNK) -> None:
        self.size, self.total = size, total
        self.chunks: list[Future[Part] | None] = [
            pool.submit(draw, range(start, min(total, start + size))) for start in range(0, total, size)
        ]

    def take(self, indices: range) -> list[Part]:
        """
        Wait for the chunks of these items, and hand them over: they are not kept.

        Args:
            indices: consecutive items that begin and end at the limits of chunks.
        """
        first, last = indices.start // self.size, -(-indices.stop // self.size)
        taken, self.chunks[first:last] = self.chunks[first:last], [None] * (last - first)
        return [chunk.result() for chunk in taken if chunk is not None]

    def take_all(self) -> list[Part]:
        """Take the whole set."""
        return self.take(range(self.total))
