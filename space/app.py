"""The Space: `python app.py`. `DINA_MODEL` is a folder or Hub id of another model than the embedded one;
`DINA_BACKBONE` replaces the diffusion model that it names."""

import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Literal, TypedDict, cast

# First, because ZeroGPU's `spaces`, which it imports, must be imported before torch.
from judge import (
    GENERATING_FAMILY,
    MAX_FILE_BYTES,
    MAX_RANKED,
    MAX_REQUEST_BYTES,
    MAX_WAITING,
    Generator,
    Judge,
    on_accelerator,
)

# isort: split
import gradio as gr
from gradio import FileData
from starlette.middleware import Middleware
from starlette.middleware.body_limit import RequestBodyLimitMiddleware

import views
from inputs import QUEUE, UploadsOnly, limit_decoding, opened_image, opened_images, read_examples
from modeling_dina.options import EMBEDDED_MODEL, Mode, ModelOptions
from modeling_dina.pipelines_dina import PIPELINES
from tabs import compare_tab, draws_tab, generate_tab, rank_tab

TITLE = "DiNa-LRM: a reward model that reads noise"
EMBEDDED_NOTE = "It scores 64 x 64 scenes of coloured shapes and nothing else, least of all photographs."
STYLE = Path(__file__).with_name("style.css")
# Interval between deletions of temporary files, and their maximum age, in seconds.
DELETE_CACHE = (600, 3600)
SYSTEM_FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
SYSTEM_MONO_FONTS = ["ui-monospace", "Menlo", "Consolas", "monospace"]


def build_page(judge: Judge, generator: Generator | None, note: str) -> gr.Blocks:
    """Builds the page and its API.

    Args:
        judge: scores the pictures.
        generator: generates pictures; None omits that tab.
        note: what the model scores, for the head of the page.
    """
    examples = read_examples()
    with UploadsOnly(title=TITLE, analytics_enabled=False, delete_cache=DELETE_CACHE) as page:
        gr.HTML(views.head(note))
        is_small = judge.scorer.max_pixels <= views.PIXELATED**2
        with gr.Tabs(elem_classes="dina-small" if is_small else ""):
            with gr.Tab("Compare"):
                _intro("Which of two pictures fits the prompt better, with what probability, and how certain that is.")
                compare_tab(judge, examples["pairs"])
            with gr.Tab("Rank"):
                _intro(f"Up to {MAX_RANKED} pictures for one prompt, best first.")
                rank_tab(judge, examples["groups"])
            if generator is not None:
                with gr.Tab("Generate"):
                    _intro("Generates pictures, scores them during sampling, and compares the best with the first.")
                    generate_tab(judge, generator, examples["captions"])
            with gr.Tab("Draws"):
                _intro("Test-time scaling: a score is a mean over noise draws, and more draws make it more stable.")
                draws_tab(judge, examples["pairs"][::-1])
        add_endpoints(judge)
    return page


def _intro(text: str) -> None:
    gr.Markdown(text, elem_classes="dina-intro")


def theme() -> gr.themes.Base:
    """A theme with system fonts only, so that the page makes no requests to other hosts."""
    return gr.themes.Base(
        primary_hue="blue", neutral_hue="slate", radius_size="md", font=SYSTEM_FONTS, font_mono=SYSTEM_MONO_FONTS
    )


class ComparisonAnswer(TypedDict):
    """`modeling_dina.scoring_dina.Comparison` without its samples. None stands for a value that a single draw cannot
    give."""

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
    """Adds `/compare` and `/rank` to the current Blocks. `gradio_client` and the page's "Use via API" show their types
    and docstrings."""
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
        """Compares two images for a prompt.

        prompt: what the images should show. image_a, image_b: uploaded files (PNG, JPEG, WebP, …). sigmas: noise
        levels in [0, 1]. num_draws: noise draws at each level. mode: how levels are combined. seed: noise seed. Null
        takes the model's default. Returns the probability that image_a is preferred, the scores of both images and
        their standard deviations over draws, and the uncertainty in nats: entropy = disagreement +
        likelihood_entropy.
        """
        images = [opened_image(image_a, "image_a"), opened_image(image_b, "image_b")]
        comparison = judge_compare(prompt, images, sigmas, num_draws, mode, seed)
        answer = comparison.to_dict()
        del answer["samples"], answer["level_samples"]
        preferred = "a" if comparison.win_probability >= 0.5 else "b"
        near_tie = views.is_near_tie(comparison.win_probability)
        return cast(ComparisonAnswer, {"preferred": preferred, "near_tie": near_tie, **answer})

    @_refusing
    def rank(
        prompt: str,
        images: list[FileData],
        sigmas: list[float] | None = None,
        num_draws: int | None = None,
        mode: Mode | None = None,
        seed: int = 0,
    ) -> RankingAnswer:
        """Ranks two to sixteen images for a prompt.

        images: uploaded files. The other parameters are those of /compare. Returns the order (indices of the images,
        best first), the scores in the order of the request, and the probability that the image of each row is
        preferred to the image of each column.
        """
        if not isinstance(images, list):
            raise TypeError(f"images: expected a list of files, got {type(images).__name__}")
        return judge_rank(prompt, opened_images(images), sigmas, num_draws, mode, seed).to_dict()

    gr.api(compare, api_name="compare", **QUEUE)
    gr.api(rank, api_name="rank", **QUEUE)


def _refusing(function: Callable) -> Callable:
    """Sends the message of a ValueError or TypeError to the caller. Gradio hides those of other exceptions."""

    @wraps(function)
    def refusing(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except (ValueError, TypeError) as error:
            raise gr.Error(str(error), print_exception=False) from error

    return refusing


def model_note(model: str, judge: Judge) -> str:
    """The model and its family, what it scores, and whether its family has a tab that the page omits."""
    family = judge.config.backbone_type
    name = "the small model of the package dina-lrm" if model == EMBEDDED_MODEL else model
    note = f"Model: {name}. Family: {family} ({PIPELINES[family].pipeline_class.__name__} of diffusers)."
    if model == EMBEDDED_MODEL:
        return f"{note} {EMBEDDED_NOTE}"
    if family == GENERATING_FAMILY:
        return note
    return f"{note} It has no tab Generate, which supports only Stable Diffusion 3, not {family}."


def serve(model: str, backbone: str | None = None) -> None:
    """Serves the page until it is interrupted. Gradio takes host and port from GRADIO_SERVER_NAME, by default
    127.0.0.1, and GRADIO_SERVER_PORT, by default the first free port from 7860.

    Args:
        model: folder or Hub id of a reward model.
        backbone: diffusion model that replaces the one that the reward model names, as a folder or Hub id.

    Raises:
        ValueError, OSError: the model cannot be loaded, or the port is taken.
    """
    limit_decoding()
    judge = Judge(ModelOptions(model=model, backbone=backbone).open_scorer())
    page = build_page(judge, Generator.beside(judge), model_note(model, judge))
    page.queue(max_size=MAX_WAITING, default_concurrency_limit=1)
    page.launch(
        theme=theme(),
        css_paths=STYLE,
        max_file_size=MAX_FILE_BYTES,
        app_kwargs={"middleware": [Middleware(RequestBodyLimitMiddleware, max_body_size=MAX_REQUEST_BYTES)]},
        footer_links=["api"],
        share=False,
        ssr_mode=False,
        enable_monitoring=False,
    )


if __name__ == "__main__":
    try:
        serve(os.environ.get("DINA_MODEL", EMBEDDED_MODEL), os.environ.get("DINA_BACKBONE"))
    except (ValueError, OSError) as error:
        sys.exit(f"Error: {error}")
