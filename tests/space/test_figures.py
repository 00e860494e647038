"""Figures take the colours of the page, have a description, and keep their labels apart."""

import itertools
import re

import pytest
import torch
from PIL import Image

import figures
from judge import SamplingState


@pytest.fixture(scope="module")
def comparisons(judge, pair):
    return list(judge.settle(pair[0], [Image.open(path) for path in pair[1]], 4, mode="mean"))


def sampling(count=3):
    scores = torch.linspace(-1, 1, count)
    return [SamplingState(step, 4, 1 - step / 4, step * scores, None) for step in (1, 2, 3, 4)]


def test_figures_take_their_colours_from_the_page(judge, pair, comparisons):
    for figure in (
        figures.reward_figure(judge.compare(pair[0], [Image.open(path) for path in pair[1]])),
        figures.settling_figure(comparisons, 4),
        figures.sampling_figure(sampling()),
    ):
        assert set(re.findall(r"#[0-9a-f]{6}\b", figure)) == set()
        assert "var(--dina-b)" in figure
        assert figure.count("<svg") == 1
        assert re.search(r'<svg role="img" aria-label="[^"]{20,}"', figure)


def test_errors_shrink_with_the_root_of_the_draws(comparisons):
    draws = comparisons[-1].samples[..., 1].mean(dim=0)
    assert figures._standard_error(comparisons[-1], 1) == pytest.approx(draws.std().item() / 2)
    assert len(draws) == 4
    assert figures._standard_error(comparisons[0], 1) == 0


def test_labels_keep_their_order_and_distance():
    heights = [0.0, 0.01, 5.0, 0.02]
    places = figures._apart(heights, 0.1)
    assert sorted(range(4), key=places.__getitem__) == sorted(range(4), key=heights.__getitem__)
    rising = sorted(places)
    assert all(b - a >= 0.1 - 1e-9 for a, b in itertools.pairwise(rising))
    assert sum(places) == pytest.approx(sum(heights))
