"""Serialisation of latents."""

import io

import numpy as np
import torch


def pack(latents: torch.Tensor) -> bytes:
    """Convert latents [C, H, W] to `.npy` bytes, with their dtype."""
    file = io.BytesIO()
    np.save(file, latents.cpu().numpy(), allow_pickle=False)
    return file.getvalue()


def unpack(data: bytes) -> torch.Tensor:
    """
    Convert `.npy` bytes to latents [C, H, W]. Python objects are refused, not unpickled.

    Raises:
        ValueError: the bytes are not an array of floating-point numbers with three dimensions.
    """
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, TypeError) as error:
        raise ValueError(f"latents: expected .npy bytes, got {len(data or b'')} bytes: {error}") from error
    if not isinstance(array, np.ndarray) or array.ndim != 3 or array.dtype.kind != "f":
        found = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
        raise ValueError(f"latents: expected floating-point numbers [C, H, W], got {found}")
    return torch.from_numpy(array)
