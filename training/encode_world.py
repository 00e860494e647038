"""The small world's preferences in the format of the reward trainer: all pairs within groups, with votes."""

from concurrent.futures import Executor
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from diffusers import AutoencoderKL
from tqdm import tqdm

from training.encode_latents import write_shard
from training.world.groups import FIRST, SECOND, Groups, cast_votes
from training.world.latents import rendered_groups

SHARD_SIZE = 1024  # groups


def write_pairs(groups: Groups, out: Path, pool: Executor | None = None) -> None:
    """
    Write all pairs within groups as cached latents, in the shards of `preference_data.latents.read_latents`.

    Existing shards are not changed. The target is the share of votes for the first picture.

    Args:
        groups: groups with latents. Their utilities are used only to draw the votes.
        out: folder with the layout of `python -m training.encode_latents --out`.
        pool: processes that write the shards, if there are any; see `drawing_pool`.
    """
    assert groups.latents is not None
    votes = cast_votes(groups.utilities)
    count = -(-len(groups) // SHARD_SIZE)
    shards = []
    for shard in range(count):
        path = out / "data" / f"train-{shard:05d}-of-{count:05d}.parquet"
        if not path.exists():
            rows = slice(shard * SHARD_SIZE, (shard + 1) * SHARD_SIZE)
            shards.append((path, groups.captions[rows], groups.latents[rows].clone(), votes[rows]))
    written = (map if pool is None else pool.map)(_write_pairs, *zip(*shards, strict=True)) if shards else ()
    for _ in tqdm(written, desc=out.name, unit="shard", total=len(shards)):
        pass


def _write_pairs(path: Path, captions: list[str], latents: torch.Tensor, votes: np.ndarray) -> None:
    """Write one shard: captions of G groups, latents [G, 4, C, H, W] and votes [G, 6]."""
    pairs = torch.stack([latents[:, FIRST], latents[:, SECOND]], dim=2).flatten(0, 1)  # [pairs, 2, C, H, W]
    labels = {
        "prompt": np.repeat(captions, len(FIRST)),
        "target": votes.astype(float).flatten(),
        "weight": np.ones(len(pairs)),
        "source": ["small world"] * len(pairs),
    }
    write_shard(path, dict(enumerate(pairs)), Dataset.from_dict(labels))


def write_rendered_pairs(out: Path, pipeline_dir: str, *, groups: int, seed: int) -> Groups:
    """
    Draw and encode rendered groups, and write their pairs; results that are already in `out` are reused.

    Args:
        out: as in `write_pairs`.
        pipeline_dir: diffusers pipeline of the small world whose VAE encodes the pictures.
        groups: number of groups, with one caption and six pairs each.
        seed: seed of the set.

    Returns:
        The groups.
    """
    vae = AutoencoderKL.from_pretrained(pipeline_dir, subfolder="vae")
    rendered = rendered_groups(out / "groups", vae, groups=groups, seed=seed)
    write_pairs(rendered, out)
    return rendered
