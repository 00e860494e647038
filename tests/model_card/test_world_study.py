"""The method study: its statistics by hand, its models, its report, and a run of it in miniature."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from scipy.special import ndtr
from typer import Typer
from typer.testing import CliRunner

from model_card.studies.method import measurement, pixel, summary, variants
from model_card.studies.method.__main__ import main
from model_card.studies.method.measurement import LEVELS, SWEEP, LevelRewards, group_pairs
from model_card.studies.method.report import write_report
from model_card.studies.method.variants import VARIANTS
from modeling_dina import DinaRewardModel
from modeling_dina.backbone_base_dina import Features
from modeling_dina.evaluation.benchmarks.preference_set import Pairs
from modeling_dina.evaluation.rewards import Rewards
from modeling_dina.latents_dina import decode_latents
from modeling_dina.options import EMBEDDED_MODEL
from modeling_dina.pipelines_dina import EncodedPrompts
from tests.model_card.reports import assert_report_is_of_results
from training.world.annotators import IMPRESSION_NOISE
from training.world.groups import Groups
from training.world.latents import encode, rendered_groups, to_pixels
from training.world.models.scores import encode_captions


def separate_pairs(target):
    """Pairs that share no image: 0 and 1, 2 and 3, …"""
    places = np.arange(len(target))
    return Pairs(places // 6, 2 * places, 2 * places + 1, target, target, np.full(len(target), ""))


def rewards_of(differences, variance=0.05):
    """One level whose pairs differ by `differences` [draws, N] where images are numbered as in `separate_pairs`."""
    samples = np.zeros((1, len(differences), 2 * differences.shape[1]))
    samples[0, :, ::2] = differences
    return Rewards(samples, np.ones(1), np.array([variance]))


# ---- statistics ----


def test_uncertainty_of_one_seed_is_that_of_groups():
    found = summary.estimate(np.array([[0.0, 0.0, 1.0, 1.0]]))
    assert found["mean"] == 0.5
    assert found["standard_error"] == pytest.approx(math.sqrt(1 / 3 / 4))
    assert found["interval"] == pytest.approx([0.5 - 3.182446 * 0.288675, 0.5 + 3.182446 * 0.288675], abs=1e-5)


def test_uncertainty_of_seeds_that_differ_everywhere_is_theirs():
    found = summary.estimate(np.array([[0.0, 0.0], [1.0, 1.0]]))
    assert found["standard_error"] == pytest.approx(0.5)
    assert found["interval"][1] == pytest.approx(0.5 + 12.7062 * 0.5, abs=1e-3)
    assert found["by_seed"] == [0.0, 1.0]


def test_estimate_of_one_and_the_same_number_is_certain():
    assert summary.estimate(np.zeros((3, 5)))["interval"] == [0.0, 0.0]


@pytest.mark.parametrize(
    ("interval", "expected"),
    [([0.1, 0.2], "held"), ([-0.2, -0.1], "reversed"), ([-0.1, 0.1], "undecided"), ([0.0, 0.0], "undecided")],
)
def test_verdict(interval, expected):
    assert summary.verdict({"interval": interval}) == expected


def test_average_of_nested_numbers_leaves_nothing_out_but_none():
    trees = [{"a": [1, {"b": None}], "c": None}, {"a": [3, {"b": 4}], "c": None}]
    assert summary.average(trees) == {"a": [2.0, {"b": 4.0}], "c": None}


def test_bins():
    found = measurement.bins(np.array([0.31, 0.39, 1.0]), np.array([0.2, 0.4, 0.9]))
    assert len(found) == 10
    assert found[3] == pytest.approx({"pairs": 2, "by": 0.35, "mean": 0.3, "low": 0.22, "high": 0.38})
    assert found[9] == pytest.approx({"pairs": 1, "by": 1.0, "mean": 0.9, "low": 0.9, "high": 0.9})
    assert found[0] == {"pairs": 0, "by": None, "mean": None, "low": None, "high": None}


def test_measure_by_hand():
    target = np.array([0.8, 0.8, 0.8, 0.2, 0.2, 0.2])
    found = measurement.measure(rewards_of(np.array([[1.0, -1.0, 0.0, 1.0, -1.0, 0.0]])), separate_pairs(target))
    assert found["accuracy"] == pytest.approx([(0.8 + 0.2 + 0.5 + 0.2 + 0.8 + 0.5) / 6])
    p = ndtr(1 / math.sqrt(0.1))
    likelihood = [0.8 * math.log(p) + 0.2 * math.log(1 - p), 0.2 * math.log(p) + 0.8 * math.log(1 - p), math.log(0.5)]
    assert found["log_likelihood"] == pytest.approx([np.mean(likelihood)], abs=1e-5)


def test_best_reachable_of_equal_utilities_is_a_coin():
    world = Groups(["a", "b"], np.array([[0, 0, 0, 0], [0, 0, 0, 100]]))
    best = measurement.best_reachable(group_pairs(world))
    assert best["accuracy"] == pytest.approx([0.5, 0.75])
    assert best["log_likelihood"] == pytest.approx([-math.log(2), -math.log(2) / 2], abs=1e-6)


def test_pairs_are_all_of_a_group():
    pairs = group_pairs(Groups(["a", "b"], np.array([[0, 1, 2, 3], [3, 2, 1, 0]])))
    assert [(a, b) for a, b in zip(pairs.a, pairs.b, strict=True)][6:] == [
        (4, 5), (4, 6), (4, 7), (5, 6), (5, 7), (6, 7),
    ]  # fmt: skip
    assert (pairs.target[:6] < 0.5).all()
    assert (pairs.target[6:] > 0.5).all()


def test_errors_by_disagreement():
    # Two draws lie further and further apart around a difference of 1; only where they are furthest apart it is wrong.
    apart = np.linspace(0, 3, 30)
    target = np.where(np.arange(30) < 24, 1.0, 0.25)
    found = measurement.quintiles(rewards_of(np.stack([1 + apart, 1 - apart])), separate_pairs(target))
    assert [fifth["error"] for fifth in found["quintiles"]] == pytest.approx([0, 0, 0, 0, 0.75])
    assert [fifth["avoidable"] for fifth in found["quintiles"]] == pytest.approx([0, 0, 0, 0, 0.5])
    disagreements = [fifth["disagreement"] for fifth in found["quintiles"]]
    assert disagreements == sorted(disagreements)
    assert np.mean(found["rise"]) == pytest.approx(0.75)
    assert np.mean(found["avoidable_rise"]) == pytest.approx(0.5)


def test_votes_tell_the_variance_that_they_were_cast_with():
    differences = np.random.default_rng(0).normal(size=(1, 600))
    target = ndtr(differences[0] / math.sqrt(2 * 0.3))
    assert measurement.votes_variance(rewards_of(differences, 1.0), separate_pairs(target)) == pytest.approx(
        0.3, rel=1e-3
    )


def test_votes_against_rewards_that_say_nothing_tell_no_variance():
    assert measurement.votes_variance(rewards_of(np.zeros((1, 6))), separate_pairs(np.full(6, 0.7))) is None


def test_variance_of_draws():
    differences = np.concatenate([np.full((1, 6), 1.0), np.full((1, 6), 3.0)])
    samples = np.repeat(rewards_of(differences).samples, len(LEVELS), axis=0)
    rewards = LevelRewards(samples, samples, np.full(len(LEVELS), 0.05))
    found = measurement.level_variances(rewards, separate_pairs(np.full(6, 0.9)))
    assert [level["sigma"] for level in found] == list(LEVELS)
    assert found[0]["draws"] == pytest.approx(1.0)  # 2 of every other image, 0 of those between
    assert found[0]["draws_of_differences"] == pytest.approx(1.0)


# ---- from measurements to the report ----


def invented(name, seed, world):
    """What would be measured of rewards that are the utility with noise, more of it at high levels."""
    rng = np.random.default_rng((seed, len(name)))
    images = world.utilities.size

    def read(groups, sigmas, draws, reads):
        blur = np.array([0.6 + sigma for sigma in sigmas])[:, None, None]
        own = rng.normal(size=images)
        levels = 0.4 * (world.utilities.ravel() + blur * (0.3 * own + rng.normal(size=(len(sigmas), draws, images))))
        variance = 2 * np.square(sigmas) + 0.05 if VARIANTS[name].thurstone else None
        return LevelRewards(levels, levels.cumsum(axis=0) / np.arange(1, len(sigmas) + 1)[:, None, None], variance)

    sets = dict.fromkeys(summary.SETS, world)
    found = measurement.measure_variant(VARIANTS[name].evaluations, read, sets, (0.0,) if name == "pixel" else SWEEP)
    deep = read(world, LEVELS, 16, "noisy latents")
    return found | ({"ensemble": measurement.analyze(deep, group_pairs(world))} if name == "dina" else {})


def summarize(names):
    world = Groups([""] * 60, np.random.default_rng(0).normal(3, 1.2, (60, 4)))
    measured = {name: [invented(name, seed, world) for seed in range(2)] for name in names}
    cost = {variant.cost: {} for variant in VARIANTS.values()}
    for variant in VARIANTS.values():
        cost[variant.cost] |= {name: {"flops": 2e6, "seconds": 0.004} for name in variant.evaluations}
    best = dict.fromkeys(summary.SETS, measurement.best_reachable(group_pairs(world)))
    return summary.summarize(measured, best, cost)


@pytest.fixture(scope="module")
def results():
    return summarize(VARIANTS)


def test_summary_keeps_the_order_of_what_was_measured(results):
    accuracy = {
        (each["variant"], each["evaluation"]): each["seen"]["accuracy"]["mean"] for each in results["variants"]
    }
    assert accuracy["dina", "mean"] > accuracy["dina", "one level"]
    assert all(value < results["best"]["seen"]["accuracy"]["mean"] for value in accuracy.values())
    levels = [point["accuracy"] for point in results["levels"]["dina"]]
    assert levels[0] > levels[-1]
    claim = next(claim for claim in results["claims"] if claim["better"] == ("dina", "mean"))
    expected = accuracy["dina", "mean"] - accuracy["dina", "one level"]
    assert claim["seen"]["accuracy"]["mean"] == pytest.approx(expected)
    assert claim["verdict"] == "held"


def test_some_variants_are_summarized_alone():
    found = summarize(["clean", "frozen"])
    assert {each["variant"] for each in found["variants"]} == {"clean", "frozen"}
    assert found["claims"] == []
    assert "scaling" not in found
    with_dina = summarize(["dina", "frozen"])
    assert {claim["worse"][0] for claim in with_dina["claims"]} == {"dina", "frozen"}


def test_report_has_every_variant_and_claim(results, tmp_path):
    json.dumps(results, allow_nan=False)
    write_report(results, tmp_path)
    page = (tmp_path / "tables.md").read_text()
    assert all(page.count(f"| {each.title} |") == len(each.evaluations) + 1 for each in VARIANTS.values())
    assert all(f"| {claim.text} |" in page for claim in summary.CLAIMS)
    figures = {path.name for path in tmp_path.iterdir()} - {"tables.md"}
    assert len(figures) == 3
    for name in figures:
        assert f"]({name})" in page
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_the_committed_tables_are_of_the_committed_results(tmp_path):
    """If this fails after a change of the results or of the tables: the study's command with --report."""
    assert_report_is_of_results("world_study", write_report, tmp_path)


