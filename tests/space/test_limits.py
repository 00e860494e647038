"""What one request may ask for: all that is within the limits passes, all else is refused by name."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_dina import DinaConfig
from space.demo import limits


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=limits.MAX_LEVELS),
    st.integers(1, limits.MAX_DRAWS),
    st.sampled_from([None, "features", "mean", "precision"]),
    st.integers(0, limits.MAX_SEED),
)
def test_what_is_within_the_limits_passes_unchanged(sigmas, num_draws, mode, seed):
    expected = {"sigmas": sigmas, "num_draws": num_draws, "mode": mode, "seed": seed}
    assert limits.checked_ensemble(sigmas, num_draws, mode, seed) == expected


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
        limits.checked_ensemble(*arguments)


def test_whole_numbers_may_be_written_as_json_does():
    assert limits.checked_ensemble(None, 4.0, None, 0)["num_draws"] == 4


def test_prompts_are_refused_before_they_are_cut(judge):
    assert judge.checked_prompt("a large blue square left of a small red star")
    with pytest.raises(ValueError, match="prompt: expected at most 14 tokens, which is what the model reads, got "):
        judge.checked_prompt("a red circle and " * 5)
    with pytest.raises(ValueError, match="prompt: expected at most 1000 characters, got 1001"):
        judge.checked_prompt("x" * 1001)
    with pytest.raises(ValueError, match="prompt: expected a text"):
        judge.checked_prompt(" ")
    with pytest.raises(TypeError, match="prompt: expected a text, got NoneType"):
        judge.checked_prompt(None)


def test_a_message_stays_short():
    assert len(limits.shortened("x" * 10_000)) == 60


def test_modes_of_the_api_are_those_of_the_model():
    from typing import get_args

    from modeling_dina.configuration_dina import ENSEMBLE_MODES
    from space.demo.endpoints import Mode

    assert get_args(Mode) == ENSEMBLE_MODES
    assert DinaConfig().ensemble_mode in ENSEMBLE_MODES
