"""What bodies of the protocol's versions must contain."""

import random
import re

import pytest
import torch
from safetensors.torch import save

from modeling_dina.serving.protocol import (
    ENSEMBLE_VERSION,
    MAX_HEADER_BYTES,
    VERSION,
    ensemble_answer,
    parse_score_request,
    score_answer,
)
from tests.load.fuzz_bodies import BREAKS, damage_body, damage_ensemble_body, ensemble_tensors, good_tensors


def test_good_body_arrives_as_it_was_sent():
    tensors = good_tensors(0, samples=3)
    request = parse_score_request(save(tensors))
    assert torch.equal(request.latents, tensors["latents"])
    for name in ("prompt_embeds", "pooled_prompt_embeds"):
        assert torch.equal(getattr(request.prompts, name), tensors[name])
    assert torch.equal(request.sigmas, tensors["u"][None])
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


@pytest.mark.parametrize(("version", "damage"), [("1", damage_body), ("2", damage_ensemble_body)])
def test_damaged_body_is_refused_or_whole(version, damage):
    generator, whole = random.Random(1), 0
    for _ in range(300):
        _, body = damage(generator)
        try:
            request = parse_score_request(body, version)
        except ValueError:
            continue
        whole += 1
        assert request.size == len(request.prompts.prompt_embeds) == len(request.seeds)
        assert request.sigmas.shape == ((1, request.size) if version == VERSION else (2,))
    assert 0 < whole < 300


@pytest.mark.parametrize(("version", "make"), [("1", good_tensors), ("2", ensemble_tensors)])
def test_latents_without_dimensions_are_refused(version, make):
    with pytest.raises(ValueError, match=r"^latents: expected \[B, C, H, W\], none of them 0, got \[\]"):
        parse_score_request(save({**make(0), "latents": torch.tensor(1.0)}), version)


def parse(tensors, **metadata):
    return parse_score_request(save(tensors, metadata or None), ENSEMBLE_VERSION)


def test_ensemble_arrives_as_it_was_sent():
    tensors = ensemble_tensors(0, samples=3)
    request = parse({**tensors, "num_draws": torch.tensor([3])}, mode="precision")
    assert torch.equal(request.sigmas, tensors["sigmas"])
    assert (request.num_draws, request.mode, request.size) == (3, "precision", 3)
    assert request.seeds == tensors["seeds"].tolist()
    assert request.prompts.prompt_embeds_mask is None
    per_sample = torch.rand(2, 3)
    assert torch.equal(parse({**tensors, "sigmas": per_sample}).sigmas, per_sample)


def test_ensemble_needs_only_latents_and_text():
    request = parse({name: ensemble_tensors(0)[name] for name in ("latents", "prompt_embeds")})
    assert (request.sigmas, request.num_draws, request.mode, request.seeds) == (None, None, None, [0])
    assert request.prompts[1:] == (None, None)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8])
def test_mask_is_bool(dtype):
    mask = torch.arange(28) < torch.tensor([[5], [28]])
    request = parse({**ensemble_tensors(0, samples=2), "prompt_embeds_mask": mask.to(dtype)})
    assert request.prompts.prompt_embeds_mask.dtype == torch.bool
    assert torch.equal(request.prompts.prompt_embeds_mask, mask)


def test_only_equal_settings_share_a_batch():
    tensors = ensemble_tensors(0)
    key = parse(tensors).batch_key
    assert parse({**ensemble_tensors(1, samples=4), "sigmas": torch.rand(2)}).batch_key == key
    others = [
        {"sigmas": torch.tensor([0.2, 0.4, 0.6])},
        {"num_draws": torch.tensor(2)},
        {"latents": tensors["latents"].repeat(1, 1, 1, 2)},
        {"prompt_embeds": tensors["prompt_embeds"].repeat(1, 2, 1)},
        {"prompt_embeds_mask": torch.ones(1, 28, dtype=torch.uint8)},
    ]
    keys = {key, parse(tensors, mode="mean").batch_key, *(parse({**tensors, **other}).batch_key for other in others)}
    assert len(keys) == 7
    without = {name: tensors[name] for name in ("latents", "prompt_embeds")}
    assert parse(without).batch_key not in keys


def test_texts_of_different_lengths_share_a_batch_if_they_have_masks():
    def key(length):
        mask = torch.ones(1, length, dtype=torch.uint8)
        return parse({**ensemble_tensors(0), "prompt_embeds": torch.ones(1, length, 8), "prompt_embeds_mask": mask})

    assert key(5).batch_key == key(9).batch_key


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"u": torch.tensor([0.5])}, "body: expected the tensors latents, prompt_embeds, pooled_prompt_embeds, "),
        ({"sigmas": torch.tensor([0.5, 1.5])}, "sigmas: expected noise levels in [0, 1], got 0.5 to 1.5"),
        ({"sigmas": torch.tensor(0.5)}, "sigmas: expected [K] or [K, B], none of them 0, got []"),
        ({"sigmas": torch.rand(2, 3)}, "sigmas: expected as many samples as latents, 1, got [2, 3]"),
        ({"sigmas": torch.rand(17)}, "sigmas: expected at most 16 noise levels, got 17"),
        ({"sigmas": torch.rand(2).half()}, "sigmas: expected float32, got float16"),
        ({"num_draws": torch.tensor(0)}, "num_draws: expected 1 to 16, got 0"),
        ({"num_draws": torch.tensor([17])}, "num_draws: expected 1 to 16, got 17"),
        ({"num_draws": torch.tensor([1, 2])}, "num_draws: expected one number, got [2]"),
        ({"num_draws": torch.tensor(2.0)}, "num_draws: expected int64, got float32"),
        ({"seeds": torch.tensor([-3])}, "seeds: expected numbers of at least 0, got -3"),
        ({"prompt_embeds_mask": torch.ones(1, 28)}, "prompt_embeds_mask: expected bool or uint8, got float32"),
        ({"prompt_embeds_mask": torch.ones(2, 28).bool()}, "prompt_embeds_mask: expected as many samples as latents"),
        ({"prompt_embeds_mask": torch.ones(1, 9).bool()}, "prompt_embeds_mask: expected [1, 28], got [1, 9]"),
        (
            {"prompt_embeds_mask": torch.full((1, 28), 2, dtype=torch.uint8)},
            "prompt_embeds_mask: expected 0 or 1, got 2",
        ),
    ],
)
def test_refusal_of_an_ensemble_names_the_tensor(change, reason):
    with pytest.raises(ValueError, match="^" + re.escape(reason)):
        parse({**ensemble_tensors(0), **change})


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({"mode": "median"}, "mode: expected one of ('features', 'mean', 'precision'), got 'median'"),
        ({"modus": "mean"}, "metadata: expected no other key than mode, got ['modus']"),
    ],
)
def test_metadata_is_checked(metadata, reason):
    with pytest.raises(ValueError, match="^" + re.escape(reason)):
        parse(ensemble_tensors(0), **metadata)
    assert parse_score_request(save(good_tensors(0), metadata)).mode == "mean", "version 1 ignores metadata"


def test_answer():
    assert score_answer([0.25, -1.0]) == {"protocol_version": "1", "raw_scores": [0.25, -1.0]}
    assert ensemble_answer({"scores": [0.25]}) == {"protocol_version": "2", "scores": [0.25]}
