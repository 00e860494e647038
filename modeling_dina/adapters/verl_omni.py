"""For verl-omni: an in-process reward function, named in its configuration.

```yaml
reward:
  reward_functions:
    dina:
      path: modeling_dina/adapters/verl_omni.py
      name: compute_score
      model: path/or/hub-id
```

Rollouts with `output_type=latent` hand it the clean latents as `solution_image`, and the embeddings that made them in
`extra_info`. (The same reward over HTTP, for its `latent_http_scorer_client`, is `dina serve`.)
"""

from functools import cache

import torch

from modeling_dina import DinaRewardModel


@cache
def load_model(model: str, device: str, backbone: str | None = None) -> DinaRewardModel:
    """The reward model, loaded once in a process."""
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
    **kwargs,
) -> dict[str, float]:
    """
    The reward of one sample.

    Args:
        solution_image: its clean latents in model space, [C, H, W] or [1, C, H, W].
        ground_truth: not read.
        extra_info: has `prompt_embeds` [L, D] and `pooled_prompt_embeds` [P], with or without a batch axis of 1.
        model: a reward model's folder or Hub id.
        device: where it is loaded to.
        backbone: diffusion model that replaces the one that the reward model names, as a folder or Hub id.
        sigmas, num_draws, seed: as in `DinaRewardModel.reward`.

    Raises:
        ValueError: naming a tensor that is missing or has another shape.
    """
    tensors = {"solution_image": solution_image, **{name: extra_info.get(name) for name in EMBEDDINGS}}
    inputs = [_one(name, values, rank).to(device) for (name, values), rank in zip(tensors.items(), RANKS, strict=True)]
    judged = load_model(model, device, backbone).reward(*inputs, sigmas=sigmas, num_draws=num_draws, seed=seed)
    return {"score": judged.scores.item()}


EMBEDDINGS = ("prompt_embeds", "pooled_prompt_embeds")
RANKS = (4, 3, 2)  # of latents, prompt_embeds and pooled_prompt_embeds with their batch axis


def _one(name: str, values, rank: int) -> torch.Tensor:
    """One sample's tensor with a batch axis of 1."""
    if isinstance(values, torch.Tensor) and values.ndim == rank - 1:
        values = values.unsqueeze(0)
    if not isinstance(values, torch.Tensor) or values.ndim != rank or len(values) != 1:
        got = list(values.shape) if isinstance(values, torch.Tensor) else type(values).__name__
        raise ValueError(f"{name}: expected one sample of rank {rank - 1}, got {got}")
    return values
