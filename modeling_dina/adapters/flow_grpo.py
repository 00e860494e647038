"""For flow_grpo: a reward function `(images, prompts, metadata) -> (scores, metadata)`.

Enter it beside the others in the `score_functions` of `flow_grpo/rewards.py`:

```python
>>> from modeling_dina.adapters.flow_grpo import dina_score
>>> score_functions = {"dina": lambda device: dina_score("path/or/hub-id", device)}
```

and give it weight by `config.reward_fn = {"dina": 1.0}`. Where the trainer keeps latents, sample with
`output_type="latent"` and hand it those: no picture is decoded.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from modeling_dina import DinaScorer

RewardFunction = Callable[[Any, Sequence[str], Any], tuple[list[float], dict]]


def dina_score(
    model: str | DinaScorer,
    device: str | torch.device | None = None,
    *,
    backbone: str | None = None,
    **ensemble,
) -> RewardFunction:
    """A reward function.

    Args:
        model: a reward model's folder or Hub id, or a scorer.
        device: where a model is loaded to.
        backbone: diffusion model that replaces the one that a loaded model names, as a folder or Hub id.
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
            images: pictures, a tensor [B, 3, H, W] in [0, 1] or a uint8 array [B, H, W, 3]; or clean latents in model
                space [B, C, h, w].
            prompts: B prompts.
            metadata: not read.
        """
        given = {"latents": images} if _is_latent(images, channels) else {"images": _to_pil(images)}
        return scorer.score(prompts=list(prompts), **given, **ensemble).scores.tolist(), {}

    return score


def _is_latent(images, channels: int) -> bool:
    return isinstance(images, torch.Tensor) and images.shape[1] == channels


def _to_pil(images) -> list[Image.Image]:
    if isinstance(images, torch.Tensor):
        images = (images.float() * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(np.asarray(image)) for image in images]
