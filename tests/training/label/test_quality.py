"""Agreement, sides and noise of annotators, against values worked out by hand and in closed form."""

import json
import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import ndtr
from typer.testing import CliRunner

from training.label import quality
from training.label.pairs import record_pairs
from training.label.quality import fit_noise, quality_report, side_bias
from training.label.votes import VoteFile


def report_of(votes, pairs):
    return quality_report(votes, {pair.key: pair for pair in pairs})


def test_agreement_within_and_between(write_votes, make_pairs):
    """p0 and p1 have one prompt, p2 and p3 another."""
    votes = write_votes(
        *("ann p0 left a", "ann p1 tie a", "ann p2 left a", "ann p3 skip a"),
        # Opposite (0), a tie and a preference (0.5), and, with the sides swapped, the same (1).
        *("ann p0 right a", "ann p1 left b", "ann p2 right b"),
        # 1, 0.5, 0; p3 was skipped by Ann.
        *("bob p0 left a", "bob p1 right a", "bob p2 right a", "bob p3 both_bad b"),
    )
    report = report_of(votes, make_pairs(4))
    ann, bob = report["annotators"]["ann"], report["annotators"]["bob"]
    assert (report["votes"], report["pairs"]) == (11, 4)
    assert (ann["votes"], ann["skipped"], ann["ties"], bob["ties"]) == (7, 1, 1, 1)
    assert ann["within"]["mean"] == pytest.approx((0 + 0.5 + 1) / 3)
    assert ann["within"]["count"] == 3
    assert bob["within"] is None
    assert report["between"]["mean"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert ann["others"] == bob["others"] == report["between"]
    # The bootstrap draws two prompts: the first's mean is 0.75, the second's 0.
    assert report["between"]["interval"] == [0.0, 0.75]
    assert ann["seconds"] == 5.0
    json.dumps(report, allow_nan=False)


def test_agreement_with_any_of_several_annotators(write_votes, make_pairs):
    votes = write_votes("ann p0 left a", "bob p0 left a", "eve p0 right a")
    report = report_of(votes, make_pairs(1))
    assert report["between"]["mean"] == pytest.approx(1 / 3)
    others = {name: each["others"]["mean"] for name, each in report["annotators"].items()}
    assert others == {"ann": 0.5, "bob": 0.5, "eve": 0.0}
    assert report["between"]["interval"] is None  # one prompt


@pytest.mark.parametrize(
    ("left", "right", "flagged"),
    # The probability of 11 equal sides of 11 is 2 / 2^11 < 0.001, of 10 it is 2 / 2^10 > 0.001.
    [(11, 0, True), (0, 11, True), (10, 0, False), (30, 20, False), (0, 0, False)],
)
def test_an_annotator_who_clicks_one_side_is_flagged(write_votes, left, right, flagged):
    lines = [f"ann p{i} left {'ab'[i % 2]}" for i in range(left)]
    lines += [f"ann p{i} right {'ab'[i % 2]}" for i in range(right)]
    found = side_bias(write_votes(*lines, *["ann p0 tie a"] * 20))
    assert found["one_side"] is flagged
    assert found["left"] == (left / (left + right) if left + right else None)


def test_noise_by_hand():
    """Two votes on a pair agree with the probability 1/2 + asin(1 / (1 + s^2)) / pi. Of three repeated pairs, two
    agree: 2/3 is reached at s = 1, the mode of the prior as well."""
    preferences = {"p0": {"ann": [1.0, 1.0]}, "p1": {"ann": [0.0, 0.0]}, "p2": {"ann": [1.0, 0.0]}}
    noise, low, high = fit_noise(preferences, ["ann"])["ann"]
    assert noise == pytest.approx(1, abs=1e-4)
    assert low * high == pytest.approx(1, abs=1e-3)
    assert low < 0.5


@pytest.mark.parametrize(("agree", "differ"), [(20, 2), (12, 10), (5, 0)])
def test_noise_in_closed_form(agree, differ):
    preferences = {f"p{i}": {"ann": [1.0, 1.0 if i < agree else 0.0]} for i in range(agree + differ)}

    def loss(log_noise):
        share = 0.5 + math.asin(1 / (1 + math.exp(2 * log_noise))) / math.pi
        return 0.5 * log_noise**2 - agree * math.log(share) - differ * math.log(1 - share)

    expected = minimize_scalar(loss, bounds=(-4, 4), method="bounded", options={"xatol": 1e-8}).x
    noise, low, high = fit_noise(preferences, ["ann"])["ann"]
    assert math.log(noise) == pytest.approx(expected, abs=0.01)
    step = 1e-3
    curvature = (loss(expected + step) - 2 * loss(expected) + loss(expected - step)) / step**2
    assert math.log(high / low) == pytest.approx(2 * 1.96 / math.sqrt(curvature), rel=0.05)


def test_noise_of_simulated_annotators():
    rng = np.random.default_rng(0)
    names, true = ["ann", "bob", "eve"], np.array([0.3, 1.0, 3.0])
    difference = rng.normal(0, math.sqrt(2), 600)
    wins = rng.random((600, 3)) < ndtr(difference[:, None] / (math.sqrt(2) * true))
    preferences = {
        f"p{i}": {name: [float(win)] for name, win in zip(names, row, strict=True)} for i, row in enumerate(wins)
    }
    found = fit_noise(preferences, names)
    for name, noise in zip(names, true, strict=True):
        assert found[name][1] < noise < found[name][2]
    assert found["ann"][0] < found["bob"][0] < found["bob"][2] < found["eve"][1]


def test_noise_without_information_is_that_of_the_prior(write_votes, make_pairs):
    report = report_of(write_votes("ann p0 left a", "ann p1 right a"), make_pairs(2))
    ann = report["annotators"]["ann"]
    assert ann["noise"] == pytest.approx(1, abs=1e-5)
    assert ann["noise_interval"] == pytest.approx([math.exp(-1.96), math.exp(1.96)], rel=1e-3)


def test_no_votes(make_pairs):
    assert report_of([], make_pairs(2)) == {"votes": 0, "pairs": 0, "between": None, "annotators": {}}


def test_the_command(tmp_path, write_votes, make_pairs):
    file = VoteFile(tmp_path)
    for index in range(12):
        file.vote(write_votes(*[f"ann p{i} left {'ab'[i % 2]}" for i in range(12)])[index])
    file.vote(write_votes("bob p0 tie a")[0])
    record_pairs(tmp_path, make_pairs(12))
    ran = CliRunner().invoke(quality.app, [str(tmp_path)], catch_exceptions=False)
    assert ran.exit_code == 0
    assert "13 votes on 12 pairs" in ran.stdout
    assert "ann: chose the left side in 100% of preferences" in ran.stdout
    assert "bob: chose" not in ran.stdout
    ran = CliRunner().invoke(quality.app, [str(tmp_path), "--json"])
    assert json.loads(ran.stdout)["annotators"]["ann"]["one_side"] is True
