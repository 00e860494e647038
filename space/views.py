"""Results as sentences and as HTML, for which Gradio has no component. The macros of `views.html` escape all text."""

import base64
import io
import math
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image, ImageOps

from modeling_dina.scoring_dina import Comparison, Ranking

# A probability this close to one half is called a near tie.
NEAR_TIE = 0.05
# Adverbs of a preference, by the least probability of the preferred image.
STRENGTHS = ((0.95, "clearly"), (0.8, "rather clearly"), (0.65, "probably"), (0.0, "slightly"))
# The order of two scores is uncertain if they differ by less than this many standard errors.
SETTLED = 2.0
MINUS = "\N{MINUS SIGN}"
THUMBNAIL = 192  # pixels
# Pictures with sides up to this many pixels are shown pixel by pixel: smoothing would flatter them.
PIXELATED = 128
# Side of the two pictures in a slider, in pixels.
OVERLAID_SIDE = 768


def is_near_tie(win_probability: float) -> bool:
    """Whether a comparison is too close to be called a win."""
    return abs(win_probability - 0.5) < NEAR_TIE


def headline(win_probability: float) -> str:
    """The result for images A and B in a few words."""
    if is_near_tie(win_probability):
        return "A near tie"
    winner, probability = ("A", win_probability) if win_probability > 0.5 else ("B", 1 - win_probability)
    strength = next(adverb for least, adverb in STRENGTHS if probability >= least)
    return f"Image {winner} is {strength} preferred"


def odds(win_probability: float) -> str:
    """The probability as a number of people out of 100."""
    leader, share = ("A", win_probability) if win_probability >= 0.5 else ("B", 1 - win_probability)
    count = math.floor(100 * share + 0.5)
    verdict = ", too close to call" if is_near_tie(win_probability) else ""
    return f"The model expects about {count} of 100 people to choose {leader}{verdict}."


def difference(comparison: Comparison) -> str:
    """The difference of the scores, and whether more draws could reverse it."""
    value = (comparison.scores[0] - comparison.scores[1]).item()
    error = comparison.difference_error
    order = f"A scores {abs(value):.3f} {'higher' if value >= 0 else 'lower'} than B"
    if math.isnan(error):
        return f"{order}. A single draw cannot show how much this depends on the noise."
    sentence = f"{order}, give or take {error:.3f} (standard error over the draws)."
    if abs(value) < SETTLED * error:
        return f"{sentence} The order is not certain: more draws may reverse it."
    return sentence


def doubt(comparison: Comparison) -> str:
    """How uncertain the preference is, and how much of that more draws could remove."""
    total, disagreement = doubt_shares(comparison)
    if total < 0.005:
        return "There is almost no uncertainty."
    amount = f"The uncertainty is {percent(total)} of that of a coin toss."
    if math.isnan(comparison.difference_error) and len(comparison.samples) == 1:
        return f"{amount} A single draw at a single noise level cannot show any disagreement: use more draws."
    if disagreement < 0.05:
        source = "Noise levels and draws agree: it lies in the preference itself, and more draws will not reduce it."
    elif disagreement < 0.25:
        source = "Most of it lies in the preference itself; noise levels and draws differ a little."
    else:
        source = "Much of it is disagreement between noise levels and draws: more draws or other levels may reduce it."
    return f"{amount} {source}"


def doubt_shares(comparison: Comparison) -> tuple[float, float]:
    """The entropy relative to a coin toss, and the fraction of it that is disagreement, both in [0, 1]."""
    if comparison.entropy <= 0:
        return 0.0, 0.0
    # Rounding may leave a disagreement of zero slightly negative.
    return comparison.entropy / math.log(2), max(0.0, comparison.disagreement / comparison.entropy)


def ranking_summary(result: Ranking, names: Sequence[str]) -> str:
    """The first picture of a ranking, and how certain its lead is."""
    first, second = result.order[:2]
    tied = [names[index] for index in result.order if is_near_tie(result.win_probability[first, index].item())]
    if len(tied) > 1:
        return f"{', '.join(tied[:-1])} and {tied[-1]} are nearly tied for the first place"
    lead = result.win_probability[first, second].item()
    return f"{names[first]} comes first: it beats the next, {names[second]}, with probability {lead:.2f}"


