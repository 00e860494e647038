"""Published models that a reward model can be built on: the configurations of their transformers and schedulers."""

from typing import Any

SD35_MEDIUM = "sd3.5-medium"


def _sd3(**transformer: Any) -> dict[str, Any]:
    return {
        "sample_size": 128,
        "patch_size": 2,
        "in_channels": 16,
        "num_layers": 24,
        "attention_head_dim": 64,
        "num_attention_heads": 24,
        "joint_attention_dim": 4096,
        "caption_projection_dim": 1536,
        "pooled_projection_dim": 2048,
        "out_channels": 16,
        "pos_embed_max_size": 192,
        **transformer,
    }


def _flux(**transformer: Any) -> dict[str, Any]:
    return {
        "patch_size": 1,
        "in_channels": 64,
        "num_layers": 19,
        "num_single_layers": 38,
        "attention_head_dim": 128,
        "num_attention_heads": 24,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 768,
        "axes_dims_rope": [16, 56, 56],
        **transformer,
    }


def _variance_preserving(**scheduler: Any) -> dict[str, Any]:
    return {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": 1000,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "prediction_type": "epsilon",
        **scheduler,
    }


def _flow_matching(**scheduler: Any) -> dict[str, Any]:
    return {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, **scheduler}


_Z_IMAGE: dict[str, Any] = {
    "all_patch_size": [2],
    "all_f_patch_size": [1],
    "in_channels": 16,
    "dim": 3840,
    "n_layers": 30,
    "n_refiner_layers": 2,
    "n_heads": 30,
    "n_kv_heads": 30,
    "norm_eps": 1e-5,
    "qk_norm": True,
    "cap_feat_dim": 2560,
    "rope_theta": 256.0,
    "t_scale": 1000.0,
    "axes_dims": [32, 48, 48],
    "axes_lens": [1024, 512, 512],
}
_QWEN_IMAGE: dict[str, Any] = {
    "patch_size": 2,
    "in_channels": 64,
    "out_channels": 16,
    "num_layers": 60,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 3584,
    "guidance_embeds": False,
    "axes_dims_rope": [16, 56, 56],
}

# The fields that have defaults in old configurations are those of the library.
_SD: dict[str, Any] = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
}
_SDXL: dict[str, Any] = {
    "sample_size": 128,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 2,
    "up_block_types": ["CrossAttnUpBlock2D"] * 2 + ["UpBlock2D"],
    "block_out_channels": [320, 640, 1280],
    "layers_per_block": 2,
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
_PIXART: dict[str, Any] = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 28,
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "cross_attention_dim": 1152,
    "caption_channels": 4096,
    "interpolation_scale": 2,
    "use_additional_conditions": False,
}

# For each model, the fields of `DinaConfig` that it determines.
PRESETS: dict[str, dict[str, Any]] = {
    "sd3-medium": {
        "backbone_type": "sd3",
        "transformer_config": _sd3(),
        "scheduler_config": _flow_matching(shift=3.0),
        "conditioning_source": "stabilityai/stable-diffusion-3-medium-diffusers",
    },
    SD35_MEDIUM: {
        "backbone_type": "sd3",
        "transformer_config": _sd3(pos_embed_max_size=384, dual_attention_layers=list(range(13)), qk_norm="rms_norm"),
        "scheduler_config": _flow_matching(shift=3.0),
        "conditioning_source": "stabilityai/stable-diffusion-3.5-medium",
    },
    "sd3.5-large": {
        "backbone_type": "sd3",
        "transformer_config": _sd3(
            num_layers=38, num_attention_heads=38, caption_projection_dim=2432, qk_norm="rms_norm"
        ),
        "scheduler_config": _flow_matching(shift=3.0),
        "conditioning_source": "stabilityai/stable-diffusion-3.5-large",
    },
    "flux1-dev": {
        "backbone_type": "flux",
        "transformer_config": _flux(guidance_embeds=True),
        "scheduler_config": _flow_matching(
            shift=3.0,
            use_dynamic_shifting=True,
            base_image_seq_len=256,
            base_shift=0.5,
            max_image_seq_len=4096,
            max_shift=1.15,
        ),
        "conditioning_source": "black-forest-labs/FLUX.1-dev",
    },
    "flux1-schnell": {
        "backbone_type": "flux",
        "transformer_config": _flux(guidance_embeds=False),
        "scheduler_config": _flow_matching(shift=1.0),
        "conditioning_source": "black-forest-labs/FLUX.1-schnell",
    },
    "z-image": {
        "backbone_type": "zimage",
        "transformer_config": _Z_IMAGE,
        "scheduler_config": _flow_matching(shift=6.0),
        "conditioning_source": "Tongyi-MAI/Z-Image",
    },
    "z-image-turbo": {
        "backbone_type": "zimage",
        "transformer_config": _Z_IMAGE,
        "scheduler_config": _flow_matching(shift=3.0),
        "conditioning_source": "Tongyi-MAI/Z-Image-Turbo",
    },
    "qwen-image": {
        "backbone_type": "qwenimage",
        "transformer_config": _QWEN_IMAGE,
        "scheduler_config": _flow_matching(
            shift=1.0,
            use_dynamic_shifting=True,
            base_image_seq_len=256,
            base_shift=0.5,
            max_image_seq_len=8192,
            max_shift=0.9,
            shift_terminal=0.02,
        ),
        "conditioning_source": "Qwen/Qwen-Image",
    },
    "sd1.5": {
        "backbone_type": "sd",
        "transformer_config": _SD,
        "scheduler_config": _variance_preserving(),
        "conditioning_source": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    },
    "sd2.1-768": {
        "backbone_type": "sd",
        "transformer_config": {
            **_SD,
            "sample_size": 96,
            "attention_head_dim": [5, 10, 20, 20],
            "cross_attention_dim": 1024,
            "use_linear_projection": True,
        },
        "scheduler_config": _variance_preserving(prediction_type="v_prediction"),
        "conditioning_source": "stabilityai/stable-diffusion-2-1",
    },
    "sdxl": {
        "backbone_type": "sdxl",
        "transformer_config": _SDXL,
        "scheduler_config": _variance_preserving(),
        "conditioning_source": "stabilityai/stable-diffusion-xl-base-1.0",
    },
    "pixart-sigma": {
        "backbone_type": "pixart",
        "transformer_config": _PIXART,
        "scheduler_config": _variance_preserving(beta_schedule="linear", beta_start=0.0001, beta_end=0.02),
        "conditioning_source": "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS",
    },
}

__all__ = ["PRESETS", "SD35_MEDIUM"]
