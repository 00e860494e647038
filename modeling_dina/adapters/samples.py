"""Samples in the form in which other trainers store them: packed latents, and text with padding."""

import torch

from modeling_dina.pipelines_dina import EncodedPrompts

# The pipelines of FLUX.1 and Qwen-Image pack squares of 2 x 2 latents into tokens. The VAEs shrink images 8 times.
PATCH_SIZE = 2
TOKEN_PIXELS = 8 * PATCH_SIZE


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
    patches = latents.unflatten(1, (rows, columns)).unflatten(3, (-1, PATCH_SIZE, PATCH_SIZE))
    return patches.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def text_of_sample(
    prompt_embeds: torch.Tensor,
    pooled_prompt_embeds: torch.Tensor | None = None,
    prompt_embeds_mask: torch.Tensor | None = None,
) -> EncodedPrompts:
    """
    The text conditioning of one sample as a batch of one, without padding.

    Args:
        prompt_embeds: [L, D].
        pooled_prompt_embeds: [P]; None for families without them.
        prompt_embeds_mask: [L], 0 for padding, of any dtype; None if there is no padding.

    Raises:
        ValueError: the mask has another length, or masks everything.
    """
    if prompt_embeds_mask is not None:
        if prompt_embeds_mask.shape != prompt_embeds.shape[:1] or not prompt_embeds_mask.any():
            raise ValueError(
                f"prompt_embeds_mask: expected [{len(prompt_embeds)}] with at least one text token, "
                f"got {list(prompt_embeds_mask.shape)} with {int(prompt_embeds_mask.count_nonzero())}"
            )
        prompt_embeds = prompt_embeds[prompt_embeds_mask.bool()]
    pooled = None if pooled_prompt_embeds is None else pooled_prompt_embeds[None]
    return EncodedPrompts(prompt_embeds[None], pooled)
