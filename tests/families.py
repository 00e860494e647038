"""Miniatures of the diffusers models of each family, with random weights: transformers, pipelines with their text
encoders and VAE, and reward models on them."""

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLQwenImage,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    PixArtSigmaPipeline,
    QwenImagePipeline,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    ZImagePipeline,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from modeling_dina import DinaConfig, DinaRewardModel
from modeling_dina.backbone_dina import BACKBONES

LETTERS = "abcdefghijklmnopqrstuvwxyz"
FAMILIES = tuple(BACKBONES)
LATENT_CHANNELS = 4
VARIANCE_PRESERVING = ("sd", "sdxl", "pixart")
UNET = {
    "sample_size": 8,
    "in_channels": LATENT_CHANNELS,
    "out_channels": LATENT_CHANNELS,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 2,
}
# For each family: configuration of the whole transformer, and the scheduler's.
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "sd3": {
        "sample_size": 8,
        "patch_size": 2,
        "in_channels": LATENT_CHANNELS,
        "out_channels": LATENT_CHANNELS,
        "num_layers": 4,
        "attention_head_dim": 8,
        "num_attention_heads": 4,
        "joint_attention_dim": 24,
        "caption_projection_dim": 32,
        "pooled_projection_dim": 12,
        "pos_embed_max_size": 12,
        "qk_norm": "rms_norm",
    },
    "flux": {
        "patch_size": 1,
        "in_channels": 4 * LATENT_CHANNELS,
        "num_layers": 3,
        "num_single_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 4,
        "joint_attention_dim": 24,
        "pooled_projection_dim": 8,
        "guidance_embeds": True,
        "axes_dims_rope": [4, 2, 2],
    },
    "zimage": {
        "all_patch_size": [2],
        "all_f_patch_size": [1],
        "in_channels": LATENT_CHANNELS,
        "dim": 32,
        "n_layers": 4,
        "n_refiner_layers": 1,
        "n_heads": 4,
        "n_kv_heads": 4,
        "cap_feat_dim": 24,
        "t_scale": 1000.0,
        "axes_dims": [4, 2, 2],
        "axes_lens": [322, 32, 32],
    },
    "qwenimage": {
        "patch_size": 2,
        "in_channels": 4 * LATENT_CHANNELS,
        "out_channels": LATENT_CHANNELS,
        "num_layers": 4,
        "attention_head_dim": 8,
        "num_attention_heads": 4,
        "joint_attention_dim": 24,
        "axes_dims_rope": [4, 2, 2],
    },
    "sd": {
        **UNET,
        "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
        "block_out_channels": [8, 16, 32],
        "cross_attention_dim": 8,
    },
    "sdxl": {
        **UNET,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "block_out_channels": [8, 16, 32],
        "transformer_layers_per_block": [1, 1, 2],
        "use_linear_projection": True,
        "cross_attention_dim": 16,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 6 + 6 * 4,
    },
    "pixart": {
        "sample_size": 8,
        "patch_size": 2,
        "in_channels": LATENT_CHANNELS,
        "out_channels": 2 * LATENT_CHANNELS,
        "num_layers": 4,
        "attention_head_dim": 8,
        "num_attention_heads": 4,
        "cross_attention_dim": 32,
        "caption_channels": 24,
        "interpolation_scale": 2,
        "use_additional_conditions": False,
    },
}
DDIM = {"clip_sample": False, "steps_offset": 1}
SCHEDULERS: dict[str, dict[str, Any]] = {
    "sd3": {"shift": 3.0},
    "flux": {"shift": 3.0, "use_dynamic_shifting": True},
    "zimage": {"shift": 3.0},
    "qwenimage": {"use_dynamic_shifting": True, "shift_terminal": 0.02, "max_shift": 0.9, "max_image_seq_len": 8192},
    "sd": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, **DDIM},
    "sdxl": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, **DDIM},
    "pixart": {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02, **DDIM},
}
MAX_SEQUENCE_LENGTH = {"sd3": 24, "flux": 24, "zimage": 96, "qwenimage": 300, "sd": 16, "sdxl": 16, "pixart": 40}
# Modules to which the default LoRA adds layers in the first 3 blocks: blocks with attention, and Z-Image's refiners.
ADAPTED_BLOCKS = {"sd3": 3, "flux": 3, "zimage": 5, "qwenimage": 3, "sd": 2, "sdxl": 3, "pixart": 3}


