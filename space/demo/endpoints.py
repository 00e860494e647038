"""The API: `/compare` and `/rank`, for programs. `gradio_client` and the page's "Use via API" read the types here."""

from collections.abc import Callable
from functools import wraps
from typing import Literal, TypedDict

import gradio as gr
from gradio import FileData

from .accelerator import on_accelerator
from .judging import Judge
from .uploads import opened_image, opened_images
from .widgets import QUEUE
from .wording import is_near_tie

Mode = Literal["features", "mean", "precision"]


class ComparisonAnswer(TypedDict):
    """`modeling_dina.scoring_dina.Comparison` without its samples. None stands for what a single draw cannot say."""

    preferred: Literal["a", "b"]
    near_tie: bool
    win_probability: float
    scores: list[float]
    spread: list[float | None]
    entropy: float
    disagreement: float
    likelihood_entropy: float
    difference_error: float | None
    sigmas: list[float]


class RankingAnswer(TypedDict):
    """`modeling_dina.scoring_dina.Ranking`."""

    order: list[int]
    scores: list[float]
    win_probability: list[list[float]]


def add_endpoints(judge: Judge) -> None:
    """Adds the endpoints to the Blocks they are called in."""
    judge_compare, judge_rank = on_accelerator(judge.compare), on_accelerator(judge.rank)

    @_refusing
    def compare(
        prompt: str,
        image_a: FileData,
        image_b: FileData,
        sigmas: list[float] | None = None,
        num_draws: int | None = None,
        mode: Mode | None = None,
        seed: int = 0,
    ) -> ComparisonAnswer:
        """Which of two images is preferred for a prompt, how probably, and how sure that is.

        prompt: what both are judged by. image_a, image_b: uploaded files (PNG, JPEG, WebP, …). sigmas: noise levels
        in [0, 1]. num_draws: noise draws at each level. mode: how levels are combined. seed: of the noise. Null
        takes the model's default. Returns the probability that image_a is preferred, the scores of both and their
        standard deviations over draws, and the uncertainty in nats: entropy = disagreement + likelihood_entropy.
        """
        images = [opened_image(image_a, "image_a"), opened_image(image_b, "image_b")]
        comparison = judge_compare(prompt, images, sigmas, num_draws, mode, seed)
        answer = comparison.to_dict()
        del answer["samples"]
        preferred = "a" if comparison.win_probability >= 0.5 else "b"
        return {"preferred": preferred, "near_tie": is_near_tie(comparison.win_probability), **answer}

    @_refusing
    def rank(
        prompt: str,
        images: list[FileData],
        sigmas: list[float] | None = None,
        num_draws: int | None = None,
        mode: Mode | None = None,
        seed: int = 0,
    ) -> RankingAnswer:
        """Two to sixteen images of one prompt, best first.

        images: uploaded files; the other parameters as in /compare. Returns the order (indices of the images, best
        first), the scores in the order the images came, and the probability that the image of each row is preferred
        to that of each column.
        """
        if not isinstance(images, list):
            raise TypeError(f"images: expected a list of files, got {type(images).__name__}")
        return judge_rank(prompt, opened_images(images), sigmas, num_draws, mode, seed).to_dict()

    gr.api(compare, api_name="compare", **QUEUE)
    gr.api(rank, api_name="rank", **QUEUE)


def _refusing(function: Callable) -> Callable:
    """Tells the caller what was refused and why; Gradio keeps the messages of other exceptions to itself."""

    @wraps(function)
    def refusing(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except (ValueError, TypeError) as error:
            raise gr.Error(str(error), print_exception=False) from error

    return refusing
