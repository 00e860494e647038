"""The true utility read off pixels, and the annotators who see it through noise."""

import numpy as np
import pytest

from training.world.annotators import (
    IMPRESSION_NOISE,
    expected_agreement,
    true_preference,
    vote,
)
from training.world.defects import DEFECTS
from training.world.groups import pairwise_accuracy
from training.world.scenes import COLORS, SHAPES, Description, Placed, Scene, Thing, draw
from training.world.utility import coverage, decompose, fidelity, true_utility


def scene(*things: tuple[str, str, float, float, float]) -> np.ndarray:
    """Things given as colour, shape, x, y and radius, in pure colours over plain grey."""
    rgb = {
        "red": (230, 30, 30),
        "yellow": (230, 230, 30),
        "green": (30, 230, 30),
        "cyan": (30, 230, 230),
        "blue": (30, 30, 230),
        "purple": (230, 30, 230),
    }
    placed = tuple(Placed(Thing(c, s), x, y, r, 0.0, rgb[c]) for c, s, x, y, r in things)
    return draw(Scene(placed, (160.0, 160.0, 0.0)))


@pytest.mark.parametrize("color", COLORS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("radius", [7.0, 11.0])
def test_reading_names_what_was_drawn(color, shape, radius):
    reading = decompose(scene((color, shape, 30, 33, radius)))
    (region,) = reading.regions
    assert max(region.color_fit, key=region.color_fit.get) == color
    assert max(region.shape_fit, key=region.shape_fit.get) == shape
    assert region.shape_fit[shape] > 0.8
    # The blended rim is counted in.
    assert region.radius == pytest.approx(radius + 0.4, abs=0.5)
    assert reading.defect < 0.03


def test_fidelity_worked_out_by_hand():
    """A perfect picture 1; a wrong colour costs 0.4, a missing thing its share, an extra thing 0.3."""
    triangle = Description((Thing("red", "triangle"),))

    def score(description, *things):
        return fidelity(description, decompose(scene(*things)).regions)

    red = ("red", "triangle", 20, 20, 9.0)
    assert score(triangle, red) == pytest.approx(1, abs=0.02)
    assert score(triangle, ("blue", "triangle", 20, 20, 9.0)) == pytest.approx(0.6, abs=0.02)
    assert score(triangle, ("red", "star", 20, 20, 9.0)) == pytest.approx(0.6, abs=0.02)
    assert score(triangle, red, ("blue", "star", 45, 45, 9.0)) == pytest.approx(0.7, abs=0.02)
    two = Description((Thing("red", "triangle"), Thing("red", "triangle")))
    assert score(two, red) == pytest.approx(0.5, abs=0.01)
    assert score(triangle) == 0

    related = Description((Thing("red", "triangle"), Thing("blue", "star")), "left of")
    blue = ("blue", "star", 46, 20, 9.0)
    assert score(related, red, blue) == pytest.approx(1, abs=0.02)
    turned = Description(related.things, "right of")
    assert score(turned, red, blue) == pytest.approx(0.7, abs=0.02)


def test_a_speck_counts_by_its_area():
    triangle = Description((Thing("red", "triangle"),))
    image = scene(("red", "triangle", 20, 20, 9.0)).copy()
    image[40:46, 40:45] = (30, 30, 230)
    assert fidelity(triangle, decompose(image).regions) == pytest.approx(1 - 0.3 * 30 / 60, abs=0.02)


def test_size_counts_where_it_is_named():
    large = Description((Thing("red", "circle", "large"),))
    pictures = [scene(("red", "circle", 30, 30, radius)) for radius in (7.0, 11.0)]
    small_fit, large_fit = (fidelity(large, decompose(picture).regions) for picture in pictures)
    assert large_fit == pytest.approx(1, abs=0.04)
    assert small_fit == pytest.approx(0.7, abs=0.04)


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.__name__)
def test_defects_cost_utility(defect):
    """Averaged over places, as a bar may miss what matters."""
    description = Description((Thing("red", "circle", "large"), Thing("blue", "square", "large")))
    losses = []
    for seed in range(8):
        clean = scene(("red", "circle", 18, 30, 11.0), ("blue", "square", 46, 34, 11.0))
        spoilt = defect(clean, 1.0, np.random.default_rng(seed))
        losses.append(true_utility(description, clean) - true_utility(description, spoilt))
    assert np.mean(losses) > 0.3


@pytest.mark.parametrize("image", [np.zeros((64, 64, 3), np.uint8), np.full((64, 64, 3), (255, 0, 0), np.uint8)])
def test_pictures_without_a_scene_have_a_utility(image):
    assert np.isfinite(true_utility(Description((Thing("red", "circle"),)), image))


def test_random_pixels_are_worth_less_than_the_scene():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    description = Description((Thing("red", "circle"),))
    assert true_utility(description, noise) < true_utility(description, scene(("red", "circle", 30, 30, 9.0))) - 2


@pytest.mark.parametrize(("shape", "area"), [("circle", np.pi), ("square", 2.0), ("triangle", 27**0.5 / 4)])
def test_coverage_has_the_area_of_the_shape(shape, area):
    assert coverage(shape, 31.3, 30.8, 12.0).sum() == pytest.approx(144 * area, rel=0.02)


def test_true_preference_closed_form():
    """Phi(1) = 0.841345 where utilities differ by sqrt(2) annotators' standard deviations."""
    assert true_preference(np.sqrt(2) * IMPRESSION_NOISE, 0.0) == pytest.approx(0.8413447)
    assert true_preference(1.3, 1.3) == 0.5


def test_votes_follow_the_preference():
    rng = np.random.default_rng(0)
    shares = vote(np.full(4000, 0.3), np.zeros(4000), 9, rng)
    assert set(np.round(shares * 9)) <= set(range(10))
    assert shares.mean() == pytest.approx(true_preference(0.3, 0.0), abs=0.01)


def test_expected_agreement():
    a, b = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    p = float(true_preference(1.0, 0.0))
    assert expected_agreement(a > b, a, b) == pytest.approx([p, p])
    assert expected_agreement(np.array([True, True]), a, b) == pytest.approx([p, 1 - p])


def test_pairwise_accuracy_worked_out_by_hand():
    """The first beats each of the others; the other pairs are ties, on which any order is right half the time."""
    utilities = np.array([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    scores = np.array([[4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 3.0, 4.0]])
    p = float(true_preference(1.0, 0.0))
    measured = pairwise_accuracy(scores, utilities)
    first = (3 * p + 3 * 0.5) / 6
    assert measured["accuracy"] == measured["best"] == pytest.approx((first + 0.5) / 2)
    assert measured["ratio"] == 1
    assert measured["standard_error"] == pytest.approx((first - 0.5) / 2)
    worst = pairwise_accuracy(-scores, utilities)
    assert worst["accuracy"] == pytest.approx(((3 * (1 - p) + 1.5) / 6 + 0.5) / 2)