def tiny_scheduler(family: str):
    """A scheduler of the family's kind."""
    scheduler_class = DDIMScheduler if family in VARIANCE_PRESERVING else FlowMatchEulerDiscreteScheduler
    return scheduler_class(**SCHEDULERS[family])


def tiny_fields(family: str) -> dict[str, Any]:
    """Fields of a `DinaConfig` on a miniature, of which it uses the first 3 blocks."""
    return {
        "backbone_type": family,
        "transformer_config": dict(TRANSFORMERS[family]),
        "scheduler_config": {"_class_name": type(tiny_scheduler(family)).__name__, **SCHEDULERS[family]},
        "num_layers": 3,
        "visual_layers": [1, 3],
        "text_layers": [0] if BACKBONES[family].text_is_constant else [2],
        "num_queries": 2,
        "num_attention_heads": 4,
        "max_sequence_length": MAX_SEQUENCE_LENGTH[family],
    }


def tiny_transformer(family: str) -> torch.nn.Module:
    """The whole diffusers transformer."""
    torch.manual_seed(0)
    return randomised(BACKBONES[family].transformer_class.from_config(TRANSFORMERS[family])).eval()


def tiny_reward(family: str, **fields: Any) -> DinaRewardModel:
    """A reward model in evaluation mode."""
    torch.manual_seed(0)
    return randomised(DinaRewardModel(DinaConfig(**tiny_fields(family) | fields))).eval()


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    """The module, with random numbers in place of those that are initially 0, so that no part is without effect."""
    for parameter in module.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    return module


def tiny_inputs(family: str, lengths: tuple[int, ...] = (5, 33, 40), masked: bool = True) -> dict[str, torch.Tensor]:
    """Arguments of `DinaRewardModel.reward`, of texts of various lengths if the family has a mask and `masked`."""
    generator = torch.Generator().manual_seed(1)
    sizes, batch = DinaConfig(**tiny_fields(family)).dimensions, len(lengths)
    inputs = {
        "latents": torch.randn(batch, sizes.latent_channels, 6, 10, generator=generator),
        "prompt_embeds": torch.randn(batch, max(lengths), sizes.text_width, generator=generator),
    }
    if sizes.pooled_width is not None:
        inputs["pooled_prompt_embeds"] = torch.randn(batch, sizes.pooled_width, generator=generator)
    if BACKBONES[family].takes_mask and masked:
        inputs["prompt_embeds_mask"] = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return inputs


def one_sample(inputs: dict[str, torch.Tensor], index: int) -> dict[str, torch.Tensor]:
    """One sample of a batch of inputs, without padding."""
    sample = {name: value[index : index + 1] for name, value in inputs.items()}
    mask = sample.pop("prompt_embeds_mask", None)
    if mask is not None:
        sample["prompt_embeds"] = sample["prompt_embeds"][:, : int(mask.sum())]
    return sample


def clip_encoder(model_class=CLIPTextModelWithProjection):
    """A CLIP tokenizer of letters and its text encoder, of width 8, with pooled embeddings of width 6 or 8."""
    words = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
    tokenizer = CLIPTokenizer(vocab={word: index for index, word in enumerate(words)}, model_max_length=16)
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=8,
        intermediate_size=16,
        projection_dim=6,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=0,
        eos_token_id=1,
    )
    return tokenizer, model_class(config)


