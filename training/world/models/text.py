"""Tokenizers and text encoders of the small world, with the architectures of Stable Diffusion 3."""

from collections.abc import Sequence

import numpy as np
import torch
from diffusers import StableDiffusion3Pipeline
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from training.world.scenes import COLORS, COUNTS, RELATIONS, SHAPES, SIZES, sample_description
from training.world.seeds import Seed

MAX_LENGTH = 14
CLIP_WIDTH = 64
T5_WIDTH = 2 * CLIP_WIDTH  # the pipeline concatenates the two CLIP embeddings and pads them to this width


def build_clip_tokenizer() -> CLIPTokenizer:
    """Train a byte-pair tokenizer. Every word of the small world is one token; other text is split into pieces."""
    rng = np.random.default_rng(Seed.TOKENIZER_AND_VOTES)
    captions = [sample_description(rng).caption for _ in range(5000)]
    tokenizer = CLIPTokenizer().train_new_from_iterator(captions, vocab_size=600)
    tokenizer.model_max_length = MAX_LENGTH
    return tokenizer


def build_t5_tokenizer() -> T5Tokenizer:
    """Create a unigram tokenizer of the words of the small world; other text is split into letters."""
    plurals = [f"{shape}s" for shape in SHAPES]
    relations = {word for relation in RELATIONS for word in relation.split()}
    words = ["a", "and", *COUNTS.values(), *SIZES, *COLORS, *SHAPES, *plurals, *sorted(relations)]
    letters = [(letter, -10.0) for letter in "abcdefghijklmnopqrstuvwxyz0123456789.,-'"]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    vocab = special + [(f"▁{word}", -1.0) for word in words] + letters
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=MAX_LENGTH)


def build_clip_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    """Two causal layers; the pipeline uses the output of the first layer and the projected end-of-text state."""
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=CLIP_WIDTH,
            intermediate_size=4 * CLIP_WIDTH,
            projection_dim=CLIP_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=MAX_LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_t5_encoder(tokenizer: T5Tokenizer) -> T5EncoderModel:
    """Two bidirectional layers."""
    return T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=T5_WIDTH,
            d_kv=32,
            d_ff=2 * T5_WIDTH,
            num_layers=2,
            num_heads=4,
            relative_attention_num_buckets=16,
            relative_attention_max_distance=32,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
        )
    )


def tokenize(pipeline: StableDiffusion3Pipeline, captions: Sequence[str]) -> torch.Tensor:
    """Token ids of CLIP and of T5, [2, N, MAX_LENGTH]."""
    distinct = list(dict.fromkeys(captions))
    ids = [
        tokenizer(
            distinct, padding="max_length", max_length=MAX_LENGTH, truncation=True, return_tensors="pt"
        ).input_ids
        for tokenizer in (pipeline.tokenizer, pipeline.tokenizer_3)
    ]
    rows = dict(zip(distinct, range(len(distinct)), strict=True))
    return torch.stack(ids)[:, [rows[caption] for caption in captions]]


class TextEncoders(nn.Module):
    """The three text encoders of a pipeline, applied to the token ids of `tokenize`."""

    def __init__(self, pipeline: StableDiffusion3Pipeline) -> None:
        super().__init__()
        self.clip = nn.ModuleList([pipeline.text_encoder, pipeline.text_encoder_2])
        # T5 without its wrapper, which has two names for the embedding; a checkpoint stores a tensor only once.
        self.t5 = pipeline.text_encoder_3.encoder

    def forward(self, clip_ids: torch.Tensor, t5_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The embeddings [B, 2 * MAX_LENGTH, T5_WIDTH] and pooled embeddings [B, 2 * CLIP_WIDTH] that the pipeline's
        `encode_prompt` returns for the captions."""
        outputs = [encoder(clip_ids, output_hidden_states=True) for encoder in self.clip]
        clip = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        pooled = torch.cat([output.text_embeds for output in outputs], dim=-1)
        return torch.cat([clip, self.t5(t5_ids).last_hidden_state], dim=1), pooled
