"""What a body of the published protocol must hold."""

import random
import re

import pytest
import torch
from safetensors.torch import save

from modeling_dina.serving.protocol import MAX_HEADER_BYTES, parse_score_request, score_answer
from tests.load.fuzz_bodies import BREAKS, damage_body, good_tensors


def test_good_body_arrives_as_it_was_sent():
    tensors = good_tensors(0, samples=3)
    request = parse_score_request(save(tensors))
    for name in ("latents", "prompt_embeds", "pooled_prompt_embeds"):
        assert torch.equal(getattr(request, name), tensors[name])
    assert torch.equal(request.sigma, tensors["u"])
    assert request.seeds == tensors["seeds"].tolist()
    assert request.size == 3


def test_seeds_are_zero_where_none_are_sent():
    tensors = good_tensors(0, samples=3)
    del tensors["seeds"]
    assert parse_score_request(save(tensors)).seeds == [0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_taken(dtype):
    tensors = {name: t.to(dtype) if t.ndim > 1 else t for name, t in good_tensors(0).items()}
    assert parse_score_request(save(tensors)).latents.dtype == dtype


def test_only_equal_shapes_share_a_batch():
    tensors = good_tensors(0)
    key = parse_score_request(save(tensors)).batch_key
    longer = {**tensors, "prompt_embeds": tensors["prompt_embeds"].repeat(1, 2, 1)}
    wider = {**tensors, "latents": tensors["latents"].repeat(1, 1, 1, 2)}
    assert parse_score_request(save(good_tensors(1, samples=4))).batch_key == key
    assert len({key, *(parse_score_request(save(other)).batch_key for other in (longer, wider))}) == 3


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"u": torch.tensor([1.5])}, "u: expected noise levels in [0, 1], got 1.5 to 1.5"),
        ({"u": torch.tensor([0.5, 0.5])}, "u: expected as many samples as latents, 1, got [2]"),
        ({"u": torch.tensor([0.5]).half()}, "u: expected float32, got float16"),
        ({"seeds": torch.tensor([-3])}, "seeds: expected numbers of at least 0, got -3"),
        ({"pooled_prompt_embeds": torch.ones(1, 1, 128)}, "pooled_prompt_embeds: expected [B, P], none of them 0"),
        ({"latents": torch.full((1, 16, 8, 8), 1e9)}, "latents: expected finite numbers of at most 65504, got 1024"),
        ({"prompt_embeds": torch.ones(1, 1025, 128)}, "prompt_embeds: expected at most 1024 tokens, got 1025"),
        ({"sigma": torch.tensor([0.5])}, "body: expected the tensors latents"),
    ],
)
def test_refusal_names_the_tensor(change, reason):
    with pytest.raises(ValueError, match="^" + re.escape(reason)):
        parse_score_request(save({**good_tensors(0), **change}))


def test_header_of_many_tensors_is_not_read():
    body = save({str(index): torch.zeros(0) for index in range(10_000)})
    assert int.from_bytes(body[:8], "little") > MAX_HEADER_BYTES
    with pytest.raises(ValueError, match="a safetensors header of at most 16384 bytes, got"):
        parse_score_request(body)


@pytest.mark.parametrize("fault", BREAKS)
def test_broken_body_is_refused(fault):
    generator = random.Random(1)
    for seed in range(5):
        body = BREAKS[fault](generator, good_tensors(seed, samples=2))
        with pytest.raises(ValueError, match=r"^\w+: expected "):
            parse_score_request(body)


def test_damaged_body_is_refused_or_whole():
    generator, whole = random.Random(1), 0
    for _ in range(300):
        _, body = damage_body(generator)
        try:
            request = parse_score_request(body)
        except ValueError:
            continue
        whole += 1
        assert request.size == len(request.sigma) == len(request.seeds)
    assert 0 < whole < 300


def test_answer():
    assert score_answer([0.25, -1.0]) == {"protocol_version": "1", "raw_scores": [0.25, -1.0]}
