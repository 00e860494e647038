"""Other common rewards, with random weights, whose values do not change the cost.

The sizes are those of the public configurations. Each reward scores pixels; for a generator's latents, `DecodedReward`
adds the decoder of Stable Diffusion 3.5 before it.
"""

from dataclasses import dataclass, field
from itertools import pairwise

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import nn
from transformers import (
    BlipTextConfig,
    BlipTextModel,
    BlipVisionConfig,
    BlipVisionModel,
    CLIPConfig,
    CLIPModel,
    Qwen2VLConfig,
    Qwen2VLModel,
)
from transformers.vision_utils import get_vision_cu_seqlens, get_vision_position_ids

from modeling_dina.latents_dina import decode_latents


@dataclass(frozen=True)
class Sizes:
    """
    Configurations of the networks; the defaults are the published ones.

    Attributes:
        vae: of stabilityai/stable-diffusion-3.5-medium.
        clip: of laion/CLIP-ViT-H-14-laion2B-s32B-b79K, the network of PickScore (Kirstain et al., 2023) and HPSv2 (Wu
            et al., 2023).
        blip_vision, blip_text, blip_tokens, blip_head: of ImageReward (Xu et al., 2023): BLIP with ViT-L/16, a text
            encoder that attends to the image, text of 35 tokens, and an MLP.
        qwen_text, qwen_vision: of Qwen/Qwen2-VL-7B-Instruct, which HPSv3 (Ma et al., 2025) is trained from.
        qwen_pixels: pixels a side that HPSv3 resizes a square image to: its 256 x 28 x 28 are 448 x 448.
        qwen_tokens: of HPSv3's instruction before and after the image, with a prompt of 18 tokens.
        qwen_head: of HPSv3, after the language model.
    """

    vae: dict = field(
        default_factory=lambda: {
            "down_block_types": ("DownEncoderBlock2D",) * 4,
            "up_block_types": ("UpDecoderBlock2D",) * 4,
            "block_out_channels": (128, 256, 512, 512),
            "layers_per_block": 2,
            "latent_channels": 16,
            "scaling_factor": 1.5305,
            "shift_factor": 0.0609,
            "use_quant_conv": False,
            "use_post_quant_conv": False,
        }
    )
    clip: dict = field(
        default_factory=lambda: {
            "projection_dim": 1024,
            "text_config": {
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "hidden_act": "gelu",
            },
            "vision_config": {
                "hidden_size": 1280,
                "intermediate_size": 5120,
                "num_hidden_layers": 32,
                "num_attention_heads": 16,
                "image_size": 224,
                "patch_size": 14,
                "hidden_act": "gelu",
            },
        }
    )
    blip_vision: dict = field(
        default_factory=lambda: {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "image_size": 224,
            "patch_size": 16,
        }
    )
    blip_text: dict = field(default_factory=lambda: {"encoder_hidden_size": 1024, "num_attention_heads": 12})
    blip_tokens: int = 35
    blip_head: tuple[int, ...] = (768, 1024, 128, 64, 16, 1)
    qwen_text: dict = field(
        default_factory=lambda: {
            "vocab_size": 152064,
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        }
    )
    qwen_vision: dict = field(
        default_factory=lambda: {"depth": 32, "embed_dim": 1280, "hidden_size": 3584, "num_heads": 16}
    )
    qwen_pixels: int = 448
    qwen_tokens: tuple[int, int] = (15, 533)
    qwen_head: tuple[int, ...] = (3584, 1024, 16, 2)


