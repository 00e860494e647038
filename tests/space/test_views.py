"""Sentences and markup: the right numbers and terms, text for screen readers, and no unescaped text."""

import math
import re

import pytest
import torch
from PIL import Image

import views
from modeling_dina.scoring_dina import Comparison, Ranking


def comparison(scores=(1.0, 0.0), probability=0.8, disagreement=0.0, error=0.1, shape=(1, 4), spread=(0.1, 0.2)):
    entropy = -probability * math.log(probability) - (1 - probability) * math.log(1 - probability)
    return Comparison(
        scores=torch.tensor(scores),
        spread=torch.tensor(spread),
        win_probability=probability,
        entropy=entropy,
        disagreement=disagreement * entropy,
        likelihood_entropy=(1 - disagreement) * entropy,
        difference_error=error,
        samples=torch.zeros(*shape, 2),
        sigmas=torch.tensor([0.5]),
    )


def ranking(scores, spread):
    scores = torch.tensor(scores)
    return Ranking(
        order=scores.argsort(descending=True).tolist(),
        scores=scores,
        samples=scores[None, None],
        variance=torch.tensor([spread**2 / 2]),  # a pair has twice the variance of one
        weights=torch.ones(1),
    )


@pytest.mark.parametrize(
    ("probability", "terms"),
    [
        (0.5, ["tie"]),
        (0.549, ["tie"]),
        (0.451, ["tie"]),
        (0.56, ["Image A", "slightly"]),
        (0.44, ["Image B", "slightly"]),
        (0.7, ["Image A", "probably"]),
        (0.15, ["Image B", "rather clearly"]),
        (0.99, ["Image A", "clearly"]),
    ],
)
def test_headline(probability, terms):
    headline = views.headline(probability)
    assert all(term in headline for term in terms)
    assert ("preferred" in headline) == ("tie" not in headline)
    assert ("rather" in headline) == ("rather clearly" in terms)


@pytest.mark.parametrize(
    ("probability", "count", "leader", "is_close"),
    [(0.9, 90, "A", False), (0.1, 90, "B", False), (0.48, 52, "B", True)],
)
def test_odds_speak_of_the_leader(probability, count, leader, is_close):
    odds = views.odds(probability)
    assert set(re.findall(r"\d+", odds)) == {"100", str(count)}
    assert re.findall(r"\b[AB]\b", odds) == [leader]
    assert ("too close" in odds) == is_close


def test_difference_says_whether_more_draws_may_reverse_it():
    certain, uncertain = views.difference(comparison(error=0.4)), views.difference(comparison(error=0.6))
    assert re.findall(r"\d\.\d+", certain) == ["1.000", "0.400"]
    assert "higher" in certain
    assert "reverse" not in certain
    assert "reverse" in uncertain
    assert "lower" in views.difference(comparison(scores=(0.0, 1.0)))
    single = views.difference(comparison(error=math.nan))
    assert "single draw" in single
    assert "nan" not in single


def test_doubt_is_measured_in_coin_tosses():
    # H(0.8) / ln 2 = 0.722 bits.
    assert views.doubt_shares(comparison()) == (pytest.approx(0.7219, abs=1e-4), 0)
    assert "72\u00a0%" in views.doubt(comparison())
    assert "coin toss" in views.doubt(comparison())


def test_doubt_says_what_more_draws_would_change():
    agreeing, differing, disagreeing = (views.doubt(comparison(disagreement=share)) for share in (0.01, 0.1, 0.5))
    assert "will not reduce" in agreeing
    assert "differ a little" in differing
    assert "may reduce" in disagreeing
    assert "almost no" in views.doubt(comparison(probability=1 - 1e-5))
    assert "use more draws" in views.doubt(comparison(error=math.nan, shape=(1, 1)))


def test_disagreement_is_never_negative():
    assert views.doubt_shares(comparison(disagreement=-1e-9))[1] == 0


def test_ranking_names_the_first_or_all_who_tie_for_it():
    names = ["one", "two", "three"]
    summary = views.ranking_summary(ranking([0.0, 2.0, 1.0], 1.0), names)
    assert re.findall("one|two|three", summary) == ["two", "three"]
    assert "0.84" in summary  # Phi(1)
    tied = views.ranking_summary(ranking([1.0, 1.01, 1.02], 1.0), names)
    assert re.findall("one|two|three", tied) == ["three", "two", "one"]
    assert "tied" in tied


def test_best_of_compares_with_the_first():
    gained = views.best_of(ranking([0.0, 2.0, 1.0], 1.0))
    assert "picture 2" in gained
    assert re.findall(r"\d\.\d+", gained) == ["2.000", "0.98"]  # Phi(2)
    first = views.best_of(ranking([2.0, 0.0], 1.0))
    assert "Picture 1" in first
    assert re.findall(r"\d\.\d+", first) == []


@pytest.mark.parametrize(
    ("share", "expected"), [(0, "0"), (0.004, "less than 1"), (0.26, "26"), (0.999, "more than 99"), (1, "100")]
)
def test_percent_never_rounds_to_certainty(share, expected):
    assert views.percent(share) == f"{expected}\u00a0%"


def test_a_minus_is_a_minus():
    assert views.signed(-0.5) == "\u22120.500"
    assert views.signed(0.5, 2) == "+0.50"


def test_a_verdict_has_its_numbers():
    html = views.verdict(comparison(probability=0.8125))
    assert "A 0.81" in html
    assert "width: 81.25%" in html
    assert re.findall(r"± (\d\.\d+)", html) == ["0.100", "0.200"]


def test_a_single_draw_has_no_spread():
    html = views.verdict(comparison(error=math.nan, shape=(1, 1), spread=(math.nan, math.nan)))
    assert "nan" not in html
    assert "<small>" not in html


def test_a_matrix_shows_each_pair_once_each_way():
    html = views.matrix(ranking([0.0, 0.6745], 1.0))  # the upper quartile of the normal distribution
    assert re.findall(r">(0\.\d\d)<", html) == ["0.75", "0.25"]
    assert [float(each) for each in re.findall(r"--strength: ([\d.]+)%", html)] == pytest.approx([50, 50], abs=0.01)


def test_text_from_outside_is_escaped():
    message = "prompt: expected, got '<script>alert(1)</script>'"
    assert "<script" not in views.refusal(message)
    assert "<script" not in views.head("<script>")
    images = [Image.new("RGB", (4, 4))] * 2
    assert "<b" not in views.ranking(ranking([0.0, 0.0], 1.0), images, ['<b">', "b"])


def test_pictures_are_embedded_and_described():
    html = views.pictures([Image.new("RGB", (500, 250)), Image.new("RGB", (8, 8))], [0.0, 1.0])
    assert html.count('alt="Picture ') == 2
    assert html.count("data:image/png;base64,") == 2
    assert html.count("dina-pixels") == 1
    assert html.index("dina-best") > html.index("Picture 1")


def test_overlaid_pictures_are_of_one_size_and_whole():
    small = views.overlaid([Image.new("RGB", (64, 64)), Image.new("RGB", (32, 64))])
    assert [image.size for image in small] == [(768, 768)] * 2
    assert small[1].getpixel((0, 0)) == (255, 255, 255)
    assert small[1].getpixel((384, 384)) == (0, 0, 0)
    large = views.overlaid([Image.new("RGB", (3000, 1000)), Image.new("RGB", (10, 10))])
    assert [image.size for image in large] == [(768, 256)] * 2
