"""Stable Diffusion 3 and 3.5 as backbones."""

from diffusers import SD3Transformer2DModel

from .backbone_base_dina import Backbone, Dimensions, Embedded


class SD3Backbone(Backbone):
    """The first blocks of an `SD3Transformer2DModel`."""

    transformer_class = SD3Transformer2DModel
    embedders = ("pos_embed", "time_text_embed", "context_embedder")
    default_layers = (24, (4, 8, 12))
    marker = "pos_embed.proj.weight"

    def __init__(self, config):
        super().__init__(config)
        del self.transformer_blocks[config.num_layers :]

    @staticmethod
    def describe(whole):
        if not whole.get("pos_embed_max_size"):
            raise ValueError("transformer_config: expected a positive 'pos_embed_max_size', got none")
        width = whole["num_attention_heads"] * whole["attention_head_dim"]
        return Dimensions(
            token_width=width,
            conditioning_width=width,
            latent_channels=whole["in_channels"],
            patch_size=whole["patch_size"],
            text_width=whole["joint_attention_dim"],
            pooled_width=whole["pooled_projection_dim"],
            text_length=128,
            clip_tokens=77,
            max_side=whole["patch_size"] * whole["pos_embed_max_size"],
            training_side=whole["sample_size"],
        )

    @classmethod
    def block_counts(cls, whole, num_layers):
        # The last block of an SD3Transformer2DModel has no text output. Therefore one more block is built and then
        # dropped, so that the last remaining block is like the original one.
        return super().block_counts(whole, num_layers + 1)

    @classmethod
    def check_config(cls, config):
        super().check_config(config)
        depth = cls.depth(config.transformer_config)
        if depth in config.text_layers:
            raise ValueError(
                f"text_layers: expected layers below {depth}, because the last block has no text output, "
                f"got {list(config.text_layers)}"
            )

    def embed(self, latents, timestep, prompt_embeds, pooled_prompt_embeds, prompt_embeds_mask):
        visual = self.pos_embed(latents).contiguous()
        conditioning = self.time_text_embed(timestep, pooled_prompt_embeds)
        return Embedded(visual, self.context_embedder(prompt_embeds), conditioning, None, (conditioning,))


__all__ = ["SD3Backbone"]
