"""For Flow-Factory: a pointwise reward model, named in its YAML file.

```yaml
rewards:
  - name: dina
    reward_model: modeling_dina.adapters.flow_factory.DinaReward
    model: path/or/hub-id
    batch_size: 16
```

It reads the trajectory's last latents and the embeddings that made them; nothing is decoded or encoded again.
Flow-Factory imports this module; nothing else does.
"""

import torch
from flow_factory.rewards import PointwiseRewardModel, RewardModelOutput

from modeling_dina import DinaRewardModel


class DinaReward(PointwiseRewardModel):
    """A DiNa latent reward model as Flow-Factory's `RewardProcessor` asks it: per-sample fields, as lists.

    Args:
        config: its `model` is a reward model's folder or Hub id; `backbone`, if set, is the diffusion model that
            replaces the one that it names; `sigmas` and `num_draws` are the ensemble's, if set.
        accelerator: of the trainer.
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
            all_latents: of each sample, the states that were kept, [stored, C, H, W].
            latent_index_map: of each sample, where the state after each step is among those, [T + 1]; negative where
                it was not kept. The last is that of the clean latents.
            prompt_embeds, pooled_prompt_embeds: of each sample, [L, D] and [P].

        Raises:
            ValueError: a field is missing, or the clean latents were not kept.
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
            raise ValueError("latent_index_map: expected the clean latents among those kept, got a trajectory without")
        latents = torch.stack([states[index] for states, index in zip(fields["all_latents"], last, strict=True)])
        embeds, pooled = (torch.stack(fields[name]) for name in ("prompt_embeds", "pooled_prompt_embeds"))
        inputs = (values.to(self.model.execution_device) for values in (latents, embeds, pooled))
        return RewardModelOutput(rewards=self.model.reward(*inputs, **self.ensemble).scores)
