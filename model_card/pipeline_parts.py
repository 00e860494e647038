"""The text encoders and the VAE of Stable Diffusion 3 and 3.5, without weights, to count their bytes."""

from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from model_card.other_rewards import Sizes

# The public configurations of stabilityai/stable-diffusion-3.5-medium.
CLIP_L: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}
CLIP_G: dict[str, Any] = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
}
T5_XXL: dict[str, Any] = {
    "vocab_size": 32128,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
}


def build_pipeline_parts(dtype: torch.dtype) -> dict[str, nn.Module]:
    """The parts, by their names in the pipeline, on the meta device."""
    with torch.device("meta"):
        found: dict[str, nn.Module] = {
            "text_encoder": CLIPTextModelWithProjection(CLIPTextConfig(**CLIP_L, projection_dim=768)),
            "text_encoder_2": CLIPTextModelWithProjection(CLIPTextConfig(**CLIP_G, projection_dim=1280)),
            "text_encoder_3": T5EncoderModel(T5Config(**T5_XXL)),
            "vae": AutoencoderKL(**Sizes().vae),
        }
    return {name: nn.Module.to(part, dtype) for name, part in found.items()}


def largest_layer_bytes(module: nn.Module) -> int:
    """Bytes of the weights of the largest layer, the most that is on the device when layers take turns."""
    layers = (part.parameters(recurse=False) for part in module.modules())
    return max(sum(weight.nbytes for weight in layer) for layer in layers)
