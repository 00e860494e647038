"""What an engine makes of batches: the model's rewards, whatever they are batched with, and faults that stay alone."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from modeling_dina.serving.comparison import CompareRequest
from modeling_dina.serving.engine import ENSEMBLE_FIELDS, ModelFaultError, RewardEngine
from modeling_dina.serving.protocol import ENSEMBLE_VERSION, parse_score_request
from tests.families import FAMILIES, one_sample, tiny_inputs, tiny_reward
from tests.load.fuzz_bodies import ensemble_tensors, good_tensors

# Batches of other sizes are multiplied in another order: float32 rounding, on scores of spread 1.
ROUNDING = 2e-6


def job(seed, samples=1):
    return parse_score_request(save(good_tensors(seed, samples)))


def rewards(model, request):
    """Each sample alone, through the model's own interface."""
    with torch.no_grad():
        return [
            model.reward(
                request.latents[[i]],
                *request.prompts.take([i]),
                sigmas=[float(request.sigmas[0, i])],
                num_draws=1,
                seed=request.seeds[i],
            ).scores.item()
            for i in range(request.size)
        ]


def test_single_sample_gets_exactly_the_models_reward(engine):
    for seed in range(5):
        assert engine.answer([job(seed)]) == [rewards(engine.model, job(seed))]


@settings(max_examples=6, deadline=None)
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4), seed=st.integers(0, 100))
def test_scores_do_not_depend_on_the_batch(engine, sizes, seed):
    jobs = [job(seed + index, samples) for index, samples in enumerate(sizes)]
    random.Random(seed).shuffle(jobs)
    for request, scores in zip(jobs, engine.answer(jobs), strict=True):
        # Among thousands of samples, one was 2.4e-6 apart.
        assert scores == pytest.approx(rewards(engine.model, request), abs=5e-6)


def test_level_and_seed_are_each_samples_own(engine):
    one = good_tensors(0)
    many = {name: tensor.repeat(4, *[1] * (tensor.ndim - 1)) for name, tensor in one.items()}
    many["u"] = torch.tensor([0.2, 0.2, 0.6, 0.2])
    many["seeds"] = torch.tensor([1, 2, 1, 1])
    (scores,) = engine.answer([parse_score_request(save(many))])
    assert scores[0] == pytest.approx(scores[3], abs=ROUNDING)
    assert abs(scores[0] - scores[1]) > 1e-3
    assert abs(scores[0] - scores[2]) > 1e-3


def test_dtypes_in_one_batch_change_nothing(engine):
    half = {name: t.half() if t.ndim > 1 else t for name, t in good_tensors(0).items()}
    jobs = [parse_score_request(save(half)), job(1)]
    (alone,), (together, _) = engine.answer(jobs[:1]), engine.answer(jobs)
    assert together == pytest.approx(alone, abs=ROUNDING)


def test_embeddings_are_not_rounded_to_the_dtype_of_another_request(engine):
    seen = []
    handle = engine.model.backbone.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[2]))
    half = {name: t.half() if t.ndim > 1 else t for name, t in good_tensors(0).items()}
    try:
        engine.answer([parse_score_request(save(half)), job(1)])
    finally:
        handle.remove()
    assert torch.equal(seen[0][0], half["prompt_embeds"][0].float())
    assert torch.equal(seen[0][1], good_tensors(1)["prompt_embeds"][0])


def test_more_samples_than_a_batch_are_scored_in_parts(engine, hooked):
    sizes = []
    hooked(lambda latents, sigma: sizes.append(len(latents)))
    assert len(engine.answer([job(0, samples=20)])[0]) == 20
    assert sizes == [8, 8, 4]


def test_fault_of_one_is_no_fault_of_the_others(engine, hooked):
    def fail(latents, sigma):
        if torch.isclose(sigma, torch.tensor(0.25)).any():
            raise RuntimeError("a device's trouble")

    hooked(fail)
    bad = parse_score_request(save({**good_tensors(1), "u": torch.tensor([0.25])}))
    first, second, third = engine.answer([job(0), bad, job(2)])
    assert isinstance(second, ModelFaultError)
    assert [first, third] == [rewards(engine.model, job(0)), rewards(engine.model, job(2))]


def test_batch_too_large_for_the_device_is_answered_one_by_one(engine, hooked):
    def run_out(latents, sigma):
        if len(latents) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")

    hooked(run_out)
    jobs = [job(seed) for seed in range(3)]
    assert engine.answer(jobs) == [rewards(engine.model, request) for request in jobs]


def test_score_that_is_no_number_is_a_fault(engine):
    def overflow(module, arguments, raw):
        raw[1] = torch.nan

    handle = engine.model.head.register_forward_hook(overflow)
    try:
        first, second, third = engine.answer([job(seed) for seed in range(3)])
    finally:
        handle.remove()
    assert isinstance(second, ModelFaultError)
    assert all(torch.tensor([first, third]).isfinite())


def test_shapes_that_the_model_cannot_take_are_refused(engine):
    engine.check(job(0))
    for change, reason in [
        ({"latents": torch.ones(1, 4, 8, 8)}, r"latents: expected \[B, 16, H, W\], got \[1, 4, 8, 8\]"),
        (
            {"latents": torch.ones(1, 16, 8, 9)},
            "latents: expected a height and width that are multiples of 2 up to 16",
        ),
        ({"prompt_embeds": torch.ones(1, 28, 64)}, r"prompt_embeds: expected \[1, L, 128\], got \[1, 28, 64\]"),
    ]:
        with pytest.raises(ValueError, match=reason):
            engine.check(parse_score_request(save({**good_tensors(0), **change})))


