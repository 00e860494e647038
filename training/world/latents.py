"""Latents of pictures, encoded once and kept in shards, so that later stages do not draw and encode again."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors import safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from training.world.data import to_tensor

SHARD_SIZE = 4096


@torch.no_grad()
def encode(vae: AutoencoderKL, images: list[np.ndarray], batch_size: int = 256) -> torch.Tensor:
    """Pictures (RGB uint8 [64, 64, 3]) to float16 latents [N, 16, 8, 8] in model space: the posterior's mode."""
    batches = []
    for start in range(0, len(images), batch_size):
        pixels = torch.stack([to_tensor(image) for image in images[start : start + batch_size]])
        mode = vae.encode(pixels.to(vae.device)).latent_dist.mode()
        batches.append(((mode - vae.config.shift_factor) * vae.config.scaling_factor).half().cpu())
    return torch.cat(batches).contiguous()


def build_shards(
    directory: Path, total: int, make: Callable[[range], tuple[dict[str, torch.Tensor], list[str]]]
) -> list[Path]:
    """Write items 0 to total - 1 in shards; those that exist already are kept.

    Args:
        directory: where the shards go, each written under another name first, so that none is ever half there.
        total: number of items.
        make: given the indices of a shard, its tensors (first axis: items) and their captions.
    """
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for start in tqdm(range(0, total, SHARD_SIZE), desc=directory.name):
        path = directory / f"{start:08d}.safetensors"
        if not path.exists():
            tensors, captions = make(range(start, min(total, start + SHARD_SIZE)))
            partial = path.with_suffix(".partial")
            save_file(tensors, partial, metadata={"captions": json.dumps(captions)})
            partial.rename(path)
        paths.append(path)
    return paths


def load_shards(paths: list[Path]) -> tuple[dict[str, torch.Tensor], list[str]]:
    """All shards joined: tensors by name, and captions."""
    parts: list[dict[str, torch.Tensor]] = []
    captions: list[str] = []
    for path in paths:
        with safe_open(path, "pt") as shard:
            parts.append({name: shard.get_tensor(name) for name in shard.keys()})  # noqa: SIM118
            captions += json.loads(shard.metadata()["captions"])
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}, captions
