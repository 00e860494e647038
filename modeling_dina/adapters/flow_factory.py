"""Pointwise reward model for Flow-Factory, configured in its YAML file.

```yaml
rewards:
  - name: dina
    reward_model: modeling_dina.adapters.flow_factory.DinaReward
    model: path/or/hub-id
    batch_size: 16
```

It uses the last latents of a trajectory and their prompt embeddings, without VAE and text encoders. This module needs
Flow-Factory, and is imported only by it.
"""

import torch
from flow_factory.rewards import PointwiseRewardModel, RewardModelOutput

from modeling_dina import DinaRewardModel


class DinaReward(PointwiseRewardModel):
    """A DiNa latent reward model with the interface of Flow-Factory's `RewardProcessor`: lists of per-sample fields.

    Args:
        config: `model` is the folder or Hub id of a reward model. Optional are `backbone`, the diffusion model that
            replaces the one that the reward model names, `sigmas` and `num_draws`.
        accelerator: accelerator of the trainer.
    """

    required_fields = ("prompt", "all_latents", "latent_index_map", "prompt_embeds", "pooled_prompt_embeds")

    def __init__(self, config, accelerator) -> None:
        super().__init__(config, accelerator)
        model = DinaRewardModel.from_pretrained(config.model, backbone=getattr(config, "backbone", None))
        self.model = model.to(self.device).eval().requires_grad_(False)
        self.ensemble = {name: getattr(config, name, None) for name in ("sigmas", "num_draws")}

    @torch.no_grad()
    def __call__(
        self,
        prompt: list[str],
        all_latents: list[torch.Tensor] | None = None,
        latent_index_map: list[torch.Tensor] | None = None,
        prompt_embeds: list[torch.Tensor] | None = None,
        pooled_prompt_embeds: list[torch.Tensor] | None = None,
        **kwargs,
    ) -> RewardModelOutput:
        """
        Args:
            prompt: B prompts.
            all_latents: for each sample, the stored states, [stored, C, H, W].
            latent_index_map: for each sample, the indices [T + 1] in `all_latents` of the states after each step;
                negative if the state was not stored. The last index is that of the clean latents.
            prompt_embeds, pooled_prompt_embeds: for each sample, [L, D] and [P].

        Raises:
            ValueError: a field is missing, or the clean latents were not stored.
        """
        given = {
            "all_latents": all_latents,
            "latent_index_map": latent_index_map,
            "prompt_embeds": prompt_embeds,
            "pooled_prompt_embeds": pooled_prompt_embeds,
        }
        fields: dict[str, list[torch.Tensor]] = {}
        for name, values in given.items():
            if values is None or len(values) != len(prompt):
                got = None if values is None else len(values)
                raise ValueError(f"{name}: expected one for each of {len(prompt)} prompts, got {got}")
            fields[name] = list(values)
        last = [int(index_map[-1]) for index_map in fields["latent_index_map"]]
        if min(last) < 0:
            raise ValueError(f"latent_index_map: expected stored clean latents, got index {min(last)}")
        latents = torch.stack([states[index] for states, index in zip(fields["all_latents"], last, strict=True)])
        embeds, pooled = (torch.stack(fields[name]) for name in ("prompt_embeds", "pooled_prompt_embeds"))
        inputs = (values.to(self.model.execution_device) for values in (latents, embeds, pooled))
        return RewardModelOutput(rewards=self.model.reward(*inputs, **self.ensemble).scores)
