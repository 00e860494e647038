"""Calibration against closed forms, and `dina calibrate` on a copy of the embedded model."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.special import ndtr, ndtri_exp
from typer.testing import CliRunner

from model_card.world_benchmark import read_world
from modeling_dina import DinaRewardModel, DinaScorer
from modeling_dina.cli.app import app
from modeling_dina.evaluation.benchmarks.preference_set import Pairs
from modeling_dina.evaluation.calibration import Calibration, fit_calibration, recalibrated, split_by_cluster
from modeling_dina.evaluation.rewards import Rewards
from modeling_dina.options import EMBEDDED_MODEL

RAW = Calibration(temperature=1.0, score_mean=0.0, score_std=1.0)


def make_pairs(a, b, target):
    target = np.array(target, float)
    return Pairs(np.arange(len(a)), np.array(a), np.array(b), target, target, np.full(len(a), ""))


def random_rewards(seed=0, items=400):
    rng = np.random.default_rng(seed)
    samples = rng.normal(size=items) + 0.3 * rng.normal(size=(2, 3, items)) + 5.0
    return Rewards(samples, np.array([0.6, 0.4]), np.array([0.1, 0.3]))


def test_temperature_in_closed_form():
    """Rewards that differ by 1 with votes of Phi(1/2) for the better: Phi(1 / (T sqrt(2 v))) must be that share."""
    rewards = Rewards(np.array([[[1.0, 0.0]]]), np.ones(1), np.array([0.5]))
    pairs = make_pairs([0, 1], [1, 0], [ndtr(0.5), 1 - ndtr(0.5)])
    fitted = fit_calibration(rewards, pairs, RAW)
    assert fitted.temperature == pytest.approx(2.0, abs=1e-4)
    assert (fitted.score_mean, fitted.score_std) == (0.5, 0.5)
    # What the model was calibrated by before makes no difference to what it is calibrated to.
    before = Calibration(temperature=3.0, score_mean=-2.0, score_std=0.25)
    again = fit_calibration(recalibrated(rewards, RAW, before), pairs, before)
    assert vars(again) == pytest.approx(vars(fitted), abs=1e-4)


def test_temperature_of_simulated_votes_is_found():
    rewards = random_rewards()
    rng = np.random.default_rng(1)
    a, b = rng.integers(400, size=(2, 20_000))
    hot = recalibrated(rewards, RAW, replace(RAW, temperature=1.7))
    chance = np.exp(hot.log_probabilities(make_pairs(a, b, np.zeros(len(a))))[0])
    fitted = fit_calibration(rewards, make_pairs(a, b, rng.random(len(a)) < chance), RAW)
    assert fitted.temperature == pytest.approx(1.7, rel=0.05)


def test_probabilities_change_through_the_temperature_alone():
    rewards, pairs = random_rewards(), make_pairs([0, 1, 2], [3, 4, 5], [1, 1, 0])
    unit = recalibrated(rewards, RAW, replace(RAW, score_mean=5.0, score_std=0.2))
    np.testing.assert_allclose(unit.scores, (rewards.scores - 5.0) / 0.2)
    np.testing.assert_allclose(unit.log_probabilities(pairs), rewards.log_probabilities(pairs))
    one = Rewards(rewards.samples[:1, :1], np.ones(1), rewards.variance[:1])
    cold = recalibrated(one, RAW, replace(RAW, temperature=0.5))
    np.testing.assert_allclose(cold.scores, one.scores)
    z, doubled = (ndtri_exp(used.log_probabilities(pairs)[0]) for used in (one, cold))
    np.testing.assert_allclose(doubled, 2 * z)


def test_scores_are_standardised():
    rewards = random_rewards()
    rewards.samples[..., 7] = np.nan  # an image that could not be scored
    rng = np.random.default_rng(2)
    a, b = rng.integers(300, size=(2, 2000))
    fitted = fit_calibration(rewards, make_pairs(a, b, rng.random(2000) < 0.5 + 0.3 * np.sign(b - a)), RAW)
    rewarded = np.setdiff1d(np.unique([a, b]), [7])  # of the pairs alone, not of the other hundred
    scores = recalibrated(rewards, RAW, fitted).scores[rewarded]
    assert scores.mean() == pytest.approx(0, abs=1e-12)
    assert scores.std() == pytest.approx(1)


@pytest.mark.parametrize(("target", "message"), [([1, 0], "all agree"), ([0, 1], "none agree")])
def test_preferences_that_do_not_determine_the_temperature(target, message):
    rewards = Rewards(np.array([[[1.0, 0.0]]]), np.ones(1), np.array([0.5]))
    with pytest.raises(ValueError, match=message):
        fit_calibration(rewards, make_pairs([0, 1], [1, 0], target), RAW)
    with pytest.raises(ValueError, match=r"data: expected .* got 2 images"):
        fit_calibration(replace(rewards, samples=np.ones((1, 1, 2))), make_pairs([0, 1], [1, 0], target), RAW)


def test_halves_share_no_prompt():
    pairs = replace(make_pairs(range(60), range(60), np.ones(60)), cluster=np.arange(60) // 4)
    first, second = split_by_cluster(pairs, seed=0)
    assert len(first) + len(second) == 60
    assert not set(first.cluster) & set(second.cluster)
    assert abs(len(first) - 30) <= 4


# The command


def calibrate(*arguments):
    benchmark = [] if "--benchmark" in arguments else ["--benchmark", "model_card.world_benchmark:WORLD"]
    return CliRunner().invoke(app, ["calibrate", *benchmark, *map(str, arguments)])


def contents(folder):
    files = [path for path in Path(folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.slow
def test_calibrated_copy_and_in_place(tmp_path):
    source, copy = tmp_path / "source", tmp_path / "copy"
    shutil.copytree(EMBEDDED_MODEL, source)
    config = json.loads((source / "config.json").read_text())
    config |= {"temperature": 4.0, "default_num_draws": 1}  # far too unsure
    (source / "config.json").write_text(json.dumps(config))
    before = contents(source)
    options = ("--limit", 40, "--batch-size", 80, "--seed", 3)
    result = calibrate("--model", source, "--out", copy, *options, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["pairs_fitted"] == report["pairs_held_out"] == 120
    assert report["temperature"] < 2
    assert report["after"]["log_likelihood"] > report["before"]["log_likelihood"] + 0.05
    assert report["after"]["calibration_error"] < report["before"]["calibration_error"]

    assert contents(source) == before
    after = contents(copy)
    assert {path for path in before | after if before.get(path) != after.get(path)} == {"config.json"}
    found = {name: report[name] for name in vars(RAW)}
    assert json.loads(after["config.json"]) == config | found

    items = read_world(1).items[:2]
    pair = {"prompt": items[0].prompt, "images": [item.open() for item in items]}
    old, new = DinaScorer.from_pretrained(source), DinaScorer.from_pretrained(copy)
    plain, calibrated = old.compare(**pair), new.compare(**pair)
    standardised = (plain.scores - found["score_mean"]) / found["score_std"]
    assert calibrated.scores.tolist() == pytest.approx(standardised.tolist(), abs=1e-5)
    assert abs(calibrated.win_probability - 0.5) > abs(plain.win_probability - 0.5) + 0.01
    new.model.config.temperature = 4.0
    assert new.compare(**pair).win_probability == pytest.approx(plain.win_probability, abs=1e-5)

    # Calibrating what is calibrated changes nothing, here in place.
    text = calibrate("--model", copy, *options)
    assert text.exit_code == 0, text.output
    assert "after, on 120 held-out pairs: log likelihood -0." in text.stdout
    again = DinaRewardModel.from_pretrained(copy).config
    assert {name: getattr(again, name) for name in found} == pytest.approx(found, rel=1e-3, abs=1e-3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "source"]


def test_calibrate_refusals(tmp_path):
    shutil.copytree(EMBEDDED_MODEL, tmp_path / "model")
    before = contents(EMBEDDED_MODEL)
    for arguments, message in (
        (["--model", EMBEDDED_MODEL], "out: expected a folder for a copy"),
        (["--model", tmp_path], "model: expected a model folder"),
        (["--model", tmp_path / "model", "--out", tmp_path], "out: expected a new folder"),
        (["--model", tmp_path / "model", "--out", tmp_path / "no" / "where"], "out: expected a new folder"),
        (["--model", tmp_path / "model", "--benchmark", "hpdv4"], "benchmark: expected one of imagereward, hpdv2"),
        (["--model", tmp_path / "model", "--benchmark", "hpdv2"], "data: expected a folder or a Hub id"),
    ):
        result = calibrate(*arguments)
        assert result.exit_code == 2, result.output
        assert message in " ".join(result.stderr.split())
    assert contents(tmp_path / "model") == contents(EMBEDDED_MODEL) == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
