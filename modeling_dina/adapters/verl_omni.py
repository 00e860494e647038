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
`extra_info`. For the same reward over HTTP, with verl-omni's `latent_http_scorer_client`, use `dina serve`.
"""

from functools import cache

import torch

from modeling_dina import DinaRewardModel


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
    **kwargs,
) -> dict[str, float]:
    """Compute the reward of one sample.

    Args:
        solution_image: clean latents in model space, [C, H, W] or [1, C, H, W].
        ground_truth: unused.
        extra_info: contains `prompt_embeds` [L, D] and `pooled_prompt_embeds` [P], with or without a batch axis of 1.
        model: folder or Hub id of a reward model.
        device: device of the model.
        backbone: diffusion model that replaces the one that the reward model names, as a folder or Hub id.
        sigmas, num_draws, seed: as in `DinaRewardModel.reward`.

    Raises:
        ValueError: a tensor is missing or has another shape; the message names it.
    """
    tensors = {"solution_image": solution_image, **{name: extra_info.get(name) for name in EMBEDDINGS}}
    inputs = [_one(name, values, rank).to(device) for (name, values), rank in zip(tensors.items(), RANKS, strict=True)]
    output = load_model(model, device, backbone).reward(*inputs, sigmas=sigmas, num_draws=num_draws, seed=seed)
    return {"score": output.scores.item()}


EMBEDDINGS = ("prompt_embeds", "pooled_prompt_embeds")
RANKS = (4, 3, 2)  # numbers of axes of latents, prompt_embeds and pooled_prompt_embeds with a batch axis


def _one(name: str, values, rank: int) -> torch.Tensor:
    """Check the tensor of one sample, and give it a batch axis of 1."""
    if isinstance(values, torch.Tensor) and values.ndim == rank - 1:
        values = values.unsqueeze(0)
    if not isinstance(values, torch.Tensor) or values.ndim != rank or len(values) != 1:
        got = list(values.shape) if isinstance(values, torch.Tensor) else type(values).__name__
        raise ValueError(f"{name}: expected one sample of rank {rank - 1}, got {got}")
    return values
