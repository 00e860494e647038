"""Reward function for flow_grpo: `(images, prompts, metadata) -> (scores, metadata)`.

Add it to the `score_functions` of `flow_grpo/rewards.py`:

```python
>>> from modeling_dina.adapters.flow_grpo import dina_score
>>> score_functions = {"dina": lambda device: dina_score("path/or/hub-id", device)}
```

and set its weight with `config.reward_fn = {"dina": 1.0}`. To score latents without decoding, sample with
`output_type="latent"` and pass the latents as images. Those of FLUX.1 and Qwen-Image are packed, for which
`dina_score` needs `height` and `width`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from modeling_dina import DinaScorer
from modeling_dina.adapters.samples import PATCH_SIZE, unpack_latents

RewardFunction = Callable[[Any, Sequence[str], Any], tuple[list[float], dict]]


def dina_score(
    model: str | DinaScorer,
    device: str | torch.device | None = None,
    *,
    backbone: str | None = None,
    height: int | None = None,
    width: int | None = None,
    **ensemble,
) -> RewardFunction:
    """Create a reward function.

    Args:
        model: folder or Hub id of a reward model, or a scorer.
        device: device to load the model to.
        backbone: diffusion model that replaces the one that the reward model names, as a folder or Hub id.
        height, width: size of the images in pixels, needed only for packed latents.
        ensemble: `sigmas`, `num_draws`, `mode` and `seed` of `DinaScorer.score`.
    """
    if isinstance(model, DinaScorer):
        scorer = model
    else:
        scorer = DinaScorer.from_pretrained(model, device=device, backbone=backbone)
    channels = scorer.model.config.dimensions.latent_channels

    def score(images, prompts: Sequence[str], metadata) -> tuple[list[float], dict]:
        """
        Args:
            images: a tensor [B, 3, H, W] in [0, 1], a uint8 array [B, H, W, 3], or clean latents in model space
                [B, C, h, w], or packed as in the pipelines of FLUX.1 and Qwen-Image, [B, N, 4 C].
            prompts: B prompts.
            metadata: unused.
        """
        if _is_packed(images, channels):
            images = unpack_latents(images, height, width)
        given = {"latents": images} if _is_latent(images, channels) else {"images": _to_pil(images)}
        return scorer.score(prompts=list(prompts), **given, **ensemble).scores.tolist(), {}

    return score


def _is_packed(images, channels: int) -> bool:
    return isinstance(images, torch.Tensor) and images.ndim == 3 and images.shape[2] == channels * PATCH_SIZE**2


def _is_latent(images, channels: int) -> bool:
    return isinstance(images, torch.Tensor) and images.shape[1] == channels


def _to_pil(images) -> list[Image.Image]:
    if isinstance(images, torch.Tensor):
        images = (images.float() * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(np.asarray(image)) for image in images]
