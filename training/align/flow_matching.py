"""The flow-matching error of a velocity, and the noise and noise levels for it."""

import torch
from diffusers.training_utils import compute_density_for_timestep_sampling

from modeling_dina.noising_dina import shared_noise


def flow_matching_error(velocity: torch.Tensor, latents: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Mean squared error [B] of velocities [B, C, H, W] against eps - x0."""
    return (velocity - (noise - latents)).square().mean(dim=(1, 2, 3))


def seeded_noise(seeds: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """Noise for latents [B, C, H, W] from one seed per sample, [B]. Storing seeds instead of noise saves memory."""
    return shared_noise(latents.shape[1:], 1, seeds.tolist())[0].to(latents.device)


def logit_normal_levels(count: int, generator: torch.Generator) -> torch.Tensor:
    """Noise levels [count], on the CPU, distributed as in arXiv 2403.03206, section 3.1 (Stable Diffusion 3)."""
    return compute_density_for_timestep_sampling("logit_normal", count, 0.0, 1.0, generator=generator)
