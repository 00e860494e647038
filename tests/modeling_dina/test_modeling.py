"""The reward model: what its two entry points promise, in every precision and place it can run."""

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from modeling_dina import DinaRewardModel
from modeling_dina.modeling_dina import EnsembleFeatures
from modeling_dina.noising_dina import shared_noise

MODES = ("features", "mean", "precision")


def swap(inputs, **changes):
    return {**inputs, **changes}


def test_one_level_is_the_forward_pass_at_that_state(tiny_model, tiny_inputs):
    output = tiny_model.reward(**tiny_inputs, sigmas=[0.4], seed=3)
    sigma = output.sigmas[0]
    noise = shared_noise((4, 8, 6), 1, seed=3)[0]
    noisy_latents = (1 - sigma) * tiny_inputs["latents"] + sigma * noise
    conditioning = (tiny_inputs["prompt_embeds"], tiny_inputs["pooled_prompt_embeds"])
    state = tiny_model(noisy_latents, sigma, *conditioning)
    torch.testing.assert_close(output.scores, state.scores)
    torch.testing.assert_close(output.variance.expand(5), state.variance)
    for same in (sigma.item(), sigma.expand(5)):
        torch.testing.assert_close(tiny_model(noisy_latents, same, *conditioning).scores, state.scores)
    assert torch.equal(tiny_model(noisy_latents, sigma, *conditioning, return_dict=False)[0], state.scores)


@torch.no_grad()
def test_shapes_and_levels(tiny_model, tiny_inputs):
    joined = tiny_model.reward(**tiny_inputs, num_draws=2)
    assert joined.samples.shape == (1, 2, 5)
    assert joined.variance.shape == (1,)
    apart = tiny_model.reward(**tiny_inputs, num_draws=2, mode="mean")
    assert apart.samples.shape == (3, 2, 5)
    torch.testing.assert_close(apart.variance, 2 * apart.sigmas**2 + 0.05)
    torch.testing.assert_close(joined.variance[0], apart.variance.mean())
    # the schedule, shifted by 3, has no level at 0.2: its nearest is 3 s / (1 + 2 s) at s = 77/1000
    assert apart.sigmas.tolist() == pytest.approx([0.231 / 1.154, 0.5, 0.7], abs=5e-4)
    assert apart.sigmas[0].item() == pytest.approx(0.231 / 1.154)


@torch.no_grad()
def test_how_levels_are_combined(tiny_model, tiny_inputs):
    sigmas = [0.1, 0.5, 0.9]
    levels = torch.cat([tiny_model.reward(**tiny_inputs, sigmas=[s], num_draws=2).samples for s in sigmas])
    mean = tiny_model.reward(**tiny_inputs, sigmas=sigmas, num_draws=2, mode="mean")
    torch.testing.assert_close(mean.samples, levels)
    torch.testing.assert_close(mean.scores, levels.mean(dim=(0, 1)))
    weighted = tiny_model.reward(**tiny_inputs, sigmas=sigmas, num_draws=2, mode="precision")
    weights = 1 / mean.variance / (1 / mean.variance).sum()
    torch.testing.assert_close(weighted.scores, (weights[:, None] * levels.mean(dim=1)).sum(dim=0))
    repeated = tiny_model.reward(**tiny_inputs, sigmas=[0.5, 0.5])
    torch.testing.assert_close(repeated.scores, tiny_model.reward(**tiny_inputs, sigmas=[0.5]).scores)


