"""Results as HTML, what Gradio has no component for: the templates of `templates/`, which escape every text."""

import base64
import io
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from modeling_dina.scoring_dina import Comparison, Ranking

from . import wording

THUMBNAIL = 192  # pixels
# Pictures of at most so many pixels a side are shown pixel by pixel: smoothing would flatter them.
PIXELATED = 128

_templates = Environment(
    loader=FileSystemLoader(Path(__file__).with_name("templates")),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_templates.globals["wording"] = wording


def head(note: str) -> str:
    """The head of the page, with what the model judges."""
    return _render("head", note=note)


def verdict(comparison: Comparison) -> str:
    """Winner, probability, scores and doubt of a comparison."""
    scores = zip("AB", comparison.scores.tolist(), comparison.spread.tolist(), strict=True)
    return _render("verdict", comparison=comparison, scores=list(scores), doubt=wording.doubt_shares(comparison))


def ranking(result: Ranking, images: list[Image.Image], names: list[str]) -> str:
    """The pictures best first, with their scores and how surely each beats the next."""
    scores = result.scores.tolist()
    lowest, highest = min(scores), max(scores)
    shares = [(score - lowest) / (highest - lowest) if highest > lowest else 1 for score in scores]
    return _render(
        "ranking",
        summary=wording.ranking_summary(result, names),
        order=result.order,
        beats=result.win_probability.tolist(),
        scores=scores,
        shares=shares,
        images=images,
        names=names,
    )


def matrix(result: Ranking) -> str:
    """Who beats whom, how probably."""
    return _render("matrix", order=result.order, beats=result.win_probability.tolist())


def pictures(images: list[Image.Image], scores: list[float]) -> str:
    """Numbered pictures with their scores, the best of them marked."""
    return _render("pictures", pictures=list(zip(images, scores, strict=True)), best=max(scores))


def progress(done: int, total: int, what: str) -> str:
    """A progress bar with a line of text."""
    return _render("progress", done=done, total=total, what=what)


def titled(title: str, *, text: str = "", figure: str = "") -> str:
    """A heading over a text and a figure, which is markup already."""
    return _render("titled", title=title, text=text, figure=Markup(figure))


def waiting(text: str) -> str:
    """What stands where a result will be."""
    return _render("waiting", text=text)


def refusal(message: str) -> str:
    """What cannot be done, and why, in place of a result."""
    return _render("refusal", message=message)


def _render(template: str, **values) -> str:
    return _templates.get_template(f"{template}.html").render(**values)


def _thumbnail(image: Image.Image, description: str) -> Markup:
    """A small copy that is part of the page."""
    image = image.copy()
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    shown = "dina-pixels" if max(image.size) <= PIXELATED else ""
    return Markup('<img class="{}" alt="{}" src="data:image/png;base64,{}">').format(shown, description, data)


_templates.filters["thumbnail"] = _thumbnail
