"""The small world as two benchmarks. They need no data: pictures are rendered, and their true utility is known."""

from dataclasses import replace
from functools import partial
from itertools import product

from PIL import Image

from modeling_dina.evaluation.benchmarks import Benchmark, Ties
from modeling_dina.evaluation.benchmarks.preference_set import Item, PreferenceSet
from training.world.groups import FIRST, FLAWS, SECOND, Groups, draw_flawed
from training.world.seeds import Seed

GROUPS = 500
FLAWED_PAIRS = 50  # of each kind


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


def read_flaws(limit: int | None = None) -> PreferenceSet:
    """
    Draw pairs of a picture that shows its caption and one that differs from it by a single flaw. The categories are
    the kinds of flaws; the picture without the flaw is always the better one.

    Args:
        limit: number of pairs of each kind; None means `FLAWED_PAIRS`.
    """
    preferences = PreferenceSet()
    for flaw, index in product(FLAWS, range(FLAWED_PAIRS if limit is None else limit)):
        description, *pictures = draw_flawed(Seed.FLAWS, index, flaw)
        clean, flawed = (
            Item(description.caption, f"{flaw} {index}, {name}", partial(Image.fromarray, picture))
            for name, picture in zip(("clean", "flawed"), pictures, strict=True)
        )
        preferences.add_pair(f"{flaw} {index}", clean, flawed, 1.0, category=flaw)
    return preferences


WORLD = Benchmark(
    lambda folder, limit: read_world(limit),
    ties=Ties.half,
    by_category=True,
    needs_data=False,
    command="python -m model_card.evaluate_preferences",
)
WORLD_FLAWS = replace(WORLD, read=lambda folder, limit: read_flaws(limit))
