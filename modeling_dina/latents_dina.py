"""Encoding pixels to latents in model space and decoding them, with the shift and scale of the VAE's configuration."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock
from typing import Any

import torch

_upcast_lock = RLock()


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

    Raises:
        ValueError: the VAE overflows in float16, and the pixels require a gradient.
    """
    with _without_overflow(vae, pixels) as dtype:
        pixels = pixels.to(vae.dtype)
        mode = vae.encode(pixels[:, :, None] if has_frames(vae) else pixels).latent_dist.mode()
        shift, scale = _shift_and_scale(vae, mode)
        return (((mode[:, :, 0] if has_frames(vae) else mode) - shift) * scale).to(dtype)


def decode_latents(vae, latents: torch.Tensor) -> torch.Tensor:
    """
    Decode clean latents in model space to pixels, with gradients to the latents. Inverts `encode_images` up to the
    VAE's reconstruction error.

    Args:
        vae: a diffusers `AutoencoderKL` or `AutoencoderKLQwenImage`.
        latents: [B, C, h, w], on the VAE's device; converted to the VAE's dtype.

    Returns:
        [B, 3, H, W] in the VAE's dtype, in about [-1, 1].

    Raises:
        ValueError: the VAE overflows in float16, and the latents require a gradient.
    """
    with _without_overflow(vae, latents) as dtype:
        # Unscale in the latents' precision, which may be higher than the VAE's.
        shift, scale = _shift_and_scale(vae, latents)
        unscaled = (latents / scale + shift).to(vae.dtype)
        if has_frames(vae):
            return vae.decode(unscaled[:, :, None]).sample[:, :, 0]
        return vae.decode(unscaled).sample.to(dtype)


@contextmanager
def _without_overflow(vae, inputs: torch.Tensor) -> Iterator[torch.dtype]:
    """Context in which a float16 VAE is in float32 if its configuration says `force_upcast`, as that of Stable
    Diffusion XL. The pipelines of diffusers do the same. Returns the dtype of the VAE outside."""
    dtype = torch.float16
    with _upcast_lock:  # also to read the dtype, which another thread may be changing
        if vae.dtype == dtype and vae.config.get("force_upcast"):
            if torch.is_grad_enabled() and inputs.requires_grad:
                raise ValueError(
                    "vae: expected float32 or bfloat16 for gradients, got one in float16 with force_upcast, whose "
                    "weights are in float32 only during the forward pass"
                )
            _convert(vae, torch.float32)
            try:
                yield dtype
            finally:
                _convert(vae, dtype)
            return
        dtype = vae.dtype
    yield dtype


def _convert(vae, dtype: torch.dtype) -> None:
    with torch.inference_mode(False):  # weights that are made in inference mode cannot be used outside it
        vae.to(dtype)


def _shift_and_scale(vae, latents: torch.Tensor) -> tuple[Any, Any]:
    """Numbers, or tensors [C, 1, 1]."""
    if not has_frames(vae):
        return vae.config.shift_factor or 0, vae.config.scaling_factor
    mean, std = (latents.new_tensor(vae.config[name])[:, None, None] for name in ("latents_mean", "latents_std"))
    return mean, 1 / std


__all__ = ["decode_latents", "encode_images", "has_frames", "latent_channels", "spatial_factor"]