def best_of(result: Ranking) -> str:
    """What the best picture gains over the first one."""
    best, count = result.order[0], len(result.order)
    if best == 0:
        return f"Picture 1 is already the best of {count}, so choosing gains nothing here. Try another seed."
    gain = (result.scores[best] - result.scores[0]).item()
    probability = result.win_probability[best, 0].item()
    return (
        f"Without the reward model you would get picture 1. The best of {count} is picture {best + 1}: its score is "
        f"{gain:.3f} higher, and it is preferred to picture 1 with probability {probability:.2f}."
    )


def percent(share: float) -> str:
    """A share in [0, 1] as a whole percentage, which is 0 or 100 only if the share is exactly that."""
    if 0 < share < 0.01:
        return "less than 1\u00a0%"
    if 0.99 < share < 1:
        return "more than 99\u00a0%"
    return f"{100 * share:.0f}\u00a0%"


def signed(value: float, digits: int = 3) -> str:
    """A score with its sign, whose minus is as wide as the plus."""
    return f"{value:+.{digits}f}".replace("-", MINUS)


def head(note: str) -> str:
    """The head of the page; `note` says what the model scores."""
    return _render("head", note=note)


def verdict(comparison: Comparison) -> str:
    """Winner, probability, scores and uncertainty of a comparison."""
    scores = zip("AB", comparison.scores.tolist(), comparison.spread.tolist(), strict=True)
    return _render("verdict", comparison=comparison, scores=list(scores), shares=doubt_shares(comparison))


def ranking(result: Ranking, images: list[Image.Image], names: list[str]) -> str:
    """The pictures best first, with their scores and the probability that each beats the next."""
    scores = result.scores.tolist()
    lowest, highest = min(scores), max(scores)
    shares = [(score - lowest) / (highest - lowest) if highest > lowest else 1 for score in scores]
    return _render(
        "ranking",
        summary=ranking_summary(result, names),
        order=result.order,
        beats=result.win_probability.tolist(),
        scores=scores,
        shares=shares,
        images=images,
        names=names,
    )


def matrix(result: Ranking) -> str:
    """A table of the probability that each picture beats each other one."""
    return _render("matrix", order=result.order, beats=result.win_probability.tolist())


def pictures(images: list[Image.Image], scores: list[float]) -> str:
    """Numbered pictures with their scores, the best one marked."""
    return _render("pictures", pictures=list(zip(images, scores, strict=True)), best=max(scores))


def progress(done: int, total: int, what: str) -> str:
    """A progress bar with a line of text."""
    return _render("progress", done=done, total=total, what=what)


def titled(title: str, *, text: str = "", figure: str = "") -> str:
    """A heading above a text and a figure; `figure` is HTML."""
    return _render("titled", title=title, text=text, figure=Markup(figure))


def waiting(text: str) -> str:
    """A placeholder for a result."""
    return _render("waiting", text=text)


def refusal(message: str) -> str:
    """An error message in place of a result."""
    return _render("refusal", message=message)


def overlaid(images: tuple[Image.Image, Image.Image]) -> tuple[Image.Image, Image.Image]:
    """Two pictures padded to one size, for a slider between them. Small ones are enlarged pixel by pixel."""
    width, height = (max(sides) for sides in zip(*(image.size for image in images), strict=True))
    is_small = max(width, height) <= PIXELATED
    scale = OVERLAID_SIDE // max(width, height) if is_small else min(1, OVERLAID_SIDE / max(width, height))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    resampling = Image.Resampling.NEAREST if is_small else Image.Resampling.LANCZOS
    first, second = (ImageOps.pad(image, size, resampling, color="white") for image in images)
    return first, second


def _thumbnail(image: Image.Image, description: str) -> Markup:
    """A small copy of the picture, embedded in the page."""
    image = image.copy()
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    css_class = "dina-pixels" if max(image.size) <= PIXELATED else ""
    return Markup('<img class="{}" alt="{}" src="data:image/png;base64,{}">').format(css_class, description, data)


_templates = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_templates.filters["thumbnail"] = _thumbnail
_templates.globals |= {
    function.__name__: function for function in (headline, odds, difference, doubt, percent, signed)
}


def _render(macro: str, **values) -> str:
    return str(getattr(_templates.get_template("views.html").module, macro)(**values))
