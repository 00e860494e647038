"""Gathering of weights that FSDP has sharded, for saving, and distribution of loaded weights."""

from collections.abc import Mapping

import torch
from torch.distributed.tensor import DTensor, distribute_tensor


def gather(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Gather the complete weights. Every process must call this, with the weights in the same order."""
    return {
        name: weight.full_tensor().detach() if isinstance(weight, DTensor) else weight.detach()
        for name, weight in weights.items()
    }


@torch.no_grad()
def put(weights: Mapping[str, torch.Tensor], values: Mapping[str, torch.Tensor]) -> None:
    """Copy complete `values` to `weights`; each process copies its shard. Every process must call this."""
    for name, weight in weights.items():
        value = values[name].to(weight.device, weight.dtype)
        if isinstance(weight, DTensor):
            value = distribute_tensor(value, weight.device_mesh, weight.placements)
        weight.copy_(value)
