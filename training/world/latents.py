"""Latents of the small world's pictures, and the shards that store them.

Pictures are drawn and encoded once; later stages read the shards.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from safetensors import safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from modeling_dina.files import atomic_path
from modeling_dina.latents_dina import decode_latents, encode_images
from training.world.drawing import Ahead
from training.world.groups import GROUP_SIZE, Groups, RenderedPictures

SHARD_SIZE = 4096


def to_pixels(pictures: np.ndarray) -> torch.Tensor:
    """Convert RGB uint8 [..., H, W, 3] to float32 [..., 3, H, W] in [-1, 1], like diffusers' image processor."""
    return torch.from_numpy(np.moveaxis(pictures, -1, -3).astype(np.float32, order="C") / 127.5 - 1)


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: np.ndarray, batch_size: int = 256) -> torch.Tensor:
    """Encode pictures, RGB uint8 [N, 64, 64, 3], to float16 latents [N, 16, 16, 16] in model space (modes)."""
    batches = []
    for start in range(0, len(pictures), batch_size):
        pixels = to_pixels(pictures[start : start + batch_size])
        batches.append(encode_images(vae, pixels.to(vae.device)).half().cpu())
    return torch.cat(batches).contiguous()


@torch.no_grad()
def decode(pipeline: DiffusionPipeline, latents: torch.Tensor) -> np.ndarray:
    """Decode latents [B, 16, 16, 16] in model space to pictures, RGB uint8 [B, 64, 64, 3]."""
    images = [decode_latents(pipeline.vae, batch.to(pipeline.vae.device)).cpu() for batch in latents.split(128)]
    pictures = pipeline.image_processor.postprocess(torch.cat(images), output_type="np")
    return (pictures * 255).round().astype(np.uint8)


class Shard(NamedTuple):
    """Captions of N items, and tensors [N, ...] by name."""

    tensors: dict[str, torch.Tensor]
    captions: list[str]


def shard_paths(directory: Path, total: int) -> list[Path]:
    """Paths of the shards of a set with `total` items, in order."""
    return [directory / f"{start:08d}.safetensors" for start in range(0, total, SHARD_SIZE)]


def build_shards(directory: Path, total: int, make: Callable[[range], Shard]) -> list[Path]:
    """
    Write items 0 to total - 1 in shards. Existing shards are not changed.

    Args:
        directory: folder of the shards. Every shard in it is complete.
        total: number of items.
        make: creates the shard with the given item indices.
    """
    paths = shard_paths(directory, total)
    for index, path in enumerate(tqdm(paths, desc=directory.name)):
        if not path.exists():
            start = index * SHARD_SIZE
            tensors, captions = make(range(start, min(total, start + SHARD_SIZE)))
            with atomic_path(path) as partial:
                save_file(tensors, partial, metadata={"captions": json.dumps(captions)})
    return paths


def load_shards(paths: Sequence[Path]) -> Shard:
    """Load shards and concatenate them."""
    parts: list[dict[str, torch.Tensor]] = []
    captions: list[str] = []
    for path in paths:
        with safe_open(path, "pt") as shard:
            parts.append({name: shard.get_tensor(name) for name in shard.keys()})  # noqa: SIM118
            captions += json.loads(shard.metadata()["captions"])
    return Shard({name: torch.cat([part[name] for part in parts]) for name in parts[0]}, captions)


def store_groups(directory: Path, count: int, make: Callable[[range], Groups]) -> Groups:
    """
    Load groups 0 to count - 1 with their latents from shards, and write the missing shards first.

    Args:
        directory: folder of the shards.
        count: number of groups.
        make: creates the groups with the given indices, including their latents.
    """

    def make_shard(indices: range) -> Shard:
        groups = make(indices)
        assert groups.latents is not None
        utilities = torch.from_numpy(groups.utilities).float()
        return Shard({"latents": groups.latents, "utilities": utilities}, groups.captions)

    tensors, captions = load_shards(build_shards(directory, count, make_shard))
    return Groups(captions, tensors["utilities"].numpy(), latents=tensors["latents"])


def rendered_groups(
    directory: Path,
    vae: AutoencoderKL,
    *,
    groups: int,
    seed: int,
    held_out: bool = False,
    ahead: Ahead[Groups] | None = None,
) -> Groups:
    """
    Load rendered groups with their latents, and encode missing ones first. Pictures are drawn on access.

    Args:
        directory: folder of the shards.
        vae: autoencoder that encodes the pictures.
        groups: number of groups.
        seed, held_out: arguments of `draw_group`.
        ahead: the same groups, if other processes draw them.
    """

    def make(indices: range) -> Groups:
        drawn = Groups.draw(indices, seed, held_out) if ahead is None else Groups.join(ahead.take(indices))
        assert drawn.pictures is not None
        latents = encode(vae, np.concatenate(drawn.pictures)).unflatten(0, (-1, GROUP_SIZE))
        return replace(drawn, latents=latents)

    return replace(store_groups(directory, groups, make), pictures=RenderedPictures(seed, groups, held_out))
