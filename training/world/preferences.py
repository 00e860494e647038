"""Stage three: groups of pictures under one caption, with their true utilities, rendered and generated."""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusion3Pipeline

from training.world.data import candidates
from training.world.latents import build_shards, encode, load_shards
from training.world.scenes import Description, sample_description
from training.world.text import MAX_LENGTH
from training.world.utility import true_utility

GROUP_SIZE = 4
ANNOTATORS = 9  # votes on each pair
# Both pictures of every pair of a group.
FIRST, SECOND = (index.tolist() for index in np.triu_indices(GROUP_SIZE, 1))
# {"latents": float16 [G, 4, 16, 8, 8], "utilities": float32 [G, 4]} and G captions.
Groups = tuple[dict[str, torch.Tensor], list[str]]


def rendered_groups(directory: Path, vae: AutoencoderKL, *, groups: int, seed: int, held_out: bool = False) -> Groups:
    """Groups of rendered pictures, kept in shards under `directory`.

    Args:
        groups: how many; each has `GROUP_SIZE` pictures under one caption.
        seed: of the whole set.
        held_out: captions that ask for a combination kept out of training, instead of captions that do not.
    """

    def make(indices: range) -> Groups:
        descriptions, images = [], []
        for index in indices:
            rng = np.random.default_rng((seed, index))
            descriptions.append(sample_description(rng, held_out))
            images.append(candidates(descriptions[-1], GROUP_SIZE, rng))
        latents = encode(vae, [image for group in images for image in group])
        return _group(descriptions, images, latents)

    return load_shards(build_shards(directory, groups, make))


def generated_groups(
    directory: Path, pipeline: StableDiffusion3Pipeline, *, groups: int, seed: int, batch_size: int = 32
) -> Groups:
    """Groups of pictures that the generator makes, as `rendered_groups` returns them; latents are its own output."""

    def make(indices: range) -> Groups:
        descriptions = [sample_description(np.random.default_rng((seed, index))) for index in indices]
        latents = torch.cat(
            [
                sample_latents(
                    pipeline,
                    [text.caption for text in descriptions[start : start + batch_size] for _ in range(GROUP_SIZE)],
                    # Half without guidance: attempts that differ more.
                    guidance_scale=(1.0, 3.0)[start // batch_size % 2],
                    seed=seed + indices[start],
                )
                for start in range(0, len(descriptions), batch_size)
            ]
        )
        images = decode(pipeline, latents)
        return _group(
            descriptions, list(images.reshape(-1, GROUP_SIZE, *images.shape[1:])), latents.half().contiguous()
        )

    return load_shards(build_shards(directory, groups, make))


def sample_latents(
    pipeline: StableDiffusion3Pipeline, captions: list[str], *, guidance_scale: float, seed: int, steps: int = 16
) -> torch.Tensor:
    """One latent a caption, [B, 16, 8, 8] in model space."""
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


@torch.no_grad()
def decode(pipeline: StableDiffusion3Pipeline, latents: torch.Tensor) -> np.ndarray:
    """Latents in model space to pictures, RGB uint8 [B, 64, 64, 3]."""
    vae = pipeline.vae
    images = [
        vae.decode(batch / vae.config.scaling_factor + vae.config.shift_factor).sample for batch in latents.split(128)
    ]
    pictures = pipeline.image_processor.postprocess(torch.cat(images), output_type="np")
    return (pictures * 255).round().astype(np.uint8)


def _group(descriptions: list[Description], images: list, latents: torch.Tensor) -> Groups:
    utilities = [
        [true_utility(text, image) for image in group] for text, group in zip(descriptions, images, strict=True)
    ]
    tensors = {"latents": latents.unflatten(0, (-1, GROUP_SIZE)), "utilities": torch.tensor(utilities).float()}
    return tensors, [text.caption for text in descriptions]
