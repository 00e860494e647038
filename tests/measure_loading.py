"""`python -m tests.measure_loading BASE OFFICIAL ADAPTER SMALL FIELDS` prints, for each way of loading a model, the
bytes of its weights and the most that memory grew by while it was loaded.

Args:
    BASE: diffusers folder.
    OFFICIAL: checkpoint in the published layout.
    ADAPTER: adapter-only checkpoint.
    SMALL: any small model, whose loading imports what loading imports.
    FIELDS: of `DinaConfig`, as JSON.
"""

import ctypes
import gc
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from modeling_dina import DinaRewardModel


def memory(name: str) -> int:
    """A line of this process's status, in bytes: VmRSS is what it has, VmHWM the most that it has had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def measure(load: Callable[[], DinaRewardModel]) -> tuple[int, int]:
    """Bytes of the weights, and of the peak above what was in memory before."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    before = memory("VmRSS")
    weights = load().state_dict().values()
    return sum(tensor.nbytes for tensor in weights), memory("VmHWM") - before


if __name__ == "__main__":
    base, official, adapter, small = sys.argv[1:5]
    fields = json.loads(sys.argv[5])
    DinaRewardModel.from_pretrained(small)
    torch.ones(256, 2) @ torch.ones(2, 256)  # the library's buffers, which merging a LoRA needs
    loaders: dict[str, Callable[[], DinaRewardModel]] = {
        "backbone": lambda: DinaRewardModel.from_backbone(base, **fields),
        "half": lambda: DinaRewardModel.from_backbone(base, dtype=torch.bfloat16, **fields),
        "official": lambda: DinaRewardModel.from_pretrained(official, backbone=base),
        "adapter": lambda: DinaRewardModel.from_pretrained(adapter),
    }
    print(json.dumps({name: measure(load) for name, load in loaders.items()}))
