"""Requests within the limits pass unchanged, others are refused by name, and more draws extend the earlier ones."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from app import build_page, model_note
from judge import GENERATING_FAMILY, MAX_DRAWS, MAX_LEVELS, MAX_SEED, Generator, Judge, checked_ensemble, shortened
from modeling_dina import DinaScorer
from tests.families import FAMILIES, tiny_pipeline, tiny_reward


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=MAX_LEVELS),
    st.integers(1, MAX_DRAWS),
    st.sampled_from([None, "features", "mean", "precision"]),
    st.integers(0, MAX_SEED),
)
def test_what_is_within_the_limits_passes_unchanged(sigmas, num_draws, mode, seed):
    expected = {"sigmas": sigmas, "num_draws": num_draws, "mode": mode, "seed": seed}
    assert checked_ensemble(sigmas, num_draws, mode, seed) == expected


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (([], 1, None, 0), "noise levels"),
        (([0.1] * 11, 1, None, 0), "noise levels"),
        (("0.1", 1, None, 0), "noise levels"),
        ((0.1, 1, None, 0), "noise levels"),
        (([1.01], 1, None, 0), "noise levels"),
        (([math.nan], 1, None, 0), "noise levels"),
        ((["0.1"], 1, None, 0), "noise levels"),
        (([True], 1, None, 0), "noise levels"),
        ((None, 0, None, 0), "draws"),
        ((None, 33, None, 0), "draws"),
        ((None, 1.5, None, 0), "draws"),
        ((None, math.inf, None, 0), "draws"),
        ((None, "4", None, 0), "draws"),
        ((None, 1, "median", 0), "mode"),
        ((None, 1, ["mean"], 0), "mode"),
        ((None, 1, None, -1), "seed"),
        ((None, 1, None, 2**31), "seed"),
        ((None, 1, None, None), "seed"),
    ],
)
def test_what_is_not_is_refused_by_name(arguments, name):
    with pytest.raises(ValueError, match=f"^{name}: expected .*, got "):
        checked_ensemble(*arguments)


def test_whole_numbers_may_be_written_as_json_does():
    assert checked_ensemble(None, 4.0, None, 0)["num_draws"] == 4


def test_prompts_are_refused_before_they_are_cut(judge):
    assert judge.checked_prompt("a large blue square left of a small red star")
    with pytest.raises(ValueError, match=r"^prompt: expected .* 14 tokens.*, got \d\d"):
        judge.checked_prompt("a red circle and " * 5)
    with pytest.raises(ValueError, match=r"^prompt: expected .* 1000 characters, got 1001$"):
        judge.checked_prompt("x" * 1001)
    with pytest.raises(ValueError, match=r"^prompt: expected a text"):
        judge.checked_prompt(" ")
    with pytest.raises(TypeError, match=r"^prompt: expected a text, got NoneType"):
        judge.checked_prompt(None)


def test_a_message_stays_short():
    assert len(shortened("x" * 10_000)) == 60


def test_settling_adds_draws_to_those_before(judge, pair):
    prompt, paths = pair
    steps = list(judge.settle(prompt, [Image.open(path) for path in paths], 8))
    assert [step.samples.shape[1] for step in steps] == [1, 2, 4, 8]
    for earlier, later in itertools.pairwise(steps):
        torch.testing.assert_close(later.samples[:, : earlier.samples.shape[1]], earlier.samples)
    expected = judge.scorer.compare(prompt=prompt, images=paths, num_draws=8)
    assert steps[-1].win_probability == pytest.approx(expected.win_probability)


@pytest.mark.parametrize("most_draws", [1, 65, None, "8"])
def test_settling_is_bounded(judge, pair, most_draws):
    with pytest.raises(ValueError, match=r"^draws: expected .* 2 to 64, got "):
        next(judge.settle(pair[0], [], most_draws))


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != GENERATING_FAMILY])
def test_other_families_have_a_page_without_generation(family):
    judge = Judge(DinaScorer(tiny_reward(family, conditioning_source="."), tiny_pipeline(family)))
    images = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    assert 0 < judge.compare("abc", images).win_probability < 1
    with pytest.raises(
        ValueError, match=rf"^prompt: expected .* {judge.config.max_sequence_length} tokens.*, got \d+"
    ):
        judge.checked_prompt("a " * 400)
    assert Generator.beside(judge) is None
    page = str(build_page(judge, None, model_note("folder", judge)).config)
    assert "compare-button" in page
    assert "generate-button" not in page
    assert f"Model: folder. Family: {family} (" in page
    assert f"only Stable Diffusion 3, not {family}" in page
