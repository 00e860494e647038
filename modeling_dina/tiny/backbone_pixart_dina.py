"""PixArt-Sigma as a backbone."""

from diffusers import PixArtTransformer2DModel
from diffusers.models.embeddings import get_2d_sincos_pos_embed

from .backbone_base_dina import CROSS_LORA_TARGETS, Backbone, Dimensions, Embedded
from .noising_dina import VARIANCE_PRESERVING_LEVELS

RESOLUTION_CONDITIONS_SIDE = 128  # a transformer of this `sample_size` has them, unless its configuration says no


class PixArtBackbone(Backbone):
    """The first blocks of a `PixArtTransformer2DModel`."""

    transformer_class = PixArtTransformer2DModel
    embedders = ("pos_embed", "adaln_single", "caption_projection")
    default_layers = (28, (5, 9, 14))
    lora_targets = CROSS_LORA_TARGETS
    takes_mask = True
    text_is_constant = True

    def __init__(self, config):
        super().__init__(config)
        # The table of positions is not saved, and has no values when the model is built on the meta device. Without
        # it, this module adds no positions.
        self.pos_embed.pos_embed = None

    @staticmethod
    def describe(whole):
        width = whole["num_attention_heads"] * whole["attention_head_dim"]
        return Dimensions(
            token_width=width,
            conditioning_width=width,
            latent_channels=whole["in_channels"],
            patch_size=whole["patch_size"],
            text_width=whole["caption_channels"],
            pooled_width=None,
            text_length=300,
            training_side=whole["sample_size"],
        )

    @classmethod
    def default_fields(cls, whole):
        return {**super().default_fields(whole), "default_sigmas": VARIANCE_PRESERVING_LEVELS}

    @classmethod
    def check_config(cls, config):
        super().check_config(config)
        whole = config.transformer_config
        conditions = whole.get("use_additional_conditions")
        if conditions or (conditions is None and whole["sample_size"] == RESOLUTION_CONDITIONS_SIDE):
            raise ValueError(
                "transformer_config: expected use_additional_conditions=False, as in PixArt-Sigma, got the conditions "
                "on resolution and aspect ratio of PixArt-alpha"
            )

    def embed(self, latents, timestep, prompt_embeds, pooled_prompt_embeds, prompt_embeds_mask):
        modulation, conditioning = self.adaln_single(timestep, batch_size=len(latents), hidden_dtype=latents.dtype)
        visual = self.pos_embed(latents)
        visual = (visual + self._positions(latents)).to(visual.dtype)
        text = self.caption_projection(prompt_embeds)
        bias = None
        if prompt_embeds_mask is not None:
            bias = ((1 - prompt_embeds_mask.to(visual.dtype)) * -10000.0).unsqueeze(1)
        return Embedded(visual, text, conditioning, prompt_embeds_mask, (bias, modulation))

    def _positions(self, latents):
        """Sine and cosine embeddings [V, width] of the patches' positions."""
        patch = self.pos_embed
        return get_2d_sincos_pos_embed(
            embed_dim=self.dimensions.token_width,
            grid_size=tuple(side // self.dimensions.patch_size for side in latents.shape[-2:]),
            base_size=patch.base_size,
            interpolation_scale=patch.interpolation_scale,
            device=latents.device,
            output_type="pt",
        ).float()

    def run_block(self, block, state, arguments):
        visual, text = state
        bias, modulation = arguments
        return self.call(block, visual, None, text, bias, modulation), text


__all__ = ["PixArtBackbone"]
