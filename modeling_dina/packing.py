"""Packed latents: the pipelines of FLUX.1 and Qwen-Image store squares of 2 x 2 latents as tokens."""

import torch

from .backbone_base_dina import patches
from .backbone_flux_dina import PATCH_SIZE

# The VAEs shrink images 8 times.
TOKEN_PIXELS = 8 * PATCH_SIZE


def pack_latents(latents: torch.Tensor) -> torch.Tensor:
    """Pack latents [B, C, H, W] into tokens [B, H W / 4, 4 C], row by row."""
    return patches(latents, PATCH_SIZE).flatten(2)


def unpack_rows(tokens: torch.Tensor, rows: int) -> torch.Tensor:
    """Unpack tokens [B, N, 4 C] into latents [B, C, 2 rows, 2 N / rows]; inverts `pack_latents`."""
    grid = tokens.unflatten(1, (rows, -1)).unflatten(3, (-1, PATCH_SIZE, PATCH_SIZE))
    return grid.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def unpack_latents(latents: torch.Tensor, height: int | None, width: int | None) -> torch.Tensor:
    """
    Args:
        latents: packed latents of the pipelines of FLUX.1 and Qwen-Image, [B, N, 4 C].
        height, width: size of the images in pixels.

    Returns:
        [B, C, height / 8, width / 8].

    Raises:
        ValueError: the size is missing, or differs from that of N tokens.
    """
    tokens = latents.shape[1]
    if height is None or width is None:
        raise ValueError(
            f"height, width: expected the images' size in pixels for packed latents, got {height} and {width}"
        )
    rows, columns = int(height) // TOKEN_PIXELS, int(width) // TOKEN_PIXELS
    if rows * columns != tokens:
        raise ValueError(
            f"height, width: expected a size of {tokens} tokens of {TOKEN_PIXELS} x {TOKEN_PIXELS} pixels, "
            f"got {height} x {width}"
        )
    return unpack_rows(latents, rows)


__all__ = ["PATCH_SIZE", "TOKEN_PIXELS", "pack_latents", "unpack_latents", "unpack_rows"]
