"""Aligning in the small world: its captions as prompts, and the truth about its pictures as a reward."""

import re

import numpy as np
import torch
from diffusers import StableDiffusion3Pipeline

from training.align.rewards import Judgement, Reward
from training.world.annotators import IMPRESSION_NOISE
from training.world.preferences import decode
from training.world.scenes import COLORS, COUNTS, RELATIONS, SHAPES, SIZES, Description, Thing, sample_description
from training.world.utility import true_utility

# Apart from the seeds of all that generator and reward model were trained and tested on.
PROMPT_SEED, EVALUATION_SEED = 40, 41


def world_caption(index: int, *seed: int) -> str:
    """A random caption, a function of its number and a seed."""
    return sample_description(np.random.default_rng((*seed, index))).caption


def describe(caption: str) -> Description:
    """The description that a caption of the small world was made from.

    Raises:
        ValueError: it is none.
    """
    for count, word in COUNTS.items():
        if caption.startswith(f"{word} ") and caption.endswith("s"):
            return Description((_thing(caption.removeprefix(f"{word} ").removesuffix("s"), caption),) * count)
    for relation in RELATIONS:
        if f" {relation} " in caption:
            return Description(_things(caption.split(f" {relation} "), caption), relation)
    return Description(_things(re.split(", | and ", caption), caption))


def _things(named: list[str], caption: str) -> tuple[Thing, ...]:
    return tuple(_thing(each.removeprefix("a "), caption) for each in named)


def _thing(text: str, caption: str) -> Thing:
    *size, color, shape = ["", *text.split(" ")][-3:]
    if color not in COLORS or shape not in SHAPES or size[0] not in ("", *SIZES):
        raise ValueError(f"prompt: expected a caption of the small world, got {caption!r}")
    return Thing(color, shape, size[0] or None)


class UtilityReward(Reward):
    """The true utility of the small world, read off the decoded picture. Nothing flows back through it.

    Its variance is that of an annotator's impression.

    Args:
        pipeline: whose VAE decodes.
    """

    differentiable = False

    def __init__(self, pipeline: StableDiffusion3Pipeline) -> None:
        self.pipeline = pipeline

    def judge(self, latents, conditioning, sigma, seed):
        pictures = decode(self.pipeline, latents)
        described = map(describe, conditioning.prompts)
        utilities = [true_utility(text, picture) for text, picture in zip(described, pictures, strict=True)]
        scores = latents.new_tensor(utilities)
        return Judgement(scores, torch.zeros_like(scores), torch.full_like(scores, IMPRESSION_NOISE**2))
