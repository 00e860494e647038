"""The conventions of the families of generators: how their transformers predict velocities, which noise levels their
pipelines use, and which modules a LoRA adapter changes."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch.nn import functional as F

from modeling_dina.backbone_base_dina import Dimensions, grid_positions
from modeling_dina.backbone_dina import BACKBONES
from modeling_dina.packing import PATCH_SIZE, pack_latents, unpack_rows
from modeling_dina.pipelines_dina import EncodedPrompts


class Generator(ABC):
    """
    A family of transformers, all with the same interface: latents [B, C, H, W], noise levels s in [0, 1], and
    velocities v ~ eps - x0.

    Args:
        transformer: the whole transformer of the pipeline.

    Attributes:
        family: key of the family in `BACKBONES`.
        dimensions: the transformer's dimensions.
    """

    family: ClassVar[str]

    def __init__(self, transformer: Any) -> None:
        self.transformer = transformer
        self.dimensions: Dimensions = BACKBONES[self.family].describe(transformer.config)

    @property
    def lora_targets(self) -> tuple[str, ...]:
        """Suffixes of the modules that the adapter changes: the projections of the attention."""
        return BACKBONES[self.family].lora_targets

    @property
    def embeds_guidance(self) -> bool:
        """Whether the transformer was distilled to imitate guidance, whose scale is one of its inputs."""
        return False

    def schedule(self, config: Any, num_steps: int, side: int) -> dict[str, Any]:
        """Arguments of the scheduler's `set_timesteps` besides the number of steps.

        Args:
            config: configuration of the scheduler.
            num_steps: number of sampler steps.
            side: height and width of the latents.
        """
        # With dynamic shifting, the noise levels depend on the number of visual tokens.
        shift = calculate_shift(
            (side // self.dimensions.patch_size) ** 2,
            config.get("base_image_seq_len", 256),
            config.get("max_image_seq_len", 4096),
            config.get("base_shift", 0.5),
            config.get("max_shift", 1.15),
        )
        return {"sigmas": np.linspace(1.0, 1 / num_steps, num_steps), "mu": shift}

    def velocity(
        self,
        latents: torch.Tensor,
        sigma: torch.Tensor,
        prompts: EncodedPrompts,
        guidance_scale: float = 1.0,
        empty: EncodedPrompts | None = None,
    ) -> torch.Tensor:
        """
        Velocity [B, C, H, W] in float32.

        Args:
            latents: noisy latents [B, C, H, W].
            sigma: noise levels [B].
            prompts: text conditioning of the B samples.
            guidance_scale: g in v_empty + g (v - v_empty); 1 is no guidance. A transformer that imitates guidance
                gets it as an input.
            empty: text conditioning of the empty prompt, which is required for classifier-free guidance.
        """
        states = latents.to(self.transformer.dtype)
        if guidance_scale == 1 or self.embeds_guidance:
            return self.predict(states, sigma, prompts, guidance_scale).float()
        assert empty is not None
        both = EncodedPrompts.join([*empty.split() * len(latents), *prompts.split()])
        velocity = self.predict(torch.cat([states, states]), torch.cat([sigma, sigma]), both, guidance_scale)
        unconditional, conditional = velocity.float().chunk(2)
        return self.guide(unconditional, conditional, guidance_scale)

    def guide(self, unconditional: torch.Tensor, conditional: torch.Tensor, scale: float) -> torch.Tensor:
        """The guided velocity, from those of the empty prompt and of the prompts, each [B, C, H, W]."""
        return unconditional + scale * (conditional - unconditional)

    @abstractmethod
    def predict(
        self, states: torch.Tensor, sigma: torch.Tensor, prompts: EncodedPrompts, guidance_scale: float
    ) -> torch.Tensor:
        """Velocity [B, C, H, W] without classifier-free guidance, of noisy latents in the transformer's dtype."""


class SD3Generator(Generator):
    """Stable Diffusion 3 and 3.5."""

    family = "sd3"

    @property
    def lora_targets(self):
        # Without "attn.", which includes the second attention (attn2) of some blocks.
        return tuple(target.removeprefix("attn.") for target in super().lora_targets)

    def schedule(self, config, num_steps, side):
        # The scheduler's own levels.
        return {"mu": super().schedule(config, num_steps, side)["mu"]}

    def predict(self, states, sigma, prompts, guidance_scale):
        embeds, pooled = (part.to(states.dtype) for part in prompts.pair())
        return self.transformer(states, embeds, pooled, 1000 * sigma).sample


class FluxGenerator(Generator):
    """FLUX.1."""

    family = "flux"

    @property
    def embeds_guidance(self):
        return self.transformer.config.guidance_embeds

    def predict(self, states, sigma, prompts, guidance_scale):
        embeds, pooled = (part.to(states.dtype) for part in prompts.pair())
        tokens = self.transformer(
            hidden_states=pack_latents(states),
            timestep=sigma,
            guidance=torch.full_like(sigma, guidance_scale) if self.embeds_guidance else None,
            encoder_hidden_states=embeds,
            pooled_projections=pooled,
            # Text has position 0, patches have (0, row, column).
            txt_ids=torch.zeros(embeds.shape[1], 3, device=states.device),
            img_ids=F.pad(grid_positions(states, PATCH_SIZE), (1, 0)),
        ).sample
        return unpack_rows(tokens, states.shape[2] // PATCH_SIZE)


class ZImageGenerator(Generator):
    """Z-Image, whose time runs from noise to data, and whose output is x0 - eps. Its own pipeline writes the guidance
    scale g as g - 1."""

    family = "zimage"

    def predict(self, states, sigma, prompts, guidance_scale):
        texts = [sample.prompt_embeds[0].to(states.dtype) for sample in prompts.split()]
        images = list(states[:, :, None].unbind())  # with an axis of frames
        return -torch.stack(self.transformer(images, 1 - sigma, texts).sample)[:, :, 0]


class QwenImageGenerator(Generator):
    """Qwen-Image."""

    family = "qwenimage"

    def guide(self, unconditional, conditional, scale):
        """The guided velocity, in which each patch has the norm that it has without guidance."""
        without, guided = pack_latents(conditional), pack_latents(super().guide(unconditional, conditional, scale))
        rescaled = guided * (without.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True))
        return unpack_rows(rescaled, conditional.shape[2] // PATCH_SIZE)

    def predict(self, states, sigma, prompts, guidance_scale):
        height, width = (side // PATCH_SIZE for side in states.shape[2:])
        tokens = self.transformer(
            hidden_states=pack_latents(states),
            timestep=sigma,
            encoder_hidden_states=prompts.prompt_embeds.to(states.dtype),
            encoder_hidden_states_mask=prompts.prompt_embeds_mask,
            img_shapes=[[(1, height, width)]] * len(states),
        ).sample
        return unpack_rows(tokens, states.shape[2] // PATCH_SIZE)


GENERATORS: dict[str, type[Generator]] = {
    each.family: each for each in (SD3Generator, FluxGenerator, ZImageGenerator, QwenImageGenerator)
}


def generator_of(transformer: Any) -> Generator:
    """The generator of a diffusers transformer.

    Raises:
        ValueError: the transformer belongs to no known family.
    """
    for name, generator in GENERATORS.items():
        if isinstance(transformer, BACKBONES[name].transformer_class):
            return generator(transformer)
    known = sorted(BACKBONES[name].transformer_class.__name__ for name in GENERATORS)
    raise ValueError(f"policy: expected a transformer that is one of {known}, got {type(transformer).__name__}")
