"""What every test shares: no network, caches of its own, and a reward model small enough to build in a moment."""

import os
import tempfile

# Both are read when the libraries are imported, before any fixture runs.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="dina-modules-")

import pytest
import torch

from modeling_dina import DinaConfig, DinaRewardModel

TINY_TRANSFORMER = {
    "sample_size": 16,
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 4,
    "attention_head_dim": 8,
    "num_attention_heads": 4,
    "joint_attention_dim": 12,
    "caption_projection_dim": 32,
    "pooled_projection_dim": 10,
    "pos_embed_max_size": 12,
    "dual_attention_layers": [0],
    "qk_norm": "rms_norm",
}


@pytest.fixture
def tiny_config():
    """Fields of a `DinaConfig` over a 4-block transformer of width 32; each test may change its own copy."""
    return {
        "transformer_config": dict(TINY_TRANSFORMER),
        "num_layers": 3,
        "visual_layers": [1, 3],
        "text_layers": [2],
        "num_queries": 2,
        "num_attention_heads": 4,
    }


@pytest.fixture
def tiny_model(tiny_config):
    """A reward model with random weights in evaluation mode, whose zero-initialised layers are random too."""
    torch.manual_seed(0)
    model = DinaRewardModel(DinaConfig(**tiny_config)).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture
def tiny_inputs():
    """Latents and text conditioning of five samples, as keyword arguments of `DinaRewardModel.reward`."""
    generator = torch.Generator().manual_seed(1)
    return {
        "latents": torch.randn(5, 4, 8, 6, generator=generator),
        "prompt_embeds": torch.randn(5, 7, 12, generator=generator),
        "pooled_prompt_embeds": torch.randn(5, 10, generator=generator),
    }
