"""What all variants share: the pipeline, the groups to train on, and the sets to measure on."""

from pathlib import Path

import torch
from diffusers import StableDiffusion3Pipeline

from training.encode_world import write_rendered_pairs
from training.reward.data import load_pairs
from training.world.latents import rendered_groups
from training.world.seeds import Seed

TEST_SEEDS = {"seen": Seed.STUDY_SEEN, "held_out": Seed.STUDY_HELD_OUT}


class Material:
    """
    Drawn and encoded where it is missing.

    Args:
        folder: that pictures and latents are stored in.
        pipeline_dir: diffusers pipeline of the small world.
        train_groups, test_groups: captions with four pictures each, to train on and in each test set.

    Attributes:
        train: the groups to train on; `pairs` are all their pairs with votes.
        sets: groups to measure on: "seen", and "held_out" combinations.
    """

    def __init__(self, folder: Path, pipeline_dir: str, train_groups: int, test_groups: int) -> None:
        self.folder, self.pipeline_dir = folder, pipeline_dir
        self.pipeline = StableDiffusion3Pipeline.from_pretrained(pipeline_dir, transformer=None, dtype=torch.float32)
        self.pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
        self.pipeline.vae.requires_grad_(False)
        self.train = write_rendered_pairs(folder / "train", pipeline_dir, groups=train_groups, seed=Seed.STUDY_TRAIN)
        self.pairs = load_pairs([folder / "train"])
        self.sets = {
            name: rendered_groups(
                folder / name, self.pipeline.vae, groups=test_groups, seed=seed, held_out=name == "held_out"
            )
            for name, seed in TEST_SEEDS.items()
        }
