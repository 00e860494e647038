"""A queue that gathers requests into batches of one shape for as long as a latency budget allows, before any number of
engines with a thread each."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass

from .engine import Answer, Job, RewardEngine
from .metrics import Metrics


class QueueFullError(Exception):
    """The queue holds as many samples as it may: come again later."""


class QueueClosedError(Exception):
    """The server finishes what it has and takes nothing new."""


@dataclass
class _Waiting:
    job: Job
    arrived: float
    answer: asyncio.Future


class Batcher:
    """
    Requests wait until there are `max_batch_size` samples of their shape, or the first of them has waited for
    `max_wait`, or longer while every engine is at work. The oldest due batch goes first. An accepted request is always
    answered, with an error if need be.

    Args:
        engines: one for each device.
        max_batch_size: samples in a batch; a request of more makes a batch of its own. 1 turns batching off.
        max_wait: seconds.
        max_queue: samples that may be waiting or at work.
    """

    def __init__(
        self,
        engines: Sequence[RewardEngine],
        metrics: Metrics,
        *,
        max_batch_size: int = 32,
        max_wait: float = 0.005,
        max_queue: int = 1024,
    ):
        self.max_batch_size = max_batch_size
        self.max_wait = max_wait
        self.max_queue = max_queue
        self.samples = 0  # accepted and not answered yet
        self._engines = engines
        self._metrics = metrics
        self._groups: dict[Hashable, deque[_Waiting]] = {}
        self._changed = asyncio.Event()
        self._closed = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The engines answer for as long as this context lasts."""
        workers = [asyncio.create_task(self._work(engine)) for engine in self._engines]
        try:
            yield
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    def close(self) -> None:
        """Take nothing new; what was accepted is still answered."""
        self._closed = True

    def check_open(self, size: int = 1) -> None:
        """Raises a `QueueClosedError` or a `QueueFullError` unless that many samples would be accepted now."""
        if self._closed:
            raise QueueClosedError("the server is shutting down")
        if self.samples + size > self.max_queue:
            raise QueueFullError(f"the queue is full: {self.samples} of {self.max_queue} samples")

    async def submit(self, job: Job) -> Answer:
        """
        The answer to a job that `RewardEngine.check` has passed.

        Raises:
            QueueClosedError, QueueFullError: it was not accepted.
            ValueError: it is larger than the queue, or its images cannot be used.
            ModelFaultError: the model failed on it.
        """
        if job.size > self.max_queue:
            raise ValueError(f"body: expected at most {self.max_queue} samples, got {job.size}")
        self.check_open(job.size)
        loop = asyncio.get_running_loop()
        waiting = _Waiting(job, loop.time(), loop.create_future())
        self._groups.setdefault(job.batch_key, deque()).append(waiting)
        self.samples += job.size
        self._changed.set()
        try:
            return await waiting.answer
        finally:
            self.samples -= job.size

    async def _work(self, engine: RewardEngine) -> None:
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="reward") as thread:
            while True:
                batch = await self._next_batch()
                jobs = [waiting.job for waiting in batch]
                self._metrics.batch_samples.observe(sum(job.size for job in jobs))
                answers = await loop.run_in_executor(thread, engine.answer, jobs)
                for waiting, answer in zip(batch, answers, strict=True):
                    if waiting.answer.cancelled():
                        continue
                    if isinstance(answer, Exception):
                        waiting.answer.set_exception(answer)
                    else:
                        waiting.answer.set_result(answer)

    async def _next_batch(self) -> list[_Waiting]:
        loop = asyncio.get_running_loop()
        while True:
            now = loop.time()
            due = [key for key, group in self._groups.items() if self._due_at(group) <= now]
            if due:
                return self._take(min(due, key=lambda key: self._groups[key][0].arrived))
            self._changed.clear()
            next_due = min((self._due_at(group) for group in self._groups.values()), default=None)
            try:
                await asyncio.wait_for(self._changed.wait(), None if next_due is None else next_due - now)
            except asyncio.TimeoutError:
                continue

    def _due_at(self, group: deque[_Waiting]) -> float:
        is_full = sum(waiting.job.size for waiting in group) >= self.max_batch_size
        return group[0].arrived + (0 if is_full else self.max_wait)

    def _take(self, key: Hashable) -> list[_Waiting]:
        group = self._groups[key]
        batch = [group.popleft()]
        room = self.max_batch_size - batch[0].job.size
        while group and group[0].job.size <= room:
            room -= group[0].job.size
            batch.append(group.popleft())
        if not group:
            del self._groups[key]
        return batch
