"""The conventions of the families of generators: how their networks predict velocities, which noise levels their
pipelines use, and which modules a LoRA adapter changes."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import DDIMScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from diffusers.training_utils import compute_density_for_timestep_sampling
from peft import LoraConfig, inject_adapter_in_model
from torch.nn import functional as F

from modeling_dina.backbone_base_dina import Dimensions, grid_positions
from modeling_dina.backbone_dina import BACKBONES
from modeling_dina.backbone_unet_dina import PIXELS
from modeling_dina.noising_dina import path_from_scheduler
from modeling_dina.packing import PATCH_SIZE, pack_latents, unpack_rows
from modeling_dina.pipelines_dina import EncodedPrompts


class Generator(ABC):
    """
    A family of transformers or UNets, all with the same interface: latents [B, C, H, W], noise levels in [0, 1] of
    the family's noise path, and velocities as `path.velocity` defines them, which are eps - x0 on a rectified flow.

    Args:
        transformer: the whole transformer or UNet of the pipeline.
        scheduler_config: configuration of the pipeline's scheduler.

    Attributes:
        family: key of the family in `BACKBONES`.
        is_flow: whether the path is a rectified flow.
        dimensions: the transformer's dimensions.
        path: the noise path.
    """

    family: ClassVar[str]
    is_flow: ClassVar[bool] = True

    def __init__(self, transformer: Any, scheduler_config: Any) -> None:
        self.transformer = transformer
        self.dimensions: Dimensions = BACKBONES[self.family].describe(transformer.config)
        self.path = path_from_scheduler(scheduler_config)

    @property
    def component(self) -> str:
        """Name of the transformer in the pipeline."""
        return BACKBONES[self.family].component

    @property
    def lora_targets(self) -> tuple[str, ...]:
        """Suffixes of the modules that the adapter changes: the projections of the attention."""
        return BACKBONES[self.family].lora_targets

    @property
    def embeds_guidance(self) -> bool:
        """Whether the transformer was distilled to imitate guidance, whose scale is one of its inputs."""
        return False

    def add_adapter(self, rank: int, alpha: float) -> None:
        """Add a LoRA adapter to the transformer."""
        lora = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(self.lora_targets))  # type: ignore[arg-type]
        inject_adapter_in_model(lora, self.transformer)

    def sigmas(self, scheduler: Any, num_steps: int, side: int) -> torch.Tensor:
        """The `num_steps + 1` noise levels of the pipeline in descending order, from the initial noise to the samples.

        Args:
            scheduler: scheduler of the pipeline.
            num_steps: number of sampler steps.
            side: height and width of the latents.
        """
        scheduler.set_timesteps(num_steps, **self.schedule(scheduler.config, num_steps, side))
        return scheduler.sigmas.clone()

    def training_levels(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Random noise levels [count], on the CPU, distributed as in arXiv 2403.03206, section 3.1 (Stable Diffusion
        3)."""
        return compute_density_for_timestep_sampling("logit_normal", count, 0.0, 1.0, generator=generator)

    def error(self, velocity: torch.Tensor, target: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """Mean squared error [B] of velocities against targets, both [B, C, H, W], at levels [B], in the units of the
        transformer's own prediction."""
        return (velocity - target).square().mean(dim=(1, 2, 3))

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
            return self.as_velocity(self.predict(states, sigma, prompts, guidance_scale).float(), latents, sigma)
        assert empty is not None
        both = EncodedPrompts.join([*empty.split() * len(latents), *prompts.split()])
        prediction = self.predict(torch.cat([states, states]), torch.cat([sigma, sigma]), both, guidance_scale)
        unconditional, conditional = prediction.float().chunk(2)
        return self.as_velocity(self.guide(unconditional, conditional, guidance_scale), latents, sigma)

    def as_velocity(self, prediction: torch.Tensor, latents: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """The velocity of a prediction in float32, at noisy latents, both [B, C, H, W], and levels [B]."""
        return prediction

    def guide(self, unconditional: torch.Tensor, conditional: torch.Tensor, scale: float) -> torch.Tensor:
        """The guided prediction, from those of the empty prompt and of the prompts, each [B, C, H, W]."""
        return unconditional + scale * (conditional - unconditional)

    @abstractmethod
    def predict(
        self, states: torch.Tensor, sigma: torch.Tensor, prompts: EncodedPrompts, guidance_scale: float
    ) -> torch.Tensor:
        """The transformer's prediction [B, C, H, W] without classifier-free guidance, for noisy latents in its dtype:
        the velocity on a rectified flow."""


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
        """The guided prediction, in which each patch has the norm that it has without guidance."""
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


class VariancePreservingGenerator(Generator):
    """A family on a variance-preserving path, which predicts the noise eps or the velocity sqrt(abar) eps - sigma x0.
    Samples are those of the pipeline with its scheduler replaced by a `DDIMScheduler` of the same configuration."""

    is_flow = False

    def __init__(self, transformer, scheduler_config):
        super().__init__(transformer, scheduler_config)
        with torch.device("cpu"):  # real values even when the transformer is on the meta device
            scheduler = DDIMScheduler.from_config(scheduler_config)
        self.signal = scheduler.alphas_cumprod.sqrt()  # by timestep; more precise than from the level near pure noise
        self.prediction = scheduler.config.prediction_type
        if self.prediction not in ("epsilon", "v_prediction"):
            raise ValueError(
                f"policy: expected a scheduler with prediction_type 'epsilon' or 'v_prediction', got "
                f"{self.prediction!r}"
            )

    def sigmas(self, scheduler, num_steps, side):
        scheduler = DDIMScheduler.from_config(scheduler.config)
        scheduler.set_timesteps(num_steps)
        last = (1 - scheduler.final_alpha_cumprod).sqrt()
        return torch.cat([self.path.sigmas[scheduler.timesteps], last[None]])

    def training_levels(self, count, generator):
        """Levels of uniformly distributed timesteps, as in Diffusion-DPO (arXiv 2311.12908)."""
        return self.path.sigmas[torch.randint(len(self.path.sigmas), (count,), generator=generator, device="cpu")]

    def error(self, velocity, target, sigma):
        error = super().error(velocity, target, sigma)
        # At the same noisy latents, an error of the noise is sqrt(abar) times that of the velocity.
        return error * (1 - sigma.square()) if self.prediction == "epsilon" else error

    def as_velocity(self, prediction, latents, sigma):
        if self.prediction == "v_prediction":
            return prediction
        signal = self.signal.to(sigma.device)[self.path.timestep(sigma)].reshape(-1, 1, 1, 1)
        return (prediction - sigma.reshape(-1, 1, 1, 1) * latents.float()) / signal


class SDGenerator(VariancePreservingGenerator):
    """Stable Diffusion 1 and 2."""

    family = "sd"

    def predict(self, states, sigma, prompts, guidance_scale):
        embeds = prompts.prompt_embeds.to(states.dtype)
        return self.transformer(states, self.path.timestep(sigma), embeds).sample


class SDXLGenerator(VariancePreservingGenerator):
    """Stable Diffusion XL, which is conditioned on sizes as in its pipeline by default."""

    family = "sdxl"

    def predict(self, states, sigma, prompts, guidance_scale):
        embeds, pooled = (part.to(states.dtype) for part in prompts.pair())
        height, width = (PIXELS * side for side in states.shape[2:])
        sizes = torch.tensor([[height, width, 0, 0, height, width]], dtype=states.dtype, device=states.device)
        added = {"text_embeds": pooled, "time_ids": sizes.expand(len(states), -1)}
        return self.transformer(states, self.path.timestep(sigma), embeds, added_cond_kwargs=added).sample


class PixArtGenerator(VariancePreservingGenerator):
    """PixArt-Sigma, which also predicts a variance that its pipeline ignores."""

    family = "pixart"

    def predict(self, states, sigma, prompts, guidance_scale):
        output = self.transformer(
            states,
            encoder_hidden_states=prompts.prompt_embeds.to(states.dtype),
            encoder_attention_mask=prompts.prompt_embeds_mask,
            timestep=self.path.timestep(sigma),
        ).sample
        return output[:, : states.shape[1]]


GENERATORS: dict[str, type[Generator]] = {
    each.family: each
    for each in (
        *(SD3Generator, FluxGenerator, ZImageGenerator, QwenImageGenerator),
        *(SDGenerator, SDXLGenerator, PixArtGenerator),
    )
}


def generator_of(pipeline: Any) -> Generator:
    """The generator of a diffusers pipeline.

    Raises:
        ValueError: the pipeline has no transformer or UNet of a known family.
    """

    def named_config(part: Any) -> dict[str, Any]:
        return {**part.config, "_class_name": type(part).__name__}

    for name, generator in GENERATORS.items():
        module = getattr(pipeline, BACKBONES[name].component, None)
        if module is not None and BACKBONES[name].matches(named_config(module)):
            return generator(module, named_config(pipeline.scheduler))
    known = sorted({BACKBONES[name].transformer_class.__name__ for name in GENERATORS})
    raise ValueError(f"policy: expected a pipeline with one of {known}, got {type(pipeline).__name__}")
