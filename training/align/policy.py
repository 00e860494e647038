"""The generator to align: a diffusers pipeline of a known family with a LoRA adapter on its transformer or UNet."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import cast_training_params
from diffusers.utils.torch_utils import randn_tensor
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file

from modeling_dina.conditioning_dina import encode_prompts
from modeling_dina.latents_dina import decode_latents
from modeling_dina.pipelines_dina import EncodedPrompts
from training.align.generators import generator_of
from training.align.rollout import Dynamics, Rollout, rollout


@dataclass(frozen=True)
class Conditioning:
    """Prompts of B samples with their embeddings.

    Attributes:
        prompts: B prompts.
        embeddings: their embeddings, with pooled ones and a mask if the family has them.
    """

    prompts: tuple[str, ...]
    embeddings: EncodedPrompts

    def __len__(self) -> int:
        return len(self.prompts)

    def select(self, rows: torch.Tensor) -> "Conditioning":
        """Select samples by a mask [B] or by indices, which may repeat."""
        indices = (rows.nonzero().flatten() if rows.dtype == torch.bool else rows).tolist()
        return Conditioning(tuple(self.prompts[index] for index in indices), self.embeddings.take(indices))


class Policy:
    """A frozen generator with a trainable LoRA adapter.

    Args:
        pipeline: generator of a known family, to whose transformer or UNet the adapter is added.
        rank, alpha: rank and scale of the LoRA.
        max_sequence_length: number of text tokens, as in the reward model.
        resolution: side of the generated images in pixels; None uses the transformer's default.

    Attributes:
        transformer: the transformer or UNet.
        generator: the conventions of the generator's family.
        path: the generator's noise path.
        parameters: the trainable parameters, those of the LoRA.

    Raises:
        ValueError: the resolution is not one that the transformer supports.
    """

    def __init__(
        self,
        pipeline: Any,
        *,
        rank: int,
        alpha: float,
        max_sequence_length: int,
        resolution: int | None = None,
    ) -> None:
        self.pipeline, self.generator = pipeline, generator_of(pipeline)
        self.transformer, self.path = self.generator.transformer, self.generator.path
        for part in pipeline.components.values():
            if isinstance(part, torch.nn.Module):
                part.eval().requires_grad_(False)
        self.generator.add_adapter(rank, alpha)
        cast_training_params(self.transformer, dtype=torch.float32)
        self.parameters = [parameter for parameter in self.transformer.parameters() if parameter.requires_grad]
        self.max_sequence_length = max_sequence_length
        sizes, factor = self.generator.dimensions, pipeline.vae_scale_factor
        side = resolution or sizes.training_side * factor
        if side % (factor * sizes.patch_size) or side > factor * sizes.max_side:
            raise ValueError(
                f"resolution: expected a multiple of {factor * sizes.patch_size} of at most "
                f"{factor * sizes.max_side}, got {side}"
            )
        self.latent_shape = (sizes.latent_channels, side // factor, side // factor)
        self._empty = self._unconditional()

    @property
    def device(self) -> torch.device:
        return self.transformer.device

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Text embeddings of B prompts."""
        return Conditioning(tuple(prompts), encode_prompts(self.pipeline, prompts, self.max_sequence_length))

    def _unconditional(self) -> EncodedPrompts:
        """Embeddings for the second evaluation of classifier-free guidance, as in the pipeline by default."""
        empty = self.encode([""]).embeddings
        if self.pipeline.config.get("force_zeros_for_empty_prompt"):  # of SDXL
            return EncodedPrompts(*(None if part is None else torch.zeros_like(part) for part in empty))  # type: ignore[arg-type]
        return empty

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode latents [B, C, H, W] to images [B, 3, height, width] in about [-1, 1], differentiably."""
        return decode_latents(self.pipeline.vae, latents).float()

    def noise(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """`count` states of pure noise, from a CPU generator, so that they are equal on every device."""
        shape = (count, *self.latent_shape)
        return randn_tensor(shape, generator=generator, device=self.device, dtype=torch.float32)

    def sigmas(self, num_steps: int) -> torch.Tensor:
        """The pipeline's `num_steps + 1` noise levels in descending order, from the initial noise to the samples."""
        return self.generator.sigmas(self.pipeline.scheduler, num_steps, self.latent_shape[-1])

    def velocity(
        self, latents: torch.Tensor, sigma: torch.Tensor, conditioning: Conditioning, guidance_scale: float = 1.0
    ) -> torch.Tensor:
        """Velocity [B, C, H, W] in float32 at noisy latents [B, C, H, W] and levels [B], with guidance if the scale is
        not 1."""
        return self.generator.velocity(latents, sigma, conditioning.embeddings, guidance_scale, self._empty)

    def sample(
        self,
        conditioning: Conditioning,
        noise: torch.Tensor,
        sigmas: torch.Tensor,
        *,
        batch_size: int,
        guidance_scale: float = 1.0,
        dynamics: Dynamics | None = None,
        stochastic: Sequence[int] = (),
        generator: torch.Generator | None = None,
    ) -> Rollout:
        """Rollouts of B samples, `batch_size` at a time; arguments as in `rollout.rollout`."""
        parts = []
        for rows in torch.arange(len(noise), device=noise.device).split(batch_size):
            selected = conditioning.select(rows)

            def velocity(latents, sigma, selected=selected):
                return self.velocity(latents, sigma, selected, guidance_scale)

            parts.append(rollout(velocity, noise[rows], sigmas, self.path, dynamics, stochastic, generator))
        return Rollout(*(torch.cat(values, dim=1) for values in zip(*parts, strict=True)))

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Context in which the adapter is disabled, so that the policy is the initial generator."""
        layers = [module for module in self.transformer.modules() if isinstance(module, BaseTunerLayer)]
        for layer in layers:
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in layers:
                layer.enable_adapters(True)

    def save_adapter(self, folder: Path) -> None:
        """Write the LoRA in the format of `pipeline.load_lora_weights(folder)`, or of `PeftModel.from_pretrained` if
        the pipeline cannot load any."""
        state, config = self.state_dict(), self.transformer.peft_config["default"]
        if hasattr(self.pipeline, "save_lora_weights"):
            prefix = f"{self.generator.component}_lora"
            # Without the metadata, loading the LoRA sets alpha to the rank.
            options = {f"{prefix}_layers": state, f"{prefix}_adapter_metadata": config.to_dict()}
            return self.pipeline.save_lora_weights(folder, **options)
        config.save_pretrained(folder)
        weights = {f"base_model.model.{name}": value.contiguous() for name, value in state.items()}
        save_file(weights, Path(folder) / "adapter_model.safetensors")

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Weights of the LoRA, for a checkpoint."""
        return get_peft_model_state_dict(self.transformer)

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Load weights of the LoRA; raises a ValueError if they belong to another adapter."""
        outcome: Any = set_peft_model_state_dict(self.transformer, state)
        if outcome.unexpected_keys:
            raise ValueError(f"checkpoint: expected weights of this LoRA, got {sorted(outcome.unexpected_keys)[:4]} …")
