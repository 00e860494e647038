"""How often a reward model's order of pictures is an annotator's."""

import numpy as np
import torch
from diffusers import StableDiffusion3Pipeline

from modeling_dina import DinaRewardModel
from modeling_dina.conditioning_dina import encode_prompts
from training.world.annotators import expected_agreement
from training.world.preferences import FIRST, GROUP_SIZE, SECOND, Groups
from training.world.text import MAX_LENGTH


@torch.no_grad()
def encode_captions(
    pipeline: StableDiffusion3Pipeline, captions: list[str], batch_size: int = 512
) -> tuple[torch.Tensor, torch.Tensor]:
    """Text embeddings [N, L, D] and pooled embeddings [N, P], float16."""
    embeds, pooled = [], []
    for start in range(0, len(captions), batch_size):
        batch = encode_prompts(pipeline, captions[start : start + batch_size], MAX_LENGTH)
        embeds.append(batch[0].half().cpu())
        pooled.append(batch[1].half().cpu())
    return torch.cat(embeds), torch.cat(pooled)


@torch.no_grad()
def group_scores(model: DinaRewardModel, pipeline: StableDiffusion3Pipeline, groups: Groups, **ensemble) -> np.ndarray:
    """Rewards [G, 4] of groups of latents; `ensemble` goes to `DinaRewardModel.reward`."""
    tensors, captions = groups
    prompt_embeds, pooled = encode_captions(pipeline, captions)
    scores = []
    for start in range(0, len(captions), 64):
        rows = slice(start, start + 64)
        output = model.reward(
            tensors["latents"][rows].flatten(0, 1).float().to(model.device),
            prompt_embeds[rows].float().repeat_interleave(GROUP_SIZE, dim=0).to(model.device),
            pooled[rows].float().repeat_interleave(GROUP_SIZE, dim=0).to(model.device),
            **ensemble,
        )
        scores.append(output.scores.view(-1, GROUP_SIZE).cpu())
    return torch.cat(scores).numpy()


def pairwise_accuracy(scores: np.ndarray, utilities: np.ndarray) -> dict[str, float]:
    """How often the order of all pairs within groups is a fresh annotator's, in expectation.

    Args:
        scores, utilities: [G, 4].

    Returns:
        "accuracy" with its "standard_error" over groups, the "best" that can be reached, and the "ratio" of the two.
    """
    pairs = utilities[:, FIRST], utilities[:, SECOND]
    agreement = expected_agreement(scores[:, FIRST] > scores[:, SECOND], *pairs)
    accuracy, best = agreement.mean(), expected_agreement(pairs[0] > pairs[1], *pairs).mean()
    error = agreement.mean(axis=1).std(ddof=1) / len(scores) ** 0.5
    measured = {"accuracy": accuracy, "standard_error": error, "best": best, "ratio": accuracy / best}
    return {name: float(value) for name, value in measured.items()}
