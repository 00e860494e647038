"""Scoring of groups of latents with a reward model."""

import numpy as np
import torch
from diffusers import StableDiffusion3Pipeline

from modeling_dina import DinaRewardModel
from modeling_dina.conditioning_dina import encode_prompts
from training.world.groups import GROUP_SIZE, Groups
from training.world.models.text import MAX_LENGTH


@torch.no_grad()
def encode_captions(
    pipeline: StableDiffusion3Pipeline, captions: list[str], batch_size: int = 512
) -> tuple[torch.Tensor, torch.Tensor]:
    """Text embeddings [N, L, D] and pooled embeddings [N, P], float16."""
    embeds, pooled = [], []
    for start in range(0, len(captions), batch_size):
        batch = encode_prompts(pipeline, captions[start : start + batch_size], MAX_LENGTH).pair()
        embeds.append(batch[0].half().cpu())
        pooled.append(batch[1].half().cpu())
    return torch.cat(embeds), torch.cat(pooled)


@torch.no_grad()
def group_scores(model: DinaRewardModel, pipeline: StableDiffusion3Pipeline, groups: Groups, **ensemble) -> np.ndarray:
    """Rewards [G, 4] of groups of latents; `ensemble` is passed to `DinaRewardModel.reward`."""
    prompt_embeds, pooled = encode_captions(pipeline, groups.captions)
    assert groups.latents is not None
    scores = []
    for start in range(0, len(groups), 64):
        rows = slice(start, start + 64)
        output = model.reward(
            groups.latents[rows].flatten(0, 1).float().to(model.device),
            prompt_embeds[rows].float().repeat_interleave(GROUP_SIZE, dim=0).to(model.device),
            pooled[rows].float().repeat_interleave(GROUP_SIZE, dim=0).to(model.device),
            **ensemble,
        )
        scores.append(output.scores.view(-1, GROUP_SIZE).cpu())
    return torch.cat(scores).numpy()