def test_bad_image_is_an_error_of_the_request(engine):
    (answer,) = engine.answer([CompareRequest("a red circle", [b"GIF89a", b"nothing"])])
    assert isinstance(answer, ValueError)
    assert str(answer).startswith("images[0]: ")


def test_latents_only_spares_the_pipeline(engine):
    bare = RewardEngine(engine.model, None, max_batch_size=8)
    with pytest.raises(ValueError, match="latents only"):
        bare.check(CompareRequest("a red circle", [b"", b""]))


@pytest.mark.parametrize("mode", [None, "mean", "precision"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_ensembles_depend_on_neither_batch_nor_padding(family, mode):
    """The second request has shorter padding; the third one no padding, in half precision."""
    engine = RewardEngine(tiny_reward(family), None, max_batch_size=2)
    metadata = None if mode is None else {"mode": mode}
    settings = {"num_draws": torch.tensor([2])}
    requests = [
        {**tiny_inputs(family), "sigmas": torch.tensor([0.2, 0.7]), "seeds": torch.tensor([3, 0, 8])},
        {**tiny_inputs(family, lengths=(40, 9)), "sigmas": torch.tensor([[0.1, 0.5], [0.9, 0.4]])},
        {**tiny_inputs(family, lengths=(40,)), "sigmas": torch.tensor([0.3, 0.3])},
    ]
    requests[2]["prompt_embeds"] = requests[2]["prompt_embeds"].half()
    jobs = [parse_score_request(save({**each, **settings}, metadata), ENSEMBLE_VERSION) for each in requests]
    for job in jobs:
        engine.check(job)
    assert len({job.batch_key for job in jobs}) == 1
    for request, answer in zip(requests, engine.answer(jobs[::-1])[::-1], strict=True):
        sigmas, seeds = request.pop("sigmas"), request.pop("seeds", torch.zeros(3, dtype=torch.int64))
        for index in range(len(request["latents"])):
            alone = engine.model.reward(
                **one_sample(request, index),
                sigmas=sigmas if sigmas.ndim == 1 else sigmas[:, index],
                num_draws=2,
                mode=mode,
                seed=int(seeds[index]),
            )
            for name in ENSEMBLE_FIELDS:
                got, expected = torch.tensor(answer[name])[..., index], alone[name]
                torch.testing.assert_close(got, expected.reshape(got.shape), rtol=0, atol=1e-5)


@torch.no_grad()
def test_omitted_settings_are_those_of_the_model(engine):
    tensors = {name: ensemble_tensors(4)[name] for name in ("latents", "prompt_embeds", "pooled_prompt_embeds")}
    (answer,) = engine.answer([parse_score_request(save(tensors), ENSEMBLE_VERSION)])
    expected, config = engine.model.reward(**tensors), engine.model.config
    assert answer["scores"] == pytest.approx(expected.scores.tolist(), abs=ROUNDING)
    assert torch.tensor(answer["sigmas"])[:, 0].tolist() == expected.sigmas.tolist()
    assert torch.tensor(answer["samples"]).shape == (1, config.default_num_draws, 1)


def test_both_versions_share_a_batch(engine, hooked):
    sizes = []
    hooked(lambda latents, sigma: sizes.append(len(latents)))
    tensors = good_tensors(1)
    level = tensors.pop("u")
    ensemble = {**tensors, "sigmas": level, "num_draws": torch.tensor(1)}
    jobs = [job(0), parse_score_request(save(ensemble, {"mode": "mean"}), ENSEMBLE_VERSION)]
    assert jobs[0].batch_key == jobs[1].batch_key
    first, second = engine.answer(jobs)
    assert sizes == [2]
    assert first == pytest.approx(engine.answer([job(0)])[0], abs=ROUNDING)
    assert second["scores"] == pytest.approx(engine.answer([job(1)])[0], abs=ROUNDING)


@pytest.mark.parametrize("family", FAMILIES)
def test_masks_and_pooled_embeddings_are_those_of_the_family(family):
    engine, inputs = RewardEngine(tiny_reward(family), None, max_batch_size=2), tiny_inputs(family)
    sizes, accepts_mask = engine.model.config.dimensions, "prompt_embeds_mask" in inputs
    info = engine.info()
    assert (info["family"], info["text_width"], info["accepts_mask"]) == (family, sizes.text_width, accepts_mask)
    assert info["pooled_width"] == sizes.pooled_width
    assert info["protocol_versions"] == (["2"] if sizes.pooled_width is None else ["1", "2"])
    changed = dict(inputs)
    if changed.pop("pooled_prompt_embeds", None) is None:
        changed["pooled_prompt_embeds"] = torch.ones(3, 8)
    with pytest.raises(ValueError, match="pooled_prompt_embeds: expected "):
        engine.check(parse_score_request(save(changed), ENSEMBLE_VERSION))
    changed = {**inputs, "prompt_embeds_mask": torch.arange(40).expand(3, 40) != 2}
    with pytest.raises(ValueError, match="prompt_embeds_mask: expected "):
        engine.check(parse_score_request(save(changed), ENSEMBLE_VERSION))
