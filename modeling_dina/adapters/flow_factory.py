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
from modeling_dina.adapters.samples import text_of_sample, unpack_latents
from modeling_dina.pipelines_dina import EncodedPrompts


class DinaReward(PointwiseRewardModel):
    """A DiNa latent reward model with the interface of Flow-Factory's `RewardProcessor`: lists of per-sample fields.

    Args:
        config: `model` is the folder or Hub id of a reward model. Optional are `backbone`, the diffusion model that
            replaces the one that the reward model names, `sigmas` and `num_draws`.
        accelerator: accelerator of the trainer.
    """

    # Those that samples of every model have.
    required_fields = ("prompt", "all_latents", "latent_index_map", "prompt_embeds")

    def __init__(self, config, accelerator) -> None:
        super().__init__(config, accelerator)
        model = DinaRewardModel.from_pretrained(config.model, backbone=getattr(config, "backbone", None))
        self.model = model.to(self.device).eval().requires_grad_(False)
        self.ensemble = {name: getattr(config, name, None) for name in ("sigmas", "num_draws")}

    # The processor passes all fields, with images converted, to a function that has **kwargs.
    @torch.no_grad()
    def __call__(
        self,
        prompt: list[str],
        all_latents: list[torch.Tensor] | None = None,
        latent_index_map: list[torch.Tensor] | None = None,
        prompt_embeds: list[torch.Tensor] | None = None,
        pooled_prompt_embeds: list[torch.Tensor] | None = None,
        prompt_embeds_mask: list[torch.Tensor] | None = None,
        height: list[int] | None = None,
        width: list[int] | None = None,
    ) -> RewardModelOutput:
        """
        Args:
            prompt: B prompts.
            all_latents: for each sample, the stored states: [stored, C, H, W], or packed as in the pipelines of FLUX.1
                and Qwen-Image, [stored, N, 4 C].
            latent_index_map: for each sample, the indices [T + 1] in `all_latents` of the states after each step;
                negative if the state was not stored. The last index is that of the clean latents.
            prompt_embeds: for each sample, [L, D]; lengths may differ for Z-Image and Qwen-Image.
            pooled_prompt_embeds: for each sample, [P], for families that have them.
            prompt_embeds_mask: for each sample, [L], 0 for padding; None if there is no padding.
            height, width: for each sample, the size of the image in pixels, for packed latents.

        Raises:
            ValueError: a field is missing or has a wrong shape, or the clean latents were not stored.
        """
        required = {"all_latents": all_latents, "latent_index_map": latent_index_map, "prompt_embeds": prompt_embeds}
        optional = {
            "pooled_prompt_embeds": pooled_prompt_embeds,
            "prompt_embeds_mask": prompt_embeds_mask,
            "height": height,
            "width": width,
        }
        fields: dict[str, list] = {}
        for name, values in {**required, **optional}.items():
            if values is None and name in optional:
                fields[name] = [None] * len(prompt)
            elif values is None or len(values) != len(prompt):
                got = None if values is None else len(values)
                raise ValueError(f"{name}: expected one for each of {len(prompt)} prompts, got {got}")
            else:
                fields[name] = list(values)
        samples = [dict(zip(fields, values, strict=True)) for values in zip(*fields.values(), strict=True)]
        device = self.model.execution_device
        latents = torch.cat([_clean_latents(sample) for sample in samples]).to(device)
        names = ("prompt_embeds", "pooled_prompt_embeds", "prompt_embeds_mask")
        texts = EncodedPrompts.join(text_of_sample(*(sample[name] for name in names)) for sample in samples)
        return RewardModelOutput(rewards=self.model.reward(latents, *texts.to(device), **self.ensemble).scores)


def _clean_latents(sample: dict) -> torch.Tensor:
    """The last state of a trajectory, [1, C, H, W]."""
    last = int(sample["latent_index_map"][-1])
    if last < 0:
        raise ValueError(f"latent_index_map: expected stored clean latents, got index {last}")
    latents = sample["all_latents"][last][None]
    return unpack_latents(latents, sample["height"], sample["width"]) if latents.ndim == 3 else latents
