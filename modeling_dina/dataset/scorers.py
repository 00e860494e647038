"""Execution of functions of a scorer: in a thread of this process, or in one process per device."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from multiprocessing import get_context
from threading import Lock
from typing import Any, Protocol

import torch

from modeling_dina.processes import end_with_parent
from modeling_dina.scoring_dina import DinaScorer

# Calls that a device has at a time; the second is prepared while the first is executed.
CALLS_PER_DEVICE = 2
# Times that a call is tried before the run gives up, because an image may be what kills the process.
ATTEMPTS = 3


class Scorers(Protocol):
    """One or more equal scorers, as a context manager.

    Attributes:
        max_calls: number of calls that keep all scorers busy.
    """

    max_calls: int

    def call(self, function: Callable, *arguments) -> Future:
        """Begin to execute `function(scorer, *arguments)`. The function is at the top of a module."""

    def __enter__(self) -> "Scorers": ...

    def __exit__(self, *_) -> None: ...


class LocalScorer:
    """A scorer in a thread of this process: signals of dead decoding processes, which torch turns into exceptions of
    the main thread, cannot be mistaken for a failure of the model there."""

    max_calls = CALLS_PER_DEVICE

    def __init__(self, scorer: DinaScorer):
        self._scorer = scorer

    def call(self, function: Callable, *arguments) -> Future:
        return self._thread.submit(function, self._scorer, *arguments)

    def __enter__(self) -> "LocalScorer":
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="scoring")
        return self

    def __exit__(self, *_) -> None:
        self._thread.shutdown(cancel_futures=True)


class DeviceScorers:
    """One process per device, each with its own scorer. A process that dies is replaced, and its calls are repeated.

    Args:
        open_scorer: loads the scorer for a device; it is sent to the processes.
        devices: the devices; one that is named twice has two processes.
    """

    def __init__(self, open_scorer: Callable[[str], DinaScorer], devices: Sequence[str]):
        self.max_calls = CALLS_PER_DEVICE * len(devices)
        # More threads than CPUs wait for one another.
        threads = max(1, (os.cpu_count() or 1) // len(devices))
        self._devices = [_Device(open_scorer, device, threads) for device in devices]

    def call(self, function: Callable, *arguments) -> Future:
        return min(self._devices, key=lambda device: device.calls).call(function, *arguments)

    def __enter__(self) -> "DeviceScorers":
        self._stack = ExitStack()
        for device in self._devices:
            self._stack.callback(device.close)
        return self

    def __exit__(self, *_) -> None:
        self._stack.close()


class _Device:
    """A process with a scorer, which begins with the first call.

    Args:
        open_scorer: loads the scorer for a device.
        name: the device.
        threads: maximum number of threads that compute on the CPU.

    Attributes:
        calls: number of unfinished calls.
    """

    def __init__(self, open_scorer: Callable[[str], DinaScorer], name: str, threads: int):
        self.calls = 0
        self._name, self._arguments = name, (open_scorer, name, threads)
        self._threads = ThreadPoolExecutor(max_workers=CALLS_PER_DEVICE, thread_name_prefix=f"scoring on {name}")
        self._lock = Lock()
        self._process: ProcessPoolExecutor | None = None

    def call(self, function: Callable, *arguments) -> Future:
        self.calls += 1
        future = self._threads.submit(self._call, function, arguments)
        future.add_done_callback(self._finish)
        return future

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)
        if self._process is not None:
            self._process.shutdown()

    def _finish(self, _: Future) -> None:
        self.calls -= 1

    def _call(self, function: Callable, arguments: tuple) -> Any:
        for attempt in range(ATTEMPTS):
            process = self._current_process()
            try:
                return process.submit(_execute, function, arguments).result()
            except BrokenProcessPool as error:
                self._discard(process)
                if attempt == ATTEMPTS - 1:
                    raise ValueError(
                        f"device: expected a process on {self._name} that scores a batch, got {ATTEMPTS} times one "
                        f"that was killed; is there enough memory? {error}"
                    ) from error

    def _current_process(self) -> ProcessPoolExecutor:
        with self._lock:
            if self._process is None:
                # A process that has used CUDA cannot be forked.
                self._process = ProcessPoolExecutor(
                    max_workers=1,
                    mp_context=get_context("forkserver"),
                    initializer=_begin,
                    initargs=self._arguments,
                )
            return self._process

    def _discard(self, process: ProcessPoolExecutor) -> None:
        with self._lock:
            if self._process is process:
                self._process = None
        process.shutdown()


# In the process of a device: what opens its scorer, and then the scorer.
_opening: tuple[Callable[[str], DinaScorer], str]
_scorer: DinaScorer | None = None


def _begin(open_scorer: Callable[[str], DinaScorer], device: str, threads: int) -> None:
    global _opening
    _opening = open_scorer, device
    torch.set_num_threads(min(threads, torch.get_num_threads()))
    end_with_parent()


def _execute(function: Callable, arguments: tuple) -> Any:
    global _scorer
    if _scorer is None:
        # Not in `_begin`, of which errors are lost.
        open_scorer, device = _opening
        _scorer = open_scorer(device)
    return function(_scorer, *arguments)
