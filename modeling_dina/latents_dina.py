"""Encoding pixels to latents in model space and decoding them, with the shift and scale of the VAE's configuration."""

import torch


def encode_images(vae, pixels: torch.Tensor) -> torch.Tensor:
    """
    Encode pixels to clean latents in model space: the mode of the VAE's posterior, shifted and scaled.

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
    Decode clean latents in model space to pixels, with gradients to the latents. Inverts `encode_images` up to the
    VAE's reconstruction error.

    Args:
        vae: a diffusers `AutoencoderKL`.
        latents: [B, C, h, w], on the VAE's device; converted to the VAE's dtype.

    Returns:
        [B, 3, H, W] in the VAE's dtype, in about [-1, 1].
    """
    # Unscale in the latents' precision, which may be higher than the VAE's.
    unscaled = latents / vae.config.scaling_factor + (vae.config.shift_factor or 0)
    return vae.decode(unscaled.to(vae.dtype)).sample


__all__ = ["decode_latents", "encode_images"]
