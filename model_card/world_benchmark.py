"""The small world as a benchmark. It needs no data: pictures are rendered, and their true utility is known."""

from functools import partial

from PIL import Image

from modeling_dina.evaluation.benchmarks import Benchmark, Ties
from modeling_dina.evaluation.benchmarks.preference_set import Item, PreferenceSet
from training.world.groups import FIRST, SECOND, Groups
from training.world.seeds import Seed

GROUPS = 500


def read_world(limit: int | None = None) -> PreferenceSet:
    """
    Render groups of four pictures under one caption and take all six pairs of each. Every other caption has a
    combination of colour and shape that does not occur in training. The label is the probability that an annotator
    prefers the first picture.

    Args:
        limit: number of groups; None means `GROUPS`.
    """
    preferences = PreferenceSet()
    for index in range(GROUPS if limit is None else limit):
        held_out = index % 2 == 1
        groups = Groups.draw([index], Seed.BENCHMARK, held_out)
        assert groups.pictures is not None
        items = [
            Item(groups.captions[0], f"group {index}, picture {place}", partial(Image.fromarray, picture))
            for place, picture in enumerate(groups.pictures[0])
        ]
        category = "held-out combinations" if held_out else "seen combinations"
        for first, second, label in zip(FIRST, SECOND, groups.preferences[0].tolist(), strict=True):
            preferences.add_pair(f"group {index}", items[first], items[second], label, category=category)
    return preferences


WORLD = Benchmark(
    lambda folder, limit: read_world(limit),
    ties=Ties.half,
    by_category=True,
    needs_data=False,
    command="python -m model_card.evaluate_preferences",
)