# Tiny networks of the same kinds, which run on a CPU in a moment, for trials and tests.
MINIATURE = Sizes(
    vae={
        **Sizes().vae,
        "block_out_channels": (8, 8, 16, 16),
        "norm_num_groups": 4,
        "layers_per_block": 1,
    },
    clip={
        "projection_dim": 16,
        "text_config": {
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
        },
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
    },
    blip_vision={
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 16,
    },
    blip_text={
        "hidden_size": 16,
        "encoder_hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    },
    blip_head=(16, 8, 1),
    qwen_text={
        "vocab_size": 151700,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
    },
    qwen_vision={"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2},
    qwen_pixels=56,
    qwen_tokens=(3, 5),
    qwen_head=(32, 8, 2),
)


class ClipReward(nn.Module):
    """PickScore and HPSv2: cosine of image and text under CLIP, times a learnt scale."""

    def __init__(self, sizes: Sizes, dtype: torch.dtype):
        super().__init__()
        self.clip = CLIPModel._from_config(CLIPConfig(**sizes.clip), dtype=dtype)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Compute rewards [B] of pixels [B, 3, H, W]."""
        config = self.clip.config
        text = pixels.new_zeros(len(pixels), config.text_config.max_position_embeddings, dtype=torch.long)
        image = resized(pixels, config.vision_config.image_size, self.clip.dtype)
        return self.clip(input_ids=text, pixel_values=image).logits_per_image.diagonal()


class BlipReward(nn.Module):
    """ImageReward: a text encoder that attends to the image, and an MLP on its first token."""

    def __init__(self, sizes: Sizes, dtype: torch.dtype):
        super().__init__()
        self.vision = BlipVisionModel._from_config(BlipVisionConfig(**sizes.blip_vision), dtype=dtype)
        self.text = BlipTextModel._from_config(BlipTextConfig(**sizes.blip_text), add_pooling_layer=False, dtype=dtype)
        # Without activations between its layers, as published.
        self.head = nn.Sequential(*(nn.Linear(*pair) for pair in pairwise(sizes.blip_head))).to(dtype)
        self.tokens = sizes.blip_tokens

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Compute rewards [B] of pixels [B, 3, H, W]."""
        image = self.vision(resized(pixels, self.vision.config.image_size, self.vision.dtype)).last_hidden_state
        text = pixels.new_zeros(len(pixels), self.tokens, dtype=torch.long)
        states = self.text(input_ids=text, encoder_hidden_states=image, is_decoder=False).last_hidden_state
        return self.head(states[:, 0]).squeeze(-1)


class QwenReward(nn.Module):
    """HPSv3: instruction, image and prompt through Qwen2-VL, and an MLP in float32 on the reward's token."""

    def __init__(self, sizes: Sizes, dtype: torch.dtype):
        super().__init__()
        config = Qwen2VLConfig(text_config=sizes.qwen_text, vision_config=sizes.qwen_vision)
        # Without the output layer over the vocabulary, which the reward does not use.
        self.qwen = Qwen2VLModel._from_config(config, dtype=dtype)
        layers = [layer for pair in pairwise(sizes.qwen_head) for layer in (nn.Linear(*pair), nn.ReLU())]
        self.head = nn.Sequential(*layers[:-1])
        self.pixels, self.tokens = sizes.qwen_pixels, sizes.qwen_tokens

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Compute rewards [B] of pixels [B, 3, H, W]."""
        batch, vision = len(pixels), self.qwen.config.vision_config
        image = resized(pixels, self.pixels, self.qwen.dtype)
        side = self.pixels // vision.patch_size
        # Python reads these lengths, so that they cannot be on the meta device.
        grid = torch.tensor([[1, side, side]] * batch)
        seen = self.qwen.visual(
            patches(image, vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size),
            grid_thw=grid,
            cu_seqlens=get_vision_cu_seqlens(grid),
            position_ids=get_vision_position_ids(grid, vision.spatial_merge_size).to(pixels.device),
        ).pooler_output
        embed = self.qwen.get_input_embeddings()
        before, after = (embed(pixels.new_zeros(batch, count, dtype=torch.long)) for count in self.tokens)
        tokens = torch.cat([before, seen.view(batch, -1, seen.shape[-1]), after], dim=1)
        states = self.qwen.language_model(inputs_embeds=tokens, use_cache=False).last_hidden_state
        return self.head(states.float())[:, -1, 0]


class DecodedReward(nn.Module):
    """A reward on pixels behind the decoder, for latents [B, C, H, W] in model space."""

    def __init__(self, vae: AutoencoderKL, reward: nn.Module):
        super().__init__()
        self.vae, self.reward = vae, reward

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Compute rewards [B] of latents [B, C, H, W]."""
        return self.reward(decode_latents(self.vae, latents))


def build_decoder(sizes: Sizes, dtype: torch.dtype) -> AutoencoderKL:
    """The autoencoder without its encoder."""
    vae = AutoencoderKL(**sizes.vae)
    del vae.encoder
    # The class's own `to` warns about modules that stay in float32, although there are none.
    return nn.Module.to(vae, dtype)


def resized(pixels: torch.Tensor, side: int, dtype: torch.dtype) -> torch.Tensor:
    """Resize pixels [B, 3, H, W] to [B, 3, side, side] as the image processors do, but differentiably."""
    return F.interpolate(pixels.float(), (side, side), mode="bicubic", antialias=True).to(dtype)


def patches(image: torch.Tensor, patch: int, merge: int, frames: int) -> torch.Tensor:
    """
    Split an image [B, 3, S, S], repeated as `frames` frames, into the patches that Qwen2-VL takes, in which `merge` x
    `merge` neighbours follow one another.

    Returns:
        [B * (S / patch)^2, 3 * frames * patch^2]
    """
    batch, channels, side, _ = image.shape
    grid = side // (patch * merge)
    split = image.view(batch, channels, grid, merge, patch, grid, merge, patch).permute(0, 2, 5, 3, 6, 1, 4, 7)
    return split.unsqueeze(6).expand(*[-1] * 6, frames, -1, -1).reshape(batch * (side // patch) ** 2, -1)
