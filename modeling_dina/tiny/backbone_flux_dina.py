"""FLUX.1 as a backbone."""

import math

import torch
import torch.nn.functional as F
from diffusers import FluxTransformer2DModel

from .backbone_base_dina import Backbone, Dimensions, Embedded, grid_positions, patches

PATCH_SIZE = 2  # FLUX.1's pipeline packs latents, so that its transformer's own patch size is 1
GUIDANCE = 3.5  # scale of classifier-free guidance that a guidance-distilled transformer imitates


class FluxBackbone(Backbone):
    """The first blocks of a `FluxTransformer2DModel`: double blocks, then single blocks, numbered consecutively."""

    transformer_class = FluxTransformer2DModel
    block_lists = {"num_layers": "transformer_blocks", "num_single_layers": "single_transformer_blocks"}  # noqa: RUF012
    embedders = ("x_embedder", "context_embedder", "time_text_embed", "pos_embed")
    default_layers = (57, (8, 12, 16, 19))  # up to the last double block
    official_fields = {"timestep_scale": 1.0, "max_sequence_length": 128}  # noqa: RUF012
    marker = "x_embedder.weight"

    def __init__(self, config):
        super().__init__(config)
        self.timestep_scale = config.timestep_scale

    @staticmethod
    def describe(whole):
        width = whole["num_attention_heads"] * whole["attention_head_dim"]
        return Dimensions(
            token_width=width,
            conditioning_width=width,
            latent_channels=whole["in_channels"] // PATCH_SIZE**2,
            patch_size=PATCH_SIZE,
            text_width=whole["joint_attention_dim"],
            pooled_width=whole["pooled_projection_dim"],
            text_length=512 if whole["guidance_embeds"] else 256,  # FLUX.1-schnell was trained with 256
        )

    @classmethod
    def check_config(cls, config):
        if not 0 < config.timestep_scale < math.inf:
            raise ValueError(f"timestep_scale: expected a finite positive number, got {config.timestep_scale}")

    def embed(self, latents, timestep, prompt_embeds, pooled_prompt_embeds, prompt_embeds_mask):
        levels = [timestep / 1000]
        if self.transformer_config["guidance_embeds"]:
            levels.append(torch.full_like(timestep, GUIDANCE))
        scaled = [self.timestep_scale * level for level in levels]
        conditioning = self.time_text_embed(*scaled, pooled_prompt_embeds)
        # Text has position 0, patches have (0, row, column).
        positions = F.pad(grid_positions(latents, PATCH_SIZE), (1, 0, prompt_embeds.shape[1], 0))
        visual = self.x_embedder(patches(latents, PATCH_SIZE).flatten(2))
        text = self.context_embedder(prompt_embeds)
        return Embedded(visual, text, conditioning, None, (conditioning, self.pos_embed(positions)))


__all__ = ["FluxBackbone"]
