"""The page: its head, its tabs and its API in one."""

from pathlib import Path

import gradio as gr

from . import markup
from .compare_tab import compare_tab
from .draws_tab import draws_tab
from .endpoints import add_endpoints
from .generate_tab import generate_tab
from .generation import Generator
from .judging import Judge
from .limits import MAX_RANKED
from .rank_tab import rank_tab
from .uploads import UploadsOnly
from .widgets import read_examples

TITLE = "DiNa-LRM: a reward model that reads noise"
STYLE = Path(__file__).with_name("style.css")
# How often temporary files are looked at and how old they grow, in seconds.
DELETE_CACHE = (600, 3600)
SYSTEM_FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
SYSTEM_MONO_FONTS = ["ui-monospace", "Menlo", "Consolas", "monospace"]


def build_page(judge: Judge, generator: Generator | None, note: str) -> gr.Blocks:
    """
    The whole Space.

    Args:
        judge: answers what is asked.
        generator: draws pictures for the judge; None leaves that tab out.
        note: what the model judges, for the head of the page.
    """
    examples = read_examples()
    with UploadsOnly(title=TITLE, analytics_enabled=False, delete_cache=DELETE_CACHE) as page:
        gr.HTML(markup.head(note))
        is_small = judge.scorer.max_pixels <= markup.PIXELATED**2
        with gr.Tabs(elem_classes="dina-small" if is_small else ""):
            with gr.Tab("Compare"):
                _intro("Which of two pictures fits the prompt better, how probably, and how sure that is.")
                compare_tab(judge, examples["pairs"])
            with gr.Tab("Rank"):
                _intro(f"Up to {MAX_RANKED} pictures of one prompt, best first.")
                rank_tab(judge, examples["groups"])
            if generator is not None:
                with gr.Tab("Generate"):
                    _intro(
                        "Pictures that the reward watches while they come out of noise, and what the best one gains."
                    )
                    generate_tab(judge, generator, examples["captions"])
            with gr.Tab("Draws"):
                _intro("Test-time scaling: a score is a mean over noise draws, and more of them settle it.")
                draws_tab(judge, examples["pairs"][::-1])
        add_endpoints(judge)
    return page


def _intro(text: str) -> None:
    gr.Markdown(text, elem_classes="dina-intro")


def theme() -> gr.themes.Base:
    """System fonts alone: the page asks no other host for anything."""
    return gr.themes.Base(
        primary_hue="blue", neutral_hue="slate", radius_size="md", font=SYSTEM_FONTS, font_mono=SYSTEM_MONO_FONTS
    )
