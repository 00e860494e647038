"""The flow-matching error of a velocity, and the noise and levels of the states it is taken at."""

import torch
from diffusers.training_utils import compute_density_for_timestep_sampling

from modeling_dina.noising_dina import shared_noise


def flow_matching_error(velocity: torch.Tensor, latents: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Mean squared error [B] of velocities [B, C, H, W] against eps - x0."""
    return (velocity - (noise - latents)).square().mean(dim=(1, 2, 3))


def seeded_noise(seeds: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """Noise like latents [B, C, H, W], each sample's from its own seed [B]: drawn again whenever it is needed, it need
    not be kept."""
    return shared_noise(latents.shape[1:], 1, seeds.tolist())[0].to(latents.device)


def logit_normal_levels(count: int, generator: torch.Generator) -> torch.Tensor:
    """[count] noise levels as Stable Diffusion 3 was trained at (arXiv 2403.03206, section 3.1), on the CPU."""
    return compute_density_for_timestep_sampling("logit_normal", count, 0.0, 1.0, generator=generator)
