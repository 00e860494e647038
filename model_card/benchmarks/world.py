"""The small world as a benchmark: fresh pictures whose true utility is known, so that it needs no data."""

from functools import lru_cache, partial

import numpy as np
from PIL import Image

from model_card.benchmarks.preference_set import Item, PreferenceSet
from training.world.annotators import true_preference
from training.world.data import candidates
from training.world.preferences import FIRST, GROUP_SIZE, SECOND
from training.world.scenes import Description, sample_description
from training.world.utility import true_utility

GROUPS = 500
# Of this benchmark alone: no set that a model was trained, chosen or reported on has it.
SEED = 40


def read_world(limit: int | None = None) -> PreferenceSet:
    """
    Groups of four pictures under one caption, in all six pairs; every other caption asks for a combination of colour
    and shape that never met in training. The label is the probability that an annotator prefers the first picture.

    Args:
        limit: groups; `GROUPS` if None.
    """
    preferences = PreferenceSet()
    for index in range(GROUPS if limit is None else limit):
        description, pictures = group(index)
        items = [
            Item(description.caption, f"group {index}, picture {place}", partial(_open, index, place))
            for place in range(GROUP_SIZE)
        ]
        utilities = np.array([true_utility(description, picture) for picture in pictures])
        category = "held-out combinations" if description.held_out else "seen combinations"
        for first, second in zip(FIRST, SECOND, strict=True):
            label = float(true_preference(utilities[first], utilities[second]))
            preferences.add_pair(f"group {index}", items[first], items[second], label, category=category)
    return preferences


@lru_cache(maxsize=64)
def group(index: int) -> tuple[Description, list[np.ndarray]]:
    """What a group asks for, and its four pictures, RGB uint8 [64, 64, 3]."""
    rng = np.random.default_rng((SEED, index))
    description = sample_description(rng, held_out=index % 2 == 1)
    return description, candidates(description, GROUP_SIZE, rng)


def _open(index: int, place: int) -> Image.Image:
    return Image.fromarray(group(index)[1][place])
