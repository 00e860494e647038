"""Between pixels and latents in model space, through a VAE with the shift and scale of its configuration."""

import torch


def encode_images(vae, pixels: torch.Tensor) -> torch.Tensor:
    """
    Clean latents in model space: the mode of the VAE's posterior, shifted and scaled.

    Args:
        vae: a diffusers `AutoencoderKL`.
        pixels: [B, 3, H, W] in [-1, 1], on the VAE's device; converted to the VAE's dtype.

    Returns:
        [B, C, h, w] in the VAE's dtype.
    """
    mode = vae.encode(pixels.to(vae.dtype)).latent_dist.mode()
    return (mode - (vae.config.shift_factor or 0)) * vae.config.scaling_factor


def decode_latents(vae, latents: torch.Tensor) -> torch.Tensor:
    """
    Pixels of clean latents in model space, differentiable in them; the inverse of `encode_images` up to the VAE's
    loss.

    Args:
        vae: a diffusers `AutoencoderKL`.
        latents: [B, C, h, w], on the VAE's device; converted to the VAE's dtype.

    Returns:
        [B, 3, H, W] in the VAE's dtype, in about [-1, 1].
    """
    # Unscaled in the latents' own precision, which may be the finer one.
    unscaled = latents / vae.config.scaling_factor + (vae.config.shift_factor or 0)
    return vae.decode(unscaled.to(vae.dtype)).sample


__all__ = ["decode_latents", "encode_images"]
