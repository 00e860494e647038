"""The sentences: what is told of which numbers."""

import math

import pytest
import torch

from modeling_dina.scoring_dina import Comparison, Ranking
from space.demo import wording


def comparison(scores=(1.0, 0.0), probability=0.8, disagreement=0.0, error=0.1, shape=(1, 4)):
    entropy = -probability * math.log(probability) - (1 - probability) * math.log(1 - probability)
    return Comparison(
        scores=torch.tensor(scores),
        spread=torch.tensor([0.1, 0.2]),
        win_probability=probability,
        entropy=entropy,
        disagreement=disagreement * entropy,
        likelihood_entropy=(1 - disagreement) * entropy,
        difference_error=error,
        samples=torch.zeros(*shape, 2),
        sigmas=torch.tensor([0.5]),
    )


@pytest.mark.parametrize(
    ("probability", "expected"),
    [
        (0.5, "A near tie"),
        (0.549, "A near tie"),
        (0.451, "A near tie"),
        (0.56, "Image A is slightly preferred"),
        (0.44, "Image B is slightly preferred"),
        (0.7, "Image A is probably preferred"),
        (0.15, "Image B is rather clearly preferred"),
        (0.99, "Image A is clearly preferred"),
    ],
)
def test_headline(probability, expected):
    assert wording.headline(probability) == expected


def test_odds_speak_of_the_leader():
    assert wording.odds(0.9) == "Of 100 people, the model expects about 90 to choose A."
    assert wording.odds(0.1) == "Of 100 people, the model expects about 90 to choose B."
    assert wording.odds(0.48).endswith("about 52 to choose B: too close to call.")


def test_difference_tells_whether_the_draws_settle_it():
    assert wording.difference(comparison(error=0.4)).startswith("A scores 1.000 higher than B, give or take 0.400")
    assert "do not settle" not in wording.difference(comparison(error=0.4))
    assert "do not settle" in wording.difference(comparison(error=0.6))
    assert "lower than B" in wording.difference(comparison(scores=(0.0, 1.0)))
    assert "One draw" in wording.difference(comparison(error=math.nan))


def test_doubt_is_measured_in_coin_tosses():
    # H(0.8) / ln 2 = 0.722 bits.
    assert wording.doubt_shares(comparison()) == (pytest.approx(0.7219, abs=1e-4), 0)
    assert "72\u00a0% of the doubt of a coin toss" in wording.doubt(comparison())
    assert "more draws will not remove it" in wording.doubt(comparison(disagreement=0.01))
    assert "differ a little" in wording.doubt(comparison(disagreement=0.1))
    assert "may settle it" in wording.doubt(comparison(disagreement=0.5))
    assert "next to no doubt" in wording.doubt(comparison(probability=1 - 1e-5))
    assert "nothing can disagree" in wording.doubt(comparison(error=math.nan, shape=(1, 1)))


def test_disagreement_is_never_told_to_be_negative():
    assert wording.doubt_shares(comparison(disagreement=-1e-9))[1] == 0


def ranking(scores, spread):
    scores = torch.tensor(scores)
    return Ranking(
        order=scores.argsort(descending=True).tolist(),
        scores=scores,
        win_probability=torch.special.ndtr((scores[:, None] - scores) / spread),
    )


def test_ranking_names_the_first_or_all_who_tie_for_it():
    names = ["one", "two", "three"]
    assert wording.ranking_summary(ranking([0.0, 2.0, 1.0], 1.0), names).startswith(
        "two comes first: it beats the next, three"
    )
    tied = wording.ranking_summary(ranking([1.0, 1.01, 1.02], 1.0), names)
    assert tied == "three, two and one are nearly tied for the first place"


def test_best_of_compares_with_the_first():
    gained = wording.best_of(ranking([0.0, 2.0, 1.0], 1.0))
    assert "picture 2: its score is 2.000 higher" in gained
    assert "probability 0.98" in gained
    assert "nothing was to be gained" in wording.best_of(ranking([2.0, 0.0], 1.0))


@pytest.mark.parametrize(
    ("share", "expected"), [(0, "0"), (0.004, "less than 1"), (0.26, "26"), (0.999, "more than 99"), (1, "100")]
)
def test_percent_never_rounds_to_certainty(share, expected):
    assert wording.percent(share) == f"{expected}\u00a0%"


def test_a_minus_is_a_minus():
    assert wording.signed(-0.5) == "\u22120.500"
    assert wording.signed(0.5, 2) == "+0.50"
