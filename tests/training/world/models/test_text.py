"""Tokenizers and text encoders of the small world."""

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from modeling_dina.options import EMBEDDED_MODEL
from training.world.models.text import (
    CLIP_WIDTH,
    MAX_LENGTH,
    T5_WIDTH,
    TextEncoders,
    build_clip_encoder,
    build_clip_tokenizer,
    build_t5_encoder,
    build_t5_tokenizer,
    tokenize,
)
from training.world.scenes import sample_description


@pytest.mark.parametrize(("build", "extra"), [(build_clip_tokenizer, 2), (build_t5_tokenizer, 1)])
def test_every_word_is_one_token_and_every_caption_fits(build, extra):
    tokenizer = build()
    rng = np.random.default_rng(1)
    for _ in range(300):
        caption = sample_description(rng).caption
        words = caption.replace(",", " ,").split()
        ids = tokenizer(caption).input_ids
        assert len(ids) == len(words) + extra <= MAX_LENGTH
        assert tokenizer.unk_token_id not in ids[1:-1]


def test_unknown_words_are_spelt():
    for tokenizer in (build_clip_tokenizer(), build_t5_tokenizer()):
        known, unknown = (tokenizer(f"a {word} circle").input_ids for word in ("red", "teal"))
        assert len(unknown) > len(known)


def test_encoders_have_the_widths_the_pipeline_lays_side_by_side():
    clip_tokenizer, t5_tokenizer = build_clip_tokenizer(), build_t5_tokenizer()
    clip = build_clip_encoder(clip_tokenizer)(**clip_tokenizer("a red circle", return_tensors="pt"))
    t5 = build_t5_encoder(t5_tokenizer)(t5_tokenizer("a red circle", return_tensors="pt").input_ids)
    assert clip.text_embeds.shape == (1, CLIP_WIDTH)
    assert t5.last_hidden_state.shape[-1] == T5_WIDTH == 2 * CLIP_WIDTH


@torch.no_grad()
def test_encoders_return_what_the_pipeline_does():
    pipeline = StableDiffusion3Pipeline.from_pretrained(EMBEDDED_MODEL, vae=None, transformer=None)
    captions = ["a red circle", "", "two large green stars", "a red circle"]
    ids = tokenize(pipeline, captions)
    assert ids.shape == (2, 4, MAX_LENGTH)
    embeds, pooled = TextEncoders(pipeline)(*ids)
    expected, _, expected_pooled, _ = pipeline.encode_prompt(
        captions, None, None, do_classifier_free_guidance=False, max_sequence_length=MAX_LENGTH
    )
    torch.testing.assert_close(embeds, expected)
    torch.testing.assert_close(pooled, expected_pooled)
