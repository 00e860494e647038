"""Qwen-Image as a backbone."""

import torch
from diffusers import QwenImageTransformer2DModel
from diffusers.models.transformers.transformer_qwenimage import QwenEmbedRope

from .backbone_base_dina import Backbone, Dimensions, Embedded, patches

POSITIONS = 4096  # length of the transformer's table of rotary embeddings
TEXT_LENGTH = 1024
VARIANTS = ("zero_cond_t", "use_additional_t_cond", "use_layer3d_rope")


class QwenImageBackbone(Backbone):
    """The first blocks of a `QwenImageTransformer2DModel`."""

    transformer_class = QwenImageTransformer2DModel
    embedders = ("img_in", "txt_norm", "txt_in", "time_text_embed")
    default_layers = (60, (5, 10, 15, 20))
    takes_mask = True
    marker = "img_in.weight"

    def __init__(self, config):
        super().__init__(config)
        # Its tables of complex numbers are not buffers. They need real values even when the model is built on the
        # meta device.
        axes = config.transformer_config.get("axes_dims_rope", (16, 56, 56))
        with torch.device("cpu"):
            self.pos_embed = QwenEmbedRope(theta=10000, axes_dim=list(axes), scale_rope=True)

    @staticmethod
    def describe(whole):
        width = whole["num_attention_heads"] * whole["attention_head_dim"]
        patch = whole["patch_size"]
        return Dimensions(
            token_width=width,
            conditioning_width=width,
            latent_channels=whole["in_channels"] // patch**2,
            patch_size=patch,
            text_width=whole["joint_attention_dim"],
            pooled_width=None,
            text_length=TEXT_LENGTH,
            max_text_length=TEXT_LENGTH,
            # The text's positions begin at half of the larger side.
            max_side=2 * patch * (POSITIONS - TEXT_LENGTH),
        )

    @classmethod
    def check_config(cls, config):
        super().check_config(config)
        for name in VARIANTS:
            if config.transformer_config.get(name):
                raise ValueError(f"transformer_config: expected a text-to-image transformer, got {name}=True")

    def embed(self, latents, timestep, prompt_embeds, pooled_prompt_embeds, prompt_embeds_mask):
        patch = self.dimensions.patch_size
        height, width = (side // patch for side in latents.shape[-2:])
        visual = self.img_in(patches(latents, patch).flatten(2))
        text = self.txt_in(self.txt_norm(prompt_embeds))
        conditioning = self.time_text_embed(timestep / 1000, visual)
        positions = self.pos_embed(
            [[(1, height, width)]], max_txt_seq_len=prompt_embeds.shape[1], device=latents.device
        )
        arguments = (prompt_embeds_mask, conditioning, positions)
        return Embedded(visual, text, conditioning, prompt_embeds_mask, arguments)


__all__ = ["QwenImageBackbone"]
