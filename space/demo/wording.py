"""What a result says, in plain words. No markup: the same sentences serve the page and whoever reads them aloud."""

import math
from collections.abc import Sequence

from modeling_dina.scoring_dina import Comparison, Ranking

# A probability this close to one half is called a near tie.
NEAR_TIE = 0.05
# Adverbs of a preference by the least probability of the preferred image.
STRENGTHS = ((0.95, "clearly"), (0.8, "rather clearly"), (0.65, "probably"), (0.0, "slightly"))
# Standard errors within which the order of two scores is not settled by the draws.
SETTLED = 2.0
MINUS = "\N{MINUS SIGN}"


def is_near_tie(win_probability: float) -> bool:
    """Whether a comparison is too close to be told as a win."""
    return abs(win_probability - 0.5) < NEAR_TIE


def headline(win_probability: float) -> str:
    """The verdict on images A and B in a few words."""
    if is_near_tie(win_probability):
        return "A near tie"
    winner, probability = ("A", win_probability) if win_probability > 0.5 else ("B", 1 - win_probability)
    strength = next(adverb for least, adverb in STRENGTHS if probability >= least)
    return f"Image {winner} is {strength} preferred"


def odds(win_probability: float) -> str:
    """What the probability means: how many of 100 people would choose which."""
    leader, share = ("A", win_probability) if win_probability >= 0.5 else ("B", 1 - win_probability)
    count = math.floor(100 * share + 0.5)
    if is_near_tie(win_probability):
        return f"Of 100 people, the model expects about {count} to choose {leader}: too close to call."
    return f"Of 100 people, the model expects about {count} to choose {leader}."


def difference(comparison: Comparison) -> str:
    """The difference of the scores, and whether more draws could turn it."""
    value = (comparison.scores[0] - comparison.scores[1]).item()
    error = comparison.difference_error
    order = f"A scores {abs(value):.3f} {'higher' if value >= 0 else 'lower'} than B"
    if math.isnan(error):
        return f"{order}. One draw does not say how far that depends on the noise."
    told = f"{order}, give or take {error:.3f} (standard error over the draws)."
    if abs(value) < SETTLED * error:
        return f"{told} The draws do not settle the order: more of them may turn it."
    return told


def doubt(comparison: Comparison) -> str:
    """How much is left undecided, and what of it more draws could remove."""
    total, disagreement = doubt_shares(comparison)
    if total < 0.005:
        return "There is next to no doubt: the model would all but rule out the other choice."
    amount = f"The verdict leaves {percent(total)} of the doubt of a coin toss."
    if math.isnan(comparison.difference_error) and len(comparison.samples) == 1:
        return f"{amount} With a single reading nothing can disagree: ask for more draws to see what they agree on."
    if disagreement < 0.05:
        source = (
            "Noise levels and draws agree: the doubt is in the preference itself, and more draws will not remove it."
        )
    elif disagreement < 0.25:
        source = "Most of it is in the preference itself; noise levels and draws differ a little."
    else:
        source = (
            "Much of it is disagreement between noise levels and draws: more draws, or other levels, may settle it."
        )
    return f"{amount} {source}"


def doubt_shares(comparison: Comparison) -> tuple[float, float]:
    """The entropy as a share of a coin toss's, and the share of it that is disagreement, both in [0, 1]."""
    if comparison.entropy <= 0:
        return 0.0, 0.0
    # Rounding may leave a disagreement of zero a little below it.
    return comparison.entropy / math.log(2), max(0.0, comparison.disagreement / comparison.entropy)


def ranking_summary(ranking: Ranking, names: Sequence[str]) -> str:
    """The first of a ranking, and how surely it leads."""
    first, second = ranking.order[:2]
    tied = [names[index] for index in ranking.order if is_near_tie(ranking.win_probability[first, index].item())]
    if len(tied) > 1:
        return f"{', '.join(tied[:-1])} and {tied[-1]} are nearly tied for the first place"
    lead = ranking.win_probability[first, second].item()
    return f"{names[first]} comes first: it beats the next, {names[second]}, with probability {lead:.2f}"


def percent(share: float) -> str:
    """A share in [0, 1] for reading: a whole number, and never a 0 or 100 that is not meant."""
    if 0 < share < 0.01:
        return "less than 1\u00a0%"
    if 0.99 < share < 1:
        return "more than 99\u00a0%"
    return f"{100 * share:.0f}\u00a0%"


def signed(value: float, digits: int = 3) -> str:
    """A score, with a minus as long as the plus."""
    return f"{value:+.{digits}f}".replace("-", MINUS)


def best_of(ranking: Ranking) -> str:
    """What choosing the best picture by its reward has brought over taking the first."""
    best, count = ranking.order[0], len(ranking.order)
    if best == 0:
        return f"The first picture is also the best of {count}: nothing was to be gained here. Try another seed."
    gain = (ranking.scores[best] - ranking.scores[0]).item()
    probability = ranking.win_probability[best, 0].item()
    return (
        f"Without a judge you would have got picture 1. The best of {count} is picture {best + 1}: its score is "
        f"{gain:.3f} higher, and it is preferred to picture 1 with probability {probability:.2f}."
    )
