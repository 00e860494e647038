"""Measurement of seconds and peak memory. `training.costs` counts FLOPs and bytes."""

import gc
import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from itertools import accumulate
from typing import TypeVar

import torch
from torch.profiler import ProfilerActivity, profile

Name = TypeVar("Name", bound=Hashable)

ROUNDS = 50  # of measuring seconds


def measure_seconds(cases: Mapping[Name, Callable[[], object]], device: str, rounds: int) -> dict[Name, float]:
    """Median seconds of each case over rounds in which all cases take turns."""
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    seconds: dict[Name, list[float]] = {name: [] for name in cases}
    for turn in range(rounds + 2):
        for name, case in cases.items():
            synchronize()
            start = time.perf_counter()
            case()
            synchronize()
            if turn >= 2:  # the first two rounds warm up caches and compile
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def measure_peak_bytes(case: Callable[[], object], device: str) -> int:
    """Peak memory that torch's allocators use during one call, beyond what was in use before it."""
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        case()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        case()
    # The memory of the process is no measure: it includes freed memory, and mapped files only after their first use.
    events = sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    changes = [event.nbytes() for event in events if event.name() == "[memory]"]
    return max(accumulate(changes), default=0)
