"""Figures and markup: colours of the page, words for those who do not see, and nothing from outside unescaped."""

import itertools
import re

import pytest
import torch
from PIL import Image

from modeling_dina.scoring_dina import Ranking
from space.demo import figures, markup
from space.demo.generation import SamplingState
from space.demo.widgets import overlaid


@pytest.fixture(scope="module")
def images(pair):
    return [Image.open(path) for path in pair[1]]


@pytest.fixture(scope="module")
def comparison(judge, pair, images):
    return judge.compare(pair[0], images, num_draws=4)


def sampling(count=3):
    scores = torch.linspace(-1, 1, count)
    return [SamplingState(step, 4, 1 - step / 4, step * scores, None) for step in (1, 2, 3, 4)]


def all_figures(judge, pair, images):
    yield figures.reward_figure(judge.levels(pair[0], images))
    yield figures.settling_figure(list(judge.settle(pair[0], images, 8)), 8)
    yield figures.sampling_figure(sampling())


def test_figures_take_their_colours_from_the_page(judge, pair, images):
    for figure in all_figures(judge, pair, images):
        assert set(re.findall(r"#[0-9a-f]{6}\b", figure)) == set()
        assert "var(--dina-b)" in figure
        assert figure.count("<svg") == 1
        assert re.search(r'<svg role="img" aria-label="[^"]{20,}"', figure)


def test_errors_shrink_with_the_root_of_the_draws(comparison):
    draws = comparison.samples[0, :, 1]
    assert figures._standard_error(comparison, 1) == pytest.approx(draws.std().item() / 2)
    assert len(draws) == 4


def test_labels_keep_their_order_and_distance():
    heights = [0.0, 0.01, 5.0, 0.02]
    places = figures._apart(heights, 0.1)
    assert sorted(range(4), key=places.__getitem__) == sorted(range(4), key=heights.__getitem__)
    rising = sorted(places)
    assert all(b - a >= 0.1 - 1e-9 for a, b in itertools.pairwise(rising))
    assert sum(places) == pytest.approx(sum(heights))


def test_a_verdict_has_its_numbers(comparison):
    html = markup.verdict(comparison)
    assert f"A {comparison.win_probability:.2f}" in html
    assert f"width: {100 * comparison.win_probability}%" in html
    assert f"± {comparison.spread[0]:.3f}" in html


def test_a_single_draw_has_no_spread(judge, pair, images):
    html = markup.verdict(judge.compare(pair[0], images, num_draws=1))
    assert "nan" not in html
    assert "<small>" not in html


def test_a_matrix_shows_each_pair_once_each_way():
    scores = torch.tensor([0.0, 1.0])
    wins = torch.tensor([[0.5, 0.25], [0.75, 0.5]])
    html = markup.matrix(Ranking(order=[1, 0], scores=scores, win_probability=wins))
    assert re.findall(r">(0\.\d\d)<", html) == ["0.75", "0.25"]
    assert re.findall(r"--strength: ([\d.]+)%", html) == ["50.0", "50.0"]


def test_text_from_outside_is_escaped():
    message = "prompt: expected, got '<script>alert(1)</script>'"
    assert "<script" not in markup.refusal(message)
    assert "<script" not in markup.head("<script>")
    ranking = Ranking(order=[0, 1], scores=torch.zeros(2), win_probability=torch.full((2, 2), 0.5))
    images = [Image.new("RGB", (4, 4))] * 2
    assert "<b" not in markup.ranking(ranking, images, ['<b">', "b"]).replace("<body", "")


def test_pictures_are_embedded_and_described():
    html = markup.pictures([Image.new("RGB", (500, 250)), Image.new("RGB", (8, 8))], [0.0, 1.0])
    assert html.count('alt="Picture ') == 2
    assert html.count("data:image/png;base64,") == 2
    assert html.count("dina-pixels") == 1
    assert html.index("dina-best") > html.index("Picture 1")


def test_overlaid_pictures_are_of_one_size_and_whole():
    small = overlaid([Image.new("RGB", (64, 64)), Image.new("RGB", (32, 64))])
    assert [image.size for image in small] == [(768, 768)] * 2
    assert small[1].getpixel((0, 0)) == (255, 255, 255)
    assert small[1].getpixel((384, 384)) == (0, 0, 0)
    large = overlaid([Image.new("RGB", (3000, 1000)), Image.new("RGB", (10, 10))])
    assert [image.size for image in large] == [(768, 256)] * 2