# ---- models ----


def test_mean_of_the_calibrated_variance():
    arguments, _ = variants.read_arguments(EMBEDDED_MODEL, VARIANTS["constant_mean"])
    # sigma = u^exponent, so that the mean of its square is 1 / (2 exponent + 1).
    expected = 2 / (2 * arguments.noise_levels.parameters["exponent"] + 1) + 0.05
    assert arguments.reward_fields["variance_slope"] == 0
    assert arguments.reward_fields["variance_floor"] == pytest.approx(expected, rel=1e-6)


def test_constant_variance_of_the_same_floor():
    arguments, _ = variants.read_arguments(EMBEDDED_MODEL, VARIANTS["constant_floor"])
    assert arguments.reward_fields["variance_floor"] == 0.05
    assert arguments.reward_fields["head_width"] == 96  # the rest is the small world's


def test_dot_product_by_hand():
    head = variants.DotProductHead(SimpleNamespace(head_width=2, visual_layers=[1]), token_width=2)
    for projection in (head.project_visual, head.project_text):
        projection.weight.data = torch.eye(2)
    visual = torch.tensor([[[2.0, 0.0], [4.0, 0.0]], [[0.0, 1.0], [2.0, 1.0]]])
    features = Features([visual], [], torch.tensor([[5.0, 0.0], [0.0, 7.0]]))
    assert head([features]).tolist() == pytest.approx([1 / 0.07, math.sqrt(0.5) / 0.07], rel=1e-5)


