"""The small world's preferences as the reward trainer reads them: every pair of a group, with annotators' votes."""

from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from diffusers import AutoencoderKL
from tqdm import tqdm

from training.encode_latents import write_shard
from training.world.annotators import vote
from training.world.preferences import ANNOTATORS, FIRST, SECOND, Groups, rendered_groups

SHARD_SIZE = 1024  # groups


def write_pairs(groups: Groups, out: Path) -> None:
    """
    All pairs within groups as cached latents, in shards that `preference_data.latents.read_latents` reads.

    Shards that exist are kept. The target is the share of `ANNOTATORS` votes that the first picture got.

    Args:
        groups: pictures under one caption with their true utilities, which only cast the votes.
        out: folder, as `python -m training.encode_latents --out` has it.
    """
    tensors, captions = groups
    utilities = tensors["utilities"].numpy()
    votes = vote(utilities[:, FIRST], utilities[:, SECOND], ANNOTATORS, np.random.default_rng(0))
    count = -(-len(captions) // SHARD_SIZE)
    for shard in tqdm(range(count), desc=out.name, unit="shard"):
        path = out / "data" / f"train-{shard:05d}-of-{count:05d}.parquet"
        if path.exists():
            continue
        rows = slice(shard * SHARD_SIZE, (shard + 1) * SHARD_SIZE)
        latents = tensors["latents"][rows]
        pairs = torch.stack([latents[:, FIRST], latents[:, SECOND]], dim=2).flatten(0, 1)  # [pairs, 2, 16, 8, 8]
        labels = {
            "prompt": np.repeat(captions[rows], len(FIRST)),
            "target": votes[rows].astype(float).flatten(),
            "weight": np.ones(len(pairs)),
            "source": ["small world"] * len(pairs),
        }
        write_shard(path, dict(enumerate(pairs)), Dataset.from_dict(labels))


def write_rendered_pairs(out: Path, pipeline_dir: str, *, groups: int, seed: int) -> None:
    """
    Pairs of rendered pictures, drawn, encoded and voted on where `out` does not hold them yet.

    Args:
        out: as in `write_pairs`.
        pipeline_dir: diffusers pipeline of the small world whose VAE encodes them.
        groups: captions; six pairs each.
        seed: of the pictures.
    """
    vae = AutoencoderKL.from_pretrained(pipeline_dir, subfolder="vae")
    write_pairs(rendered_groups(out / "groups", vae, groups=groups, seed=seed), out)
