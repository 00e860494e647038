"""The true utility of the small world as a reward."""

import torch
from diffusers import StableDiffusion3Pipeline

from training.align.rewards import Reward, RewardOutput
from training.world.annotators import IMPRESSION_NOISE
from training.world.latents import decode
from training.world.scenes import describe
from training.world.utility import true_utility


class UtilityReward(Reward):
    """The true utility of the small world, measured on the decoded picture, without gradient.

    Its variance is that of an annotator's estimate.

    Args:
        pipeline: pipeline whose VAE decodes latents.
    """

    differentiable = False

    def __init__(self, pipeline: StableDiffusion3Pipeline) -> None:
        self.pipeline = pipeline

    def score(self, latents, conditioning, sigma, seed):
        pictures = decode(self.pipeline, latents)
        described = map(describe, conditioning.prompts)
        utilities = [true_utility(text, picture) for text, picture in zip(described, pictures, strict=True)]
        scores = latents.new_tensor(utilities)
        return RewardOutput(scores, torch.zeros_like(scores), torch.full_like(scores, IMPRESSION_NOISE**2))