@pytest.fixture(scope="module")
def embedded():
    pipeline = StableDiffusion3Pipeline.from_pretrained(EMBEDDED_MODEL, transformer=None, dtype=torch.float32)
    pipeline.vae.requires_grad_(False)
    return DinaRewardModel.from_pretrained(EMBEDDED_MODEL).eval(), pipeline


@pytest.fixture(scope="module")
def world(embedded, tmp_path_factory):
    return rendered_groups(tmp_path_factory.mktemp("set"), embedded[1].vae, groups=3, seed=51, held_out=True)


@torch.no_grad()
def test_rewards_are_those_of_the_model(embedded, world):
    model, pipeline = embedded

    def encode_prompts(prompts):
        return EncodedPrompts(*(each.float() for each in encode_captions(pipeline, prompts)))

    read = measurement.latent_reader(model, encode_prompts, thurstone=True)(world, (0.1, 0.4), 2, "noisy latents")
    conditioning = encode_prompts(world.captions).take([row for row in range(len(world)) for _ in range(4)])
    for mode in ("features", "mean", "precision"):
        expected = model.reward(
            world.latents.flatten(0, 1).float(), *conditioning, sigmas=[0.1, 0.4], num_draws=2, mode=mode
        )
        assert read.combine(mode, 2, 2).scores == pytest.approx(expected.scores.numpy(), abs=1e-4)
        assert read.combine(mode, 2, 2).variance == pytest.approx(expected.variance.numpy())


