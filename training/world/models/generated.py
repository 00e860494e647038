"""Groups of generated pictures with their true utilities."""

from concurrent.futures import Executor
from pathlib import Path

import torch
from diffusers import StableDiffusion3Pipeline

from training.world.groups import GROUP_SIZE, Groups, draw_description
from training.world.latents import decode, store_groups
from training.world.models.text import MAX_LENGTH


def sample_latents(
    pipeline: StableDiffusion3Pipeline, captions: list[str], *, guidance_scale: float, seed: int, steps: int = 16
) -> torch.Tensor:
    """Sample one latent per caption, [B, 16, 16, 16] in model space."""
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        captions,
        height=64,
        width=64,
        guidance_scale=guidance_scale,
        num_inference_steps=steps,
        max_sequence_length=MAX_LENGTH,
        generator=torch.Generator().manual_seed(seed),
        output_type="latent",
    ).images


def generated_groups(
    directory: Path,
    pipeline: StableDiffusion3Pipeline,
    *,
    groups: int,
    seed: int,
    batch_size: int = 128,
    pool: Executor | None = None,
) -> Groups:
    """
    Load groups of generated pictures, stored as latents, and generate missing ones first.

    Args:
        directory: folder of the shards.
        pipeline: generator.
        groups: number of groups.
        seed: seed of the captions. The noise of a batch has this seed plus the index of the batch's first group.
        batch_size: number of groups sampled at a time; it affects the result.
        pool: processes that measure utilities, if there are any; see `drawing_pool`.
    """

    def make(indices: range) -> Groups:
        descriptions = [draw_description(seed, index) for index in indices]
        latents = torch.cat(
            [
                sample_latents(
                    pipeline,
                    [text.caption for text in descriptions[start : start + batch_size] for _ in range(GROUP_SIZE)],
                    # Every other batch has no guidance, for more diverse samples.
                    guidance_scale=(1.0, 3.0)[start // batch_size % 2],
                    seed=seed + indices[start],
                )
                for start in range(0, len(descriptions), batch_size)
            ]
        )
        pictures = decode(pipeline, latents)
        return Groups.measure(
            descriptions,
            pictures.reshape(-1, GROUP_SIZE, *pictures.shape[1:]),
            latents.half().cpu().unflatten(0, (-1, GROUP_SIZE)).contiguous(),
            pool,
        )

    return store_groups(directory, groups, make)