def t5_encoder():
    """A T5 tokenizer of letters and its encoder, of width 24."""
    words = ["<pad>", "</s>", "<unk>", "▁", *LETTERS]
    tokenizer = T5Tokenizer(vocab=[(word, -1.0) for word in words], extra_ids=0, model_max_length=32)
    config = T5Config(vocab_size=len(words), d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    return tokenizer, T5EncoderModel(config)


def qwen_tokenizer() -> Qwen2Tokenizer:
    """A tokenizer of bytes, with a chat template."""
    words = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(chr(code) for code in range(33, 127)), "Ġ", "Ċ"]
    tokenizer = Qwen2Tokenizer(vocab={word: index for index, word in enumerate(words)}, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": words[1:3]})
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return tokenizer


QWEN = {
    "vocab_size": 110,
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": None,
}


def qwen3_encoder() -> Qwen3Model:
    """A causal language model of width 24."""
    return Qwen3Model(Qwen3Config(**QWEN, head_dim=12))


def qwen25_vl_encoder() -> Qwen2_5_VLForConditionalGeneration:
    """A causal vision-language model of width 24."""
    text = {**QWEN, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 2, 2]}}
    vision = {"depth": 1, "hidden_size": 8, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": 24}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision))


def tiny_vae() -> AutoencoderKL:
    """An autoencoder that makes latents of 4 channels, of 1/8 of the image's sides."""
    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=4,
        scaling_factor=1.5,
        shift_factor=0.1,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def tiny_video_vae() -> AutoencoderKLQwenImage:
    """The same, as that of Qwen-Image."""
    return AutoencoderKLQwenImage(
        base_dim=4,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.0, 0.5, 2.0, 1.5],
    )


def tiny_pipeline(family: str):
    """A whole diffusers pipeline."""
    torch.manual_seed(0)
    parts: dict[str, Any] = {}
    if family == "sd3":
        parts["tokenizer"], parts["text_encoder"] = clip_encoder()
        parts["tokenizer_2"], parts["text_encoder_2"] = clip_encoder()
        parts["tokenizer_3"], parts["text_encoder_3"] = t5_encoder()
    elif family == "flux":
        parts["tokenizer"], parts["text_encoder"] = clip_encoder(CLIPTextModel)
        parts["tokenizer_2"], parts["text_encoder_2"] = t5_encoder()
    elif family == "sd":
        parts["tokenizer"], parts["text_encoder"] = clip_encoder(CLIPTextModel)
        parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    elif family == "sdxl":
        parts["tokenizer"], parts["text_encoder"] = clip_encoder(CLIPTextModel)
        parts["tokenizer_2"], parts["text_encoder_2"] = clip_encoder()
    elif family == "pixart":
        parts["tokenizer"], parts["text_encoder"] = t5_encoder()
    else:
        parts["tokenizer"] = qwen_tokenizer()
        parts["text_encoder"] = qwen3_encoder() if family == "zimage" else qwen25_vl_encoder()
    pipeline_class = {
        "sd3": StableDiffusion3Pipeline,
        "flux": FluxPipeline,
        "zimage": ZImagePipeline,
        "qwenimage": QwenImagePipeline,
        "sd": StableDiffusionPipeline,
        "sdxl": StableDiffusionXLPipeline,
        "pixart": PixArtSigmaPipeline,
    }[family]
    parts[BACKBONES[family].component] = BACKBONES[family].transformer_class.from_config(TRANSFORMERS[family])
    for module in parts.values():
        if isinstance(module, torch.nn.Module):
            module.eval()
    return pipeline_class(
        scheduler=tiny_scheduler(family),
        vae=tiny_video_vae() if family == "qwenimage" else tiny_vae(),
        **parts,
    )


def save_tiny_folder(family: str, folder) -> None:
    """Write a pipeline and a reward model on its transformer to one folder."""
    tiny_pipeline(family).save_pretrained(folder)
    fields = {
        name: value
        for name, value in tiny_fields(family).items()
        if name not in ("backbone_type", "transformer_config", "scheduler_config")
    }
    model = randomised(DinaRewardModel.from_backbone(folder, **fields, conditioning_source="."))
    model.save_pretrained(folder)