def test_pictures_are_those_that_were_encoded(embedded, world):
    again = encode(embedded[1].vae, np.concatenate(world.pictures))
    assert torch.equal(again, world.latents.flatten(0, 1))


def test_pixel_rewards_are_those_of_the_pixel_model(embedded, world):
    pipeline = embedded[1]
    model = pixel.untrained_pixels(pipeline)
    read = pixel.pixel_reader(model, pipeline)
    embeds = encode_captions(pipeline, world.captions)[0].float().repeat_interleave(4, dim=0)
    with torch.no_grad():
        pictures = to_pixels(np.concatenate(world.pictures))
        decoded = decode_latents(pipeline.vae, world.latents.flatten(0, 1).float()).clamp(-1, 1)
        expected = {"pictures": model(pictures, embeds), "latents": model(decoded, embeds)}
    for of, scores in expected.items():
        found = read(world, (0.0,), 1, of).combine("mean", 1, 1)
        assert found.scores == pytest.approx(scores.numpy(), abs=1e-5)
        assert found.variance.tolist() == [IMPRESSION_NOISE**2]


# ---- the whole ----

app = Typer(pretty_exceptions_enable=False)
app.command()(main)


def test_unknown_variant(tmp_path):
    ran = CliRunner().invoke(app, ["--out", str(tmp_path / "new"), "--variant", "pixels"])
    assert ran.exit_code == 2
    assert "variant: expected one of dina, clean" in " ".join(ran.stderr.split())
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_study_in_miniature_goes_on_where_it_stopped(tmp_path, monkeypatch):
    names = ("dina", "clean", "pixel")
    monkeypatch.setitem(VARIANTS, "dina", replace(VARIANTS["dina"], evaluations=("one level", "mean")))
    command = ["--out", str(tmp_path), "--scale", "0", "--seeds", "1"]
    chosen = [word for name in names for word in ("--variant", name)]
    first = CliRunner().invoke(app, [*command, *chosen])
    assert first.exit_code == 0, first.output
    results = json.loads((tmp_path / "results.json").read_text())
    assert (results["kind"], results["settings"]["seeds"]) == ("method_study", 1)
    assert results["command"].endswith("--scale 0.0 --seeds 1 --variant dina --variant clean --variant pixel")
    assert {(each["variant"], each["evaluation"]) for each in results["variants"]} == {
        (name, evaluation) for name in names for evaluation in VARIANTS[name].evaluations
    }
    cost = {(each["variant"], each["evaluation"]): each["flops"] for each in results["variants"]}
    assert cost["dina", "mean"] == pytest.approx(12 * cost["dina", "one level"], rel=0.2)
    assert cost["pixel", "decoded"] > cost["pixel", "pictures"]
    assert not list((tmp_path / "training").iterdir())

    (tmp_path / "variants" / "clean-0.json").unlink()
    complete = {path: path.stat().st_mtime_ns for path in (tmp_path / "variants").iterdir()}
    second = CliRunner().invoke(app, [*command, *chosen])
    assert second.exit_code == 0, second.output
    assert {path: path.stat().st_mtime_ns for path in complete} == complete
    again = json.loads((tmp_path / "results.json").read_text())
    # A variant does not depend on what was done before it, to the rounding of kernels.
    clean = [
        [each["seen"]["log_likelihood"]["mean"] for each in found["variants"] if each["variant"] == "clean"]
        for found in (results, again)
    ]
    assert clean[1] == pytest.approx(clean[0], abs=1e-3)

    other = CliRunner().invoke(app, [*command[:-4], "--scale", "0.1"])
    assert other.exit_code == 2
    assert "size" in other.output