@pytest.mark.parametrize("mode", MODES)
@torch.no_grad()
def test_scores_do_not_depend_on_the_batch(tiny_model, tiny_inputs, mode):
    together = tiny_model.reward(**tiny_inputs, num_draws=2, mode=mode).scores
    order = [3, 0, 4, 1, 2]
    shuffled = tiny_model.reward(**{k: v[order] for k, v in tiny_inputs.items()}, num_draws=2, mode=mode).scores
    torch.testing.assert_close(shuffled, together[order], rtol=0, atol=1e-5)
    for index in range(5):
        alone = {name: value[index : index + 1] for name, value in tiny_inputs.items()}
        score = tiny_model.reward(**alone, num_draws=2, mode=mode).scores[0]
        assert score.item() == pytest.approx(together[index].item(), abs=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("mode", MODES)
def test_features_are_computed_once_and_combined_in_every_way(tiny_model, tiny_inputs, mode):
    """The two halves of `reward`, one backbone pass a level and draw, give what each reward gives by itself."""
    options = {"sigmas": [0.2, 0.5, 0.7], "num_draws": 2, "seed": 4}
    passes = []
    hook = tiny_model.backbone.register_forward_hook(lambda module, inputs, output: passes.append(len(inputs[0])))
    features = tiny_model.features(**tiny_inputs, **options)
    features = EnsembleFeatures(features.sigmas, list(features.draws))
    whole = tiny_model.combine(features, mode, with_levels=True)
    fewer = tiny_model.combine(EnsembleFeatures(features.sigmas[:2], [draw[:2] for draw in features.draws]), mode)
    hook.remove()
    assert passes == [5] * 6

    expected = tiny_model.reward(**tiny_inputs, **options, mode=mode)
    torch.testing.assert_close(whole.scores, expected.scores, rtol=0, atol=1e-6)
    torch.testing.assert_close(whole.samples, expected.samples, rtol=0, atol=1e-6)
    torch.testing.assert_close(whole.weights.sum(), torch.tensor(1.0))
    assert (expected.level_samples is None) == (mode == "features")
    levels = tiny_model.reward(**tiny_inputs, **options, mode="mean")
    torch.testing.assert_close(whole.level_samples, levels.samples, rtol=0, atol=1e-6)
    torch.testing.assert_close(whole.level_variance, levels.variance)
    first_two = tiny_model.reward(**tiny_inputs, **options | {"sigmas": [0.2, 0.5]}, mode=mode)
    torch.testing.assert_close(fewer.scores, first_two.scores, rtol=0, atol=1e-6)


def test_an_empty_batch_is_refused_by_name(tiny_model, tiny_inputs):
    empty = {name: values[:0] for name, values in tiny_inputs.items()}
    with pytest.raises(ValueError, match=r"latents: expected at least one sample, got \[0, 4, 8, 6\]"):
        tiny_model.reward(**empty)
    noisy_latents = empty.pop("latents")
    with pytest.raises(ValueError, match=r"noisy_latents: expected at least one sample, got \[0, 4, 8, 6\]"):
        tiny_model(noisy_latents, 0.5, **empty)


@pytest.mark.parametrize("mode", MODES)
def test_each_sample_may_have_levels_of_its_own(tiny_model, tiny_inputs, mode):
    sigmas = torch.tensor([[0.1, 0.2, 0.3, 0.4, 0.5], [0.9, 0.8, 0.7, 0.6, 0.5]])
    whole = tiny_model.reward(**tiny_inputs, sigmas=sigmas, num_draws=2, mode=mode)
    for index in range(5):
        one = {name: values[index : index + 1] for name, values in tiny_inputs.items()}
        alone = tiny_model.reward(**one, sigmas=sigmas[:, index], num_draws=2, mode=mode)
        torch.testing.assert_close(whole.scores[index], alone.scores[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(whole.variance[:, index], alone.variance)
    with pytest.raises(ValueError, match=r"sigmas: expected \[K, 5\], levels of each sample, got \[2, 4\]"):
        tiny_model.reward(**tiny_inputs, sigmas=sigmas[:, :4])


def test_where_noise_comes_from(tiny_model, tiny_inputs):
    seeded = tiny_model.reward(**tiny_inputs, num_draws=3, seed=9).samples
    assert torch.equal(seeded, tiny_model.reward(**tiny_inputs, num_draws=3, seed=9).samples)
    assert not torch.allclose(seeded, tiny_model.reward(**tiny_inputs, num_draws=3, seed=8).samples)
    torch.testing.assert_close(tiny_model.reward(**tiny_inputs, num_draws=1, seed=9).samples, seeded[:, :1])

    given = tiny_model.reward(**tiny_inputs, noise=shared_noise((4, 8, 6), 3, seed=9)).samples
    torch.testing.assert_close(given, seeded)
    own_seeds = tiny_model.reward(**tiny_inputs, num_draws=3, seed=[9, 1, 9, 9, 9]).samples
    same = [0, 2, 3, 4]
    torch.testing.assert_close(own_seeds[..., same], seeded[..., same])
    assert not torch.allclose(own_seeds[..., 1], seeded[..., 1])
    one_draw = torch.randn(5, 4, 8, 6)
    torch.testing.assert_close(
        tiny_model.reward(**tiny_inputs, noise=one_draw).scores,
        tiny_model.reward(**tiny_inputs, noise=one_draw.unsqueeze(0)).scores,
    )


@torch.no_grad()
def test_calibration_changes_the_unit_and_not_the_preference(tiny_model, tiny_inputs):
    raw = tiny_model.reward(**tiny_inputs)
    tiny_model.config.score_mean, tiny_model.config.score_std = 0.3, 2.0
    calibrated = tiny_model.reward(**tiny_inputs)
    torch.testing.assert_close(calibrated.scores, (raw.scores - 0.3) / 2)
    torch.testing.assert_close(calibrated.samples, (raw.samples - 0.3) / 2)

    def deviations(output):
        return (output.scores[0] - output.scores[1]) / (2 * output.variance).sqrt()

    torch.testing.assert_close(deviations(calibrated), deviations(raw))
    tiny_model.config.temperature = 3.0
    torch.testing.assert_close(deviations(tiny_model.reward(**tiny_inputs)), deviations(raw) / 3)


@pytest.mark.parametrize("mode", MODES)
def test_latent_gradient_is_the_slope(tiny_model, tiny_inputs, mode):
    model = tiny_model.double()
    inputs = {name: value.double() for name, value in tiny_inputs.items()}
    latents = inputs["latents"].requires_grad_()
    score = model.reward(**inputs, mode=mode).scores.sum()
    (gradient,) = torch.autograd.grad(score, latents)
    direction = torch.randn(latents.shape, dtype=torch.float64)
    step = 1e-2 / direction.norm()  # diffusers' query and key norms are float32 whatever the model is
    with torch.no_grad():
        ahead, behind = (
            model.reward(**swap(inputs, latents=latents + sign * step * direction), mode=mode).scores.sum()
            for sign in (1, -1)
        )
    assert ((ahead - behind) / (2 * step)).item() == pytest.approx((gradient * direction).sum().item(), rel=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigmas": [0.5, 1.5]}, r"sigmas: expected noise levels in \[0, 1\], got \[0.5, 1.5\]"),
        ({"sigmas": [-0.1]}, r"sigmas: expected noise levels in \[0, 1\]"),
        ({"sigmas": [math.nan]}, r"sigmas: expected noise levels in \[0, 1\], got \[nan\]"),
        ({"sigmas": []}, r"sigmas: expected a list of noise levels, got \[\]"),
        ({"sigmas": 0.5}, "sigmas: expected a list of noise levels, got 0.5"),
        ({"num_draws": 0}, "num_draws: expected a whole number of at least 1, got 0"),
        ({"mode": "median"}, "mode: expected one of .*, got 'median'"),
        ({"seed": [1, 2]}, r"seed: expected a whole number of at least 0, or 5 of them, got \[1, 2\]"),
        ({"seed": -1}, "seed: expected a whole number of at least 0, or 5 of them, got -1"),
        ({"noise": torch.zeros(5, 4, 8, 4)}, r"noise: expected \[1, 5, 4, 8, 6\], got \[1, 5, 4, 8, 4\]"),
        ({"noise": torch.zeros(2, 1, 4, 8, 6), "num_draws": 3}, r"noise: expected \[3, 5, 4, 8, 6\], got \[2, 1"),
        ({"noise": torch.full((1, 4, 8, 6), math.inf)}, "noise: expected finite numbers, got 192 NaN or infinite"),
        ({"latents": torch.full((5, 4, 8, 6), math.nan)}, "latents: expected finite numbers, got 960 NaN or infinite"),
        ({"latents": torch.zeros(5, 3, 8, 6)}, r"latents: expected \[B, 4, H, W\], got \[5, 3, 8, 6\]"),
        ({"prompt_embeds": torch.full((5, 7, 12), math.nan)}, "prompt_embeds: expected finite numbers"),
        ({"pooled_prompt_embeds": None}, r"pooled_prompt_embeds: expected \[5, 10\], got None"),
    ],
)
def test_reward_refuses_bad_input(tiny_model, tiny_inputs, options, message):
    with pytest.raises(ValueError, match=message):
        tiny_model.reward(**{**tiny_inputs, **options})


@pytest.mark.parametrize(
    ("noisy_latents", "sigma", "message"),
    [
        (torch.zeros(5, 4, 8, 6), 1.1, r"sigma: expected noise levels in \[0, 1\], got 1.1"),
        (torch.zeros(5, 4, 8, 6), torch.zeros(4), r"sigma: expected one number or \[5\], got \[4\]"),
        (torch.full((5, 4, 8, 6), math.nan), 0.5, "noisy_latents: expected finite numbers"),
        (torch.zeros(5, 2, 8, 6), 0.5, r"noisy_latents: expected \[B, 4, H, W\]"),
    ],
)
def test_forward_refuses_bad_input(tiny_model, tiny_inputs, noisy_latents, sigma, message):
    with pytest.raises(ValueError, match=message):
        tiny_model(noisy_latents, sigma, tiny_inputs["prompt_embeds"], tiny_inputs["pooled_prompt_embeds"])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
@torch.no_grad()
def test_half_precision_keeps_the_head_and_the_score_in_float32(tiny_model, tiny_inputs, tmp_path, dtype, tolerance):
    tiny_model.save_pretrained(tmp_path)
    half = DinaRewardModel.from_pretrained(tmp_path, dtype=dtype)
    assert half.backbone.context_embedder.weight.dtype == dtype
    assert {parameter.dtype for parameter in half.head.parameters()} == {torch.float32}
    scores = half.reward(**tiny_inputs).scores
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, tiny_model.reward(**tiny_inputs).scores, rtol=0, atol=tolerance)
    half.save_pretrained(tmp_path / "half")
    again = DinaRewardModel.from_pretrained(tmp_path / "half")
    assert again.dtype == dtype
    assert all(torch.equal(weight, half.state_dict()[name]) for name, weight in again.state_dict().items())
    torch.testing.assert_close(again.reward(**tiny_inputs).scores, scores, rtol=0, atol=tolerance)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("device_map", ["auto", {"": "cpu"}, {"backbone": "disk", "head": "cpu"}])
@torch.no_grad()
def test_device_map(tiny_model, tiny_inputs, tmp_path, device_map):
    tiny_model.save_pretrained(tmp_path)
    placed = DinaRewardModel.from_pretrained(tmp_path, device_map=device_map, offload_folder=tmp_path / "offload")
    torch.testing.assert_close(placed.reward(**tiny_inputs).scores, tiny_model.reward(**tiny_inputs).scores)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable.*:FutureWarning")
def test_gradient_checkpointing_changes_no_gradient(tiny_model, tiny_inputs):
    def gradients():
        tiny_model.zero_grad()
        latents = tiny_inputs["latents"].clone().requires_grad_()
        tiny_model.reward(**swap(tiny_inputs, latents=latents)).scores.sum().backward()
        return [latents.grad, *(p.grad for p in tiny_model.parameters() if p.grad is not None)]

    plain = gradients()
    tiny_model.gradient_checkpointing_enable()
    calls = []
    checkpoint = tiny_model.backbone._gradient_checkpointing_func
    tiny_model.backbone._gradient_checkpointing_func = lambda *args: calls.append(1) or checkpoint(*args)
    for ours, theirs in zip(gradients(), plain, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert len(calls) == 3 * 3  # blocks x levels


def test_every_weight_that_can_matter_is_trained(tiny_model, tiny_inputs):
    tiny_model.reward(**tiny_inputs).scores.sum().backward()
    unused = {name for name, parameter in tiny_model.named_parameters() if parameter.grad is None}
    # The text that leaves the deepest text tap (2) is attended to in block 3, but nothing reads what block 3 makes of
    # it.
    assert all(name.startswith("backbone.transformer_blocks.2.") for name in unused)
    assert any("ff_context" in name for name in unused)


@torch.no_grad()
@pytest.mark.slow
def test_the_backbone_compiles_once(tiny_model, tiny_inputs):
    expected = tiny_model.reward(**tiny_inputs).scores
    tiny_model.backbone.compile(fullgraph=True, backend="aot_eager")  # the graph without the code generator
    with torch._dynamo.config.patch(error_on_recompile=True):
        compiled = tiny_model.reward(**tiny_inputs, num_draws=2).samples[0, 0]
    torch.testing.assert_close(compiled, expected)


def flops(function, *args, **kwargs):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        function(*args, **kwargs)
    return counter.get_total_flops()


def test_cost(tiny_model, tiny_inputs):
    """One level costs the backbone and the head, three levels three times that, however they are combined. The full
    size is counted in tests/model_card/test_measure_cost.py."""
    tiny_model.requires_grad_(False)
    state = (tiny_inputs["latents"], torch.full((5,), 0.5), *list(tiny_inputs.values())[1:])
    backbone = flops(tiny_model.backbone, *state)
    features = tiny_model.backbone(*state)
    one = flops(tiny_model.reward, **tiny_inputs, sigmas=[0.5])
    assert one <= 1.001 * (backbone + flops(tiny_model.head, [features]))
    for mode in MODES:
        assert flops(tiny_model.reward, **tiny_inputs, mode=mode) <= 3.1 * one


def test_conditioning_location(tiny_model, tmp_path):
    config = tiny_model.config
    with pytest.raises(ValueError, match="conditioning_source: expected a folder or Hub id, got None"):
        tiny_model.conditioning_location()
    config.conditioning_source = "someone/a-pipeline"
    assert tiny_model.conditioning_location()[:2] == ("someone/a-pipeline", None)
    config.base_model, config.base_revision = "someone/a-pipeline", "abc"
    assert tiny_model.conditioning_location()[:2] == ("someone/a-pipeline", "abc")

    config.conditioning_source = "."
    tiny_model.save_pretrained(tmp_path)
    loaded = DinaRewardModel.from_pretrained(tmp_path)
    assert loaded.conditioning_location()[:2] == (str(tmp_path), None)
    (tmp_path / "encoders").mkdir()
    loaded.config.conditioning_source = "encoders"
    assert loaded.conditioning_location()[:2] == (str(tmp_path / "encoders"), None)

    loaded.config.conditioning_source = "."
    loaded.name_or_path, loaded.weights_revision = "someone/a-reward", "f00d"
    assert loaded.conditioning_location()[:2] == ("someone/a-reward", "f00d")
