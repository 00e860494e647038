"""In-process reward function for verl-omni, configured in its YAML file.

```yaml
reward:
  reward_functions:
    dina:
      path: modeling_dina/adapters/verl_omni.py
      name: compute_score
      model: path/or/hub-id
```

Rollouts with `output_type=latent` pass the clean latents as `solution_image`, and their prompt embeddings in
`extra_info`. Latents of Qwen-Image are packed, for which the configuration needs `height` and `width`. For the same
reward over HTTP, with verl-omni's `latent_http_scorer_client`, use `dina serve`.
"""

from functools import cache

import torch

from modeling_dina import DinaRewardModel
from modeling_dina.adapters.samples import PATCH_SIZE, text_of_sample, unpack_latents

# The axes of one sample's embeddings.
RANKS = {"prompt_embeds": 2, "pooled_prompt_embeds": 1, "prompt_embeds_mask": 1}


@cache
def load_model(model: str, device: str, backbone: str | None = None) -> DinaRewardModel:
    """Load the reward model, once per process."""
    return DinaRewardModel.from_pretrained(model, backbone=backbone).to(device).eval().requires_grad_(False)


@torch.no_grad()
def compute_score(
    solution_image: torch.Tensor,
    ground_truth: str,
    extra_info: dict,
    *,
    model: str,
    device: str = "cpu",
    backbone: str | None = None,
    sigmas: list[float] | None = None,
    num_draws: int | None = None,
    seed: int = 0,
    height: int | None = None,
    width: int | None = None,
    **kwargs,
) -> dict[str, float]:
    """Compute the reward of one sample.

    Args:
        solution_image: clean latents in model space, [C, H, W], or packed as in the pipelines of FLUX.1 and
            Qwen-Image, [N, 4 C]; with or without a batch axis of 1. `latents_clean` in `extra_info` replaces it.
        ground_truth: unused.
        extra_info: contains `prompt_embeds` [L, D], `pooled_prompt_embeds` [P] for families that have them, and
            `prompt_embeds_mask` [L], 0 for padding, if there is padding; with or without a batch axis of 1.
        model: folder or Hub id of a reward model.
        device: device of the model.
        backbone: diffusion model that replaces the one that the reward model names, as a folder or Hub id.
        sigmas, num_draws, seed: as in `DinaRewardModel.reward`.
        height, width: size of the image in pixels, needed only for packed latents.

    Raises:
        ValueError: a tensor is missing or has another shape; the message names it.
    """
    reward_model = load_model(model, device, backbone)
    clean = extra_info.get("latents_clean")
    name, values = ("solution_image", solution_image) if clean is None else ("latents_clean", clean)
    latents = _latents(name, values, reward_model.config.dimensions.latent_channels, height, width)
    texts = text_of_sample(
        **{
            each: _one(each, extra_info.get(each), rank)
            for each, rank in RANKS.items()
            if each == "prompt_embeds" or extra_info.get(each) is not None
        }
    )
    inputs = (latents.to(device), *texts.to(torch.device(device)))
    return {"score": reward_model.reward(*inputs, sigmas=sigmas, num_draws=num_draws, seed=seed).scores.item()}


def _latents(name: str, values, channels: int, height: int | None, width: int | None) -> torch.Tensor:
    """The latents of one sample, [1, C, H, W]."""
    is_packed = (
        isinstance(values, torch.Tensor)
        and values.shape[-1] == channels * PATCH_SIZE**2
        and (values.ndim == 2 or (values.ndim == 3 and len(values) == 1))
    )
    one = _one(name, values, 2 if is_packed else 3)[None]
    return unpack_latents(one, height, width) if is_packed else one


def _one(name: str, values, rank: int) -> torch.Tensor:
    """Check the tensor of one sample, and remove a batch axis of 1."""
    if isinstance(values, torch.Tensor) and values.ndim == rank + 1 and len(values) == 1:
        values = values[0]
    if not isinstance(values, torch.Tensor) or values.ndim != rank:
        got = list(values.shape) if isinstance(values, torch.Tensor) else type(values).__name__
        raise ValueError(f"{name}: expected one sample of rank {rank}, got {got}")
    return values
