"""No two sets of the small world are drawn with one generator."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.align.prompts import Prompts
from training.world.groups import draw_description
from training.world.seeds import Seed

NUMBERS = st.lists(st.integers(0, 2**64), max_size=3)


def state(*key: int) -> dict:
    return np.random.default_rng(key).bit_generator.state


def test_numpy_pads_seeds_with_zeros():
    """Which is why two sets whose seeds begin with one number are not apart."""
    assert state(40, 2) == state(40, 2, 0)
    assert state(2026) == state(2026, 0)


@given(st.sampled_from(Seed), st.sampled_from(Seed), NUMBERS, NUMBERS)
def test_no_two_sets_share_a_generator(first, second, numbers, others):
    """Whatever numbers follow. Each seed is one 32-bit word of the key, so keys of two seeds differ in the first."""
    assert 0 <= first < 2**32
    assert first is second or state(first, *numbers) != state(second, *others)


@pytest.mark.parametrize("seed", range(8))
def test_no_prompt_of_alignment_is_the_caption_of_a_benchmark_group(seed):
    """Runs train on prompts by seed and number; prompt 0 of a run was the caption of the group with the run's seed."""
    assert state(Seed.ALIGNMENT_PROMPTS, seed, 0) != state(Seed.BENCHMARK, seed)
    assert (
        Prompts("world", (Seed.ALIGNMENT_PROMPTS, seed))[0] == draw_description(Seed.ALIGNMENT_PROMPTS, seed).caption
    )


def test_noise_of_generated_sets_has_seeds_of_its_own():
    """A batch of 32 groups has the set's seed plus the number of its first group."""
    assert (Seed.GENERATED - Seed.TEST_GENERATED) % 32


def test_every_seed_says_what_is_drawn_with_it():
    assert all(seed.draws.endswith(".") for seed in Seed)
