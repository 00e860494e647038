"""A queue that collects requests of one shape into batches within a latency budget, for one or more engines with a
thread each."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass

from .engine import Answer, Job, RewardEngine
from .metrics import Metrics


class QueueFullError(Exception):
    """The queue is full; the client should retry later."""


class QueueClosedError(Exception):
    """The server is shutting down and accepts no new requests."""


@dataclass
class _Waiting:
    job: Job
    arrived: float
    answer: asyncio.Future


class Batcher:
    """
    A batch is due when there are `max_batch_size` samples of one shape, or when the first of them has waited for
    `max_wait`. It waits longer while all engines are busy. The oldest due batch is processed first. Every accepted
    request gets a response, which may be an error.

    Args:
        engines: one engine per device.
        max_batch_size: maximum number of samples in a batch; a larger request forms its own batch. 1 switches batching
            off.
        max_wait: maximum waiting time in seconds.
        max_queue: maximum number of samples that wait or are being processed.
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
        self.samples = 0  # accepted and not yet answered
        self._engines = engines
        self._metrics = metrics
        self._groups: dict[Hashable, deque[_Waiting]] = {}
        self._changed = asyncio.Event()
        self._closed = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Context in which the engines process requests."""
        workers = [asyncio.create_task(self._work(engine)) for engine in self._engines]
        try:
            yield
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    def close(self) -> None:
        """Refuse new requests; accepted ones are still processed."""
        self._closed = True

    def check_open(self, size: int = 1) -> None:
        """Raise a `QueueClosedError` or a `QueueFullError` unless `size` samples would be accepted now."""
        if self._closed:
            raise QueueClosedError("the server is shutting down")
        if self.samples + size > self.max_queue:
            raise QueueFullError(f"the queue is full: {self.samples} of {self.max_queue} samples")

    async def submit(self, job: Job) -> Answer:
        """
        Wait for the answer to a job that `RewardEngine.check` has accepted.

        Raises:
            QueueClosedError, QueueFullError: the job was not accepted.
            ValueError: the job is larger than the queue, or its images are invalid.
            ModelFaultError: the model failed on the job.
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
            except TimeoutError:
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
