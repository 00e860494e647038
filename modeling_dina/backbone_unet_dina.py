"""Stable Diffusion 1, 2 and XL as backbones."""

from typing import ClassVar

import torch
from diffusers import UNet2DConditionModel

from .backbone_base_dina import CROSS_LORA_TARGETS, Backbone, Dimensions, Embedded
from .noising_dina import VARIANCE_PRESERVING_LEVELS

PIXELS = 8  # per latent along each side, in the VAEs of these models
# Fields of the configuration that only other models than the supported ones change.
PLAIN = {
    **{"addition_embed_type": (None, "text_time"), "mid_block_type": ("UNetMidBlock2DCrossAttn",)},
    **{"time_embedding_type": ("positional",), "attention_type": ("default",)},
    **dict.fromkeys(("class_embed_type", "encoder_hid_dim_type", "time_embedding_act_fn"), (None,)),
    **dict.fromkeys(("num_class_embeds", "encoder_hid_dim", "time_cond_proj_dim"), (None,)),
    **dict.fromkeys(("center_input_sample", "dual_cross_attention"), (False,)),
}
DOWN_BLOCKS = ("CrossAttnDownBlock2D", "DownBlock2D")


class UNetBackbone(Backbone):
    """The down blocks of a `UNet2DConditionModel` and its mid block, numbered consecutively.

    The tokens of a layer are its last feature map before it is halved, position by position. Layer 0 is the output of
    the first convolution. No block changes the text, so that the head uses `prompt_embeds` themselves.
    """

    transformer_class = UNet2DConditionModel
    component = "unet"
    block_lists = {"down_block_types": "down_blocks"}  # noqa: RUF012
    embedders: ClassVar[tuple[str, ...]] = ("conv_in", "time_proj", "time_embedding", "mid_block")
    lora_targets = CROSS_LORA_TARGETS
    text_is_constant = True
    has_sizes: ClassVar[bool]  # whether the network is conditioned on pooled embeddings and the image's size

    def __init__(self, config):
        super().__init__(config)
        del self.down_blocks[config.num_layers :]
        if config.num_layers < self.depth(config.transformer_config):
            self.mid_block = None
            if len(self.down_blocks):
                self.down_blocks[-1].downsamplers = None

    @staticmethod
    def describe(whole):
        widths = whole["block_out_channels"]
        pooled = whole.get("projection_class_embeddings_input_dim")
        return Dimensions(
            token_width=widths[-1],
            conditioning_width=whole.get("time_embedding_dim") or 4 * widths[0],
            latent_channels=whole["in_channels"],
            patch_size=1,
            text_width=whole["cross_attention_dim"],
            pooled_width=None if pooled is None else pooled - 6 * whole["addition_time_embed_dim"],
            text_length=77,
            training_side=whole["sample_size"],
            visual_widths=(widths[0], *widths, widths[-1]),
            text_token_width=whole["cross_attention_dim"],
        )

    @classmethod
    def matches(cls, whole):
        return super().matches(whole) and (whole.get("addition_embed_type") == "text_time") == cls.has_sizes

    @classmethod
    def depth(cls, whole):
        names = whole.get("down_block_types")
        if not isinstance(names, list | tuple):
            raise ValueError(f"transformer_config: expected a list under 'down_block_types', got {names!r}")
        return len(names) + 1

    @classmethod
    def block_counts(cls, whole, num_layers):
        return {}  # a UNet cannot be built without its up blocks

    @classmethod
    def default_fields(cls, whole):
        depth = cls.depth(whole)
        return {
            "num_layers": depth,
            "visual_layers": list(range(1, depth + 1)),
            "text_layers": [0],
            "max_sequence_length": cls.describe(whole).text_length,
            "default_sigmas": VARIANCE_PRESERVING_LEVELS,
        }

    @classmethod
    def check_config(cls, config):
        super().check_config(config)
        whole = config.transformer_config
        for name, values in PLAIN.items():
            if whole.get(name, values[0]) not in values:
                raise ValueError(f"transformer_config: expected {name} to be one of {values}, got {whole[name]!r}")
        if unknown := sorted(set(whole["down_block_types"]) - set(DOWN_BLOCKS)):
            raise ValueError(f"transformer_config: expected down_block_types of {DOWN_BLOCKS}, got {unknown}")
        if whole["in_channels"] != whole["out_channels"]:
            raise ValueError(
                f"transformer_config: expected a text-to-image UNet, with in_channels={whole['out_channels']}, "
                f"got {whole['in_channels']}"
            )
        if (whole.get("addition_embed_type") == "text_time") != cls.has_sizes:
            expected = "'text_time'" if cls.has_sizes else "None"
            raise ValueError(
                f"transformer_config: expected addition_embed_type={expected} for "
                f"backbone_type={config.backbone_type!r}, got {whole.get('addition_embed_type')!r}"
            )

    def embed(self, latents, timestep, prompt_embeds, pooled_prompt_embeds, prompt_embeds_mask):
        conditioning = self.time_embedding(self.time_proj(timestep).to(latents.dtype))
        conditioning = self.condition(conditioning, latents, pooled_prompt_embeds)
        return Embedded(self.conv_in(latents), prompt_embeds, conditioning, None, (conditioning,))

    def condition(self, conditioning, latents, pooled_prompt_embeds):
        """Add the embedding of further conditions to that of the timestep."""
        return conditioning

    def blocks(self):
        return [*self.down_blocks, *([] if self.mid_block is None else [self.mid_block])]

    def join(self, visual, text):
        # The feature map that the head uses, the one that the next block processes, and the text.
        return visual, visual, text

    def separate(self, state, visual_length):
        feature_map, _, text = state
        return feature_map.flatten(2).transpose(1, 2), text

    def run_block(self, block, state, arguments):
        # The library's blocks apply gradient checkpointing to their own layers.
        _, sample, text = state
        has_text = getattr(block, "has_cross_attention", False)
        output = block(sample, *arguments, *((text,) if has_text else ()))
        if block is self.mid_block:
            return output, output, text
        sample, residuals = output
        return residuals[-1 if block.downsamplers is None else -2], sample, text


class SDBackbone(UNetBackbone):
    """Stable Diffusion 1 and 2."""

    has_sizes = False


class SDXLBackbone(UNetBackbone):
    """Stable Diffusion XL, which is conditioned on sizes as in its pipeline by default: nothing is cropped, and the
    original size and the target size are that of the latents in pixels."""

    has_sizes = True
    embedders = (*UNetBackbone.embedders, "add_time_proj", "add_embedding")

    def condition(self, conditioning, latents, pooled_prompt_embeds):
        height, width = (PIXELS * side for side in latents.shape[-2:])
        sizes = torch.tensor([height, width, 0, 0, height, width], device=latents.device)
        waves = self.add_time_proj(sizes).flatten().to(latents.dtype)
        added = torch.cat([pooled_prompt_embeds, waves.expand(len(latents), -1)], dim=1)
        return conditioning + self.add_embedding(added)


__all__ = ["SDBackbone", "SDXLBackbone", "UNetBackbone"]
