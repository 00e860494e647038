"""Samples in the form in which other trainers store them: text with padding."""

import torch

from modeling_dina.pipelines_dina import EncodedPrompts


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
