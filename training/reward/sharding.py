"""Weights that FSDP has shared out among processes, gathered for a file and put back from one."""

from collections.abc import Mapping

import torch
from torch.distributed.tensor import DTensor, distribute_tensor


def gather(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The whole of every weight. Every process must take part, with the weights in the same order."""
    return {
        name: weight.full_tensor().detach() if isinstance(weight, DTensor) else weight.detach()
        for name, weight in weights.items()
    }


@torch.no_grad()
def put(weights: Mapping[str, torch.Tensor], values: Mapping[str, torch.Tensor]) -> None:
    """Copy whole `values` into `weights`, each process its part. Every process must take part."""
    for name, weight in weights.items():
        value = values[name].to(weight.device, weight.dtype)
        if isinstance(weight, DTensor):
            value = distribute_tensor(value, weight.device_mesh, weight.placements)
        weight.copy_(value)
