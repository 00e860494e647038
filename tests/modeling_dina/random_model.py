"""A self-contained model folder with random weights: a stock diffusers SD3 pipeline and a reward model beside it."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from modeling_dina import DinaRewardModel

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def clip_encoder():
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
    return tokenizer, CLIPTextModelWithProjection(config)


def t5_encoder():
    words = ["<pad>", "</s>", "<unk>", "▁", *LETTERS]
    tokenizer = T5Tokenizer(vocab=[(word, -1.0) for word in words], extra_ids=0, model_max_length=32)
    config = T5Config(vocab_size=len(words), d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    return tokenizer, T5EncoderModel(config)


def build(folder: Path) -> None:
    """Writes pipeline and reward model, with weights that are the same every time."""
    torch.manual_seed(0)
    tokenizer, text_encoder = clip_encoder()
    tokenizer_2, text_encoder_2 = clip_encoder()
    tokenizer_3, text_encoder_3 = t5_encoder()
    pipeline = StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=4,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=24,
            caption_projection_dim=32,
            pooled_projection_dim=12,
            pos_embed_max_size=12,
            qk_norm="rms_norm",
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=AutoencoderKL(
            block_out_channels=(8, 8, 8, 8),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=4,
            norm_num_groups=4,
            scaling_factor=1.5,
            shift_factor=0.1,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        text_encoder_2=text_encoder_2,
        tokenizer_2=tokenizer_2,
        text_encoder_3=text_encoder_3,
        tokenizer_3=tokenizer_3,
    )
    pipeline.save_pretrained(folder)
    model = DinaRewardModel.from_backbone(
        folder,
        num_layers=3,
        visual_layers=[1, 3],
        text_layers=[2],
        num_queries=2,
        num_attention_heads=4,
        max_sequence_length=24,
        conditioning_source=".",
    )
    for parameter in model.parameters():  # FiLM begins at zero: let it, too, depend on what it reads
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
