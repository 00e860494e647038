"""Reward function for DiffusionNFT, whose training script calls `reward_fn(images, prompts, metadata,
only_strict=True)` and optimises "avg" of the returned scores.

In `scripts/train_nft_sd3.py`, replace

```python
reward_fn = multi_score(device, config.reward_fn)
rewards_future = executor.submit(reward_fn, images, prompts, prompt_metadata, only_strict=True)
```

by

```python
reward_fn = latent_reward("path/or/hub-id", device)
rewards_future = executor.submit(reward_fn, latents[:, -1], prompts, prompt_metadata, only_strict=True)
```

and sample with `output_type="latent"`. The loss needs only the clean latents.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from modeling_dina import DinaScorer
from modeling_dina.adapters.flow_grpo import dina_score


def latent_reward(
    model: str | DinaScorer, device: str | torch.device | None = None, **ensemble
) -> Callable[..., tuple[dict[str, list[float]], dict]]:
    """Create a reward function; arguments as in `flow_grpo.dina_score`."""
    score = dina_score(model, device, **ensemble)

    def reward(
        latents: torch.Tensor, prompts: Sequence[str], metadata: Any, only_strict: bool = True
    ) -> tuple[dict[str, list[float]], dict]:
        """
        Args:
            latents: clean latents in model space, `latents[:, -1]` of the rollout: [B, C, H, W], or packed as in the
                pipelines of FLUX.1 and Qwen-Image, [B, N, 4 C].
            prompts: B prompts.
            metadata, only_strict: unused.
        """
        scores, details = score(latents, prompts, metadata)
        return {"dina": scores, "avg": scores}, details

    return reward
