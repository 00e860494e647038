"""The variant that reads pictures: the small world's pixel reward, trained on the same groups as the others."""

from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusion3Pipeline
from transformers import set_seed

from model_card.studies.method.measurement import GROUPS_PER_BATCH, LevelRewards, Reader
from modeling_dina.latents_dina import decode_latents
from training.reward.pixel_model import PixelRewardModel
from training.world.annotators import IMPRESSION_NOISE
from training.world.groups import GROUP_SIZE, Groups
from training.world.latents import to_pixels
from training.world.models.pixel_reward import features_and_votes, fit_pixel_reward, fresh_pixel_reward
from training.world.models.scores import encode_captions

EPOCHS = 4  # as in `training.world.models.pixel_reward`; the other variants have two


def untrained_pixels(pipeline: StableDiffusion3Pipeline) -> PixelRewardModel:
    """The model for the pipeline's pictures and prompts, with random weights behind its encoder."""
    return fresh_pixel_reward(pipeline.vae, encode_captions(pipeline, [""])[0].shape[-1]).eval()


def train_pixels(
    pipeline: StableDiffusion3Pipeline, groups: Groups, seed: int, steps: int, folder: Path
) -> PixelRewardModel:
    """Train in about `steps` updates, from the last checkpoint in `folder` if there is one; the seed is that of the
    fresh weights and of the order of the groups."""
    set_seed(seed)
    model = untrained_pixels(pipeline)
    votes = features_and_votes(model, pipeline, [groups])
    batch_size = max(1, EPOCHS * len(groups) // steps)
    fit_pixel_reward(model, votes, folder, updates=steps, batch_size=batch_size, seed=seed)
    return model.to(pipeline.device)


@torch.no_grad()
def score_pixels(
    model: PixelRewardModel, pipeline: StableDiffusion3Pipeline, captions: list[str], images: torch.Tensor, reads: str
) -> torch.Tensor:
    """Scores [B] of images under captions, from the text on. The images are "latents" [B, C, H, W] in model space or
    "pictures" [B, 3, H, W] in [-1, 1], as `reads` says, with one caption for every B / len(captions) of them."""
    images = images.float().to(pipeline.device)
    pictures = decode_latents(pipeline.vae, images).clamp(-1, 1) if reads == "latents" else images
    embeds = encode_captions(pipeline, captions)[0].float().to(pipeline.device)
    return model(pictures, embeds.repeat_interleave(len(images) // len(captions), dim=0))


def pixel_reader(model: PixelRewardModel, pipeline: StableDiffusion3Pipeline) -> Reader:
    """A reader of clean latents or pictures; it ignores noise levels and has one draw at one level."""

    def read(groups: Groups, sigmas: tuple[float, ...], draws: int, reads: str) -> LevelRewards:
        assert groups.latents is not None
        assert groups.pictures is not None
        scores = []
        for start in range(0, len(groups), GROUPS_PER_BATCH):
            rows = range(start, min(len(groups), start + GROUPS_PER_BATCH))
            images = groups.latents[rows.start : rows.stop].flatten(0, 1)
            if reads == "pictures":
                images = to_pixels(np.concatenate([groups.pictures[row] for row in rows]))
            scores.append(score_pixels(model, pipeline, groups.captions[rows.start : rows.stop], images, reads))
        samples = torch.cat(scores).double().cpu().numpy().reshape(1, 1, GROUP_SIZE * len(groups))
        return LevelRewards(samples, samples, np.array([IMPRESSION_NOISE**2]))

    return read
