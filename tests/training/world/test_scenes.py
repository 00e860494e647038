"""Descriptions, captions, layouts and pictures of the small world."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.world.defects import DEFECTS
from training.world.groups import candidates, draw_description
from training.world.models.pictures import Pictures
from training.world.scenes import (
    HELD_OUT,
    IMAGE_SIZE,
    RELATIONS,
    Description,
    Thing,
    arrange,
    describe,
    draw,
    edit,
    sample_description,
)

SEEDS = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize(
    ("description", "caption"),
    [
        (Description((Thing("red", "circle"),)), "a red circle"),
        (Description((Thing("red", "circle", "large"),)), "a large red circle"),
        (Description((Thing("cyan", "star"),) * 3), "three cyan stars"),
        (
            Description((Thing("red", "circle", "small"), Thing("blue", "square")), "left of"),
            "a small red circle left of a blue square",
        ),
        (
            Description((Thing("red", "circle"), Thing("blue", "square"), Thing("green", "star"))),
            "a red circle, a blue square and a green star",
        ),
    ],
)
def test_caption(description, caption):
    assert description.caption == caption


@settings(max_examples=200, deadline=None)
@given(index=st.integers(0, 2**40), seed=st.integers(0, 100))
def test_a_caption_says_all_of_its_description(index, seed):
    caption = draw_description(seed, index).caption
    assert describe(caption).caption == caption


@pytest.mark.parametrize(
    "caption", ["", "a dog", "two", "a huge red circle", "a red", "a red circle beside a blue star"]
)
def test_other_captions_are_refused(caption):
    with pytest.raises(ValueError, match="prompt: expected"):
        describe(caption)


@given(SEEDS)
def test_layout_keeps_apart_inside_and_related(seed):
    rng = np.random.default_rng(seed)
    description = sample_description(rng)
    placed = arrange(description, rng).placed
    assert tuple(item.thing for item in placed) == description.things
    for i, a in enumerate(placed):
        assert a.radius <= min(a.x, a.y, IMAGE_SIZE - a.x, IMAGE_SIZE - a.y)
        assert all(math.dist((a.x, a.y), (b.x, b.y)) > a.radius + b.radius for b in placed[:i])
    if description.relation:
        ux, uy = RELATIONS[description.relation]
        assert (placed[0].x - placed[1].x) * ux + (placed[0].y - placed[1].y) * uy > 14


@given(SEEDS)
def test_held_out_combinations_stay_out_of_training_pictures(seed):
    rng = np.random.default_rng(seed)
    description = sample_description(rng)
    assert not description.held_out
    for _ in range(3):
        description = edit(description, rng)
        assert not description.held_out
    held_out = sample_description(rng, held_out=True)
    assert (held_out.things[0].color, held_out.things[0].shape) in HELD_OUT


@given(SEEDS)
def test_edit_changes_what_is_asked_for(seed):
    rng = np.random.default_rng(seed)
    description = sample_description(rng)
    edited = edit(description, rng)
    assert edited != description
    assert 1 <= len(edited.things) <= 4


def test_pictures_are_functions_of_seed_and_index():
    first, second = Pictures(seed=5, defect_share=0.5), Pictures(seed=5, defect_share=0.5)
    for index in (3, 0):
        assert first.draw(index)[0] == second.draw(index)[0]
        np.testing.assert_array_equal(first.draw(index)[1], second.draw(index)[1])
    assert (first.draw(0)[1] != Pictures(seed=6).draw(0)[1]).any()
    many = first.draw_many(range(2))
    assert many.pictures.shape == (2, 64, 64, 3)
    np.testing.assert_array_equal(many.pictures[1], first.draw(1)[1])
    assert many.captions == [first.draw(index)[0].caption for index in range(2)]


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.__name__)
def test_defects_change_the_picture_more_when_severe(defect):
    description = Description((Thing("red", "circle", "large"), Thing("blue", "square", "large")))
    clean = draw(arrange(description, np.random.default_rng(0)))
    change = []
    for severity in (0.1, 1.0):
        spoilt = defect(clean, severity, np.random.default_rng(1))
        assert spoilt.shape == clean.shape
        assert spoilt.dtype == np.uint8
        change.append(np.abs(spoilt.astype(float) - clean).mean())
    assert 0 < change[0] < change[1]


def test_candidates_differ():
    rng = np.random.default_rng(2)
    images = candidates(sample_description(rng), 4, rng)
    assert len({image.tobytes() for image in images}) > 1
