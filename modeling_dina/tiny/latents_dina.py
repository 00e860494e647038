"""Encoding pixels to latents in model space and decoding them, with the shift and scale of the VAE's configuration."""

from typing import Any

import torch


def has_frames(vae) -> bool:
    """Whether the VAE is that of a video model, whose tensors have an axis of frames behind the channels."""
    return hasattr(vae.config, "z_dim")


def latent_channels(vae) -> int:
    """The number C of a VAE's latent channels."""
    return vae.config.z_dim if has_frames(vae) else vae.config.latent_channels


def spatial_factor(vae) -> int:
    """The number of pixels per latent along each side."""
    return 2 ** (len(vae.temperal_downsample) if has_frames(vae) else len(vae.config.block_out_channels) - 1)


def encode_images(vae, pixels: torch.Tensor) -> torch.Tensor:
    """
    Encode pixels to clean latents in model space: the mode of the VAE's posterior, shifted and scaled.

    Args:
        vae: a diffusers `AutoencoderKL` or `AutoencoderKLQwenImage`.
        pixels: [B, 3, H, W] in [-1, 1], on the VAE's device; converted to the VAE's dtype.

    Returns:
        [B, C, h, w] in the VAE's dtype.
    """
    pixels = pixels.to(vae.dtype)
    mode = vae.encode(pixels[:, :, None] if has_frames(vae) else pixels).latent_dist.mode()
    shift, scale = _shift_and_scale(vae, mode)
    return ((mode[:, :, 0] if has_frames(vae) else mode) - shift) * scale


def decode_latents(vae, latents: torch.Tensor) -> torch.Tensor:
    """
    Decode clean latents in model space to pixels, with gradients to the latents. Inverts `encode_images` up to the
    VAE's reconstruction error.

    Args:
        vae: a diffusers `AutoencoderKL` or `AutoencoderKLQwenImage`.
        latents: [B, C, h, w], on the VAE's device; converted to the VAE's dtype.

    Returns:
        [B, 3, H, W] in the VAE's dtype, in about [-1, 1].
    """
    # Unscale in the latents' precision, which may be higher than the VAE's.
    shift, scale = _shift_and_scale(vae, latents)
    unscaled = (latents / scale + shift).to(vae.dtype)
    if has_frames(vae):
        return vae.decode(unscaled[:, :, None]).sample[:, :, 0]
    return vae.decode(unscaled).sample


def _shift_and_scale(vae, latents: torch.Tensor) -> tuple[Any, Any]:
    """Numbers, or tensors [C, 1, 1]."""
    if not has_frames(vae):
        return vae.config.shift_factor or 0, vae.config.scaling_factor
    mean, std = (latents.new_tensor(vae.config[name])[:, None, None] for name in ("latents_mean", "latents_std"))
    return mean, 1 / std


__all__ = ["decode_latents", "encode_images", "has_frames", "latent_channels", "spatial_factor"]
