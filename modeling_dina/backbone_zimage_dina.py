"""Z-Image as a backbone."""

import torch
import torch.nn.functional as F
from diffusers import ZImageTransformer2DModel

from .backbone_base_dina import Backbone, Dimensions, Embedded, grid_positions, patches

MULTIPLE = 32  # visual tokens and text tokens are each padded to a multiple of this by a learnt token
MAX_CONDITIONING_WIDTH = 256
TRAINING_SIDE = 128


class ZImageBackbone(Backbone):
    """The first layers of a `ZImageTransformer2DModel`, with the refiners in front of them.

    The learnt tokens that pad visual and text tokens are processed like the others, and the head uses them too.
    """

    transformer_class = ZImageTransformer2DModel
    block_lists = {"n_layers": "layers"}  # noqa: RUF012
    embedders = (
        *("all_x_embedder", "cap_embedder", "t_embedder", "rope_embedder"),
        *("x_pad_token", "cap_pad_token", "noise_refiner", "context_refiner"),
    )
    default_layers = (30, (4, 8, 12, 16))
    lora_targets = ("attention.to_q", "attention.to_k", "attention.to_v", "attention.to_out.0")
    takes_mask = True
    marker = "cap_pad_token"

    def __init__(self, config):
        super().__init__(config)
        # By default the table is computed at the first call, which torch.compile cannot trace.
        rope = self.rope_embedder
        rope.freqs_cis = rope.precompute_freqs_cis(rope.axes_dims, rope.axes_lens, theta=rope.theta)

    @staticmethod
    def describe(whole):
        patch = whole["all_patch_size"][0]
        texts, rows, columns = whole["axes_lens"]
        max_side = patch * min(rows, columns)
        return Dimensions(
            token_width=whole["dim"],
            conditioning_width=min(whole["dim"], MAX_CONDITIONING_WIDTH),
            latent_channels=whole["in_channels"],
            patch_size=patch,
            text_width=whole["cap_feat_dim"],
            pooled_width=None,
            text_length=512,
            # Position 0 is that of padding, and the one behind the text is that of the image.
            max_text_length=(texts - 2) // MULTIPLE * MULTIPLE,
            max_side=max_side,
            training_side=min(TRAINING_SIDE, max_side),
        )

    def embed(self, latents, timestep, prompt_embeds, pooled_prompt_embeds, prompt_embeds_mask):
        # This family's time runs from noise to data.
        time = self.transformer_config["t_scale"] * ((1000 - timestep) / 1000)
        # The whole embedder would compute in the dtype that its weights are stored in.
        waves = self.t_embedder.timestep_embedding(time, self.t_embedder.frequency_embedding_size)
        conditioning = self.t_embedder.mlp(waves.to(latents.dtype))
        text, text_mask, lengths = self._embed_text(prompt_embeds, prompt_embeds_mask)
        visual, visual_rope = self._embed_latents(latents, lengths)
        text_positions = torch.arange(1, text.shape[1] + 1, device=text.device)
        text_rope = self._rope(F.pad(text_positions[None, :, None], (0, 2)))

        for block in self.noise_refiner:
            visual = self.call(block, visual, None, visual_rope, conditioning)
        for block in self.context_refiner:
            text = self.call(block, text, text_mask, text_rope)

        rope = torch.cat([visual_rope, text_rope.expand(len(visual_rope), -1, -1)], dim=1)
        mask = None if text_mask is None else F.pad(text_mask, (visual.shape[1], 0), value=True)
        return Embedded(visual, text, conditioning, text_mask, (mask, rope, conditioning))

    def _embed_text(self, prompt_embeds, mask):
        """Text tokens [B, T, width], the mask of those that are not padding of the batch or None, and for each sample
        the number of its tokens, [B or 1], a multiple of 32."""
        length = prompt_embeds.shape[1]
        padding = -length % MULTIPLE
        index = torch.arange(length + padding, device=prompt_embeds.device)
        counts = index.new_full((1,), length) if mask is None else mask.sum(dim=1)
        text = self.cap_embedder(F.pad(prompt_embeds, (0, 0, 0, padding)))
        text = torch.where((index < counts[:, None])[..., None], text, self.cap_pad_token)
        lengths = counts + -counts % MULTIPLE
        return text, None if mask is None else index < lengths[:, None], lengths

    def _embed_latents(self, latents, text_lengths):
        """Visual tokens [B, V, width] and their rotary embeddings [B or 1, V, head width / 2]."""
        patch = self.dimensions.patch_size
        tokens = patches(latents, patch).permute(0, 1, 3, 4, 2).flatten(2)
        tokens = self.all_x_embedder[f"{patch}-1"](tokens)
        count = tokens.shape[1]
        padding = -count % MULTIPLE
        visual = torch.cat([tokens, self.x_pad_token.expand(len(tokens), padding, -1)], dim=1)
        # Patches lie behind the text of their sample: (text length + 1, row, column).
        grid = grid_positions(latents, patch).expand(len(text_lengths), -1, -1)
        behind = (text_lengths + 1)[:, None, None].expand(-1, count, 1)
        return visual, self._rope(F.pad(torch.cat([behind, grid], dim=-1), (0, 0, 0, padding)))

    def _rope(self, positions):
        return self.rope_embedder(positions.flatten(0, 1)).unflatten(0, positions.shape[:2])

    def join(self, visual, text):
        return torch.cat([visual, text], dim=1)

    def separate(self, state, visual_length):
        return state[:, :visual_length], state[:, visual_length:]

    def run_block(self, block, state, arguments):
        return self.call(block, state, *arguments)


__all__ = ["ZImageBackbone"]
