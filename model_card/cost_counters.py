"""Instruments of cost: FLOPs and bytes counted without computing, seconds and peak memory measured."""

import gc
import statistics
import time
from collections.abc import Callable
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

ROUNDS = 50  # of measuring seconds
ATTENTION_DEFAULTS = {"dropout_p": 0.0, "is_causal": False, "scale": None}


class FusedAttention(TorchFunctionMode):
    """
    Attention on the meta device as the fused kernels of CUDA do it: the probabilities are not kept for the backward
    pass but computed again there. Unfused, they would outweigh everything else that is kept.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        options = kwargs or {}
        if func is not F.scaled_dot_product_attention or not args[0].is_meta or options.get("attn_mask") is not None:
            return func(*args, **options)
        # Keys and values of fewer heads than the queries need no copies here.
        dropout, causal, scale = (options.get(name, default) for name, default in ATTENTION_DEFAULTS.items())
        return torch.ops.aten._scaled_dot_product_flash_attention(*args, dropout, causal, scale=scale)[0]


def count_flops(case: Callable[[], object]) -> int:
    """Floating-point operations of one call, by torch's counter; a multiplication and an addition are two."""
    with FusedAttention(), FlopCounterMode(display=False) as counter:
        case()
    return counter.get_total_flops()


def measure_seconds(cases: dict[str, Callable[[], object]], device: str, rounds: int) -> dict[str, float]:
    """Median seconds of each case over rounds in which all take turns."""
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(rounds + 2):
        for name, case in cases.items():
            synchronize()
            start = time.perf_counter()
            case()
            synchronize()
            if turn >= 2:  # the first turns warm caches up, and compile
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def measure_peak_bytes(case: Callable[[], object], device: str) -> int:
    """Most memory that one call holds beyond what was held before it, as torch's allocators have it."""
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        case()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        case()
    # What the process holds may be more: it keeps freed memory, and what it reads from files is there only when used.
    events = sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    changes = [event.nbytes() for event in events if event.name() == "[memory]"]
    return max(accumulate(changes), default=0)
