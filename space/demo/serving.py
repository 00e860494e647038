"""Loads the models and serves the page."""

from starlette.middleware import Middleware
from starlette.middleware.body_limit import RequestBodyLimitMiddleware

from modeling_dina.cli import EMBEDDED_MODEL, ModelOptions

from .generation import Generator
from .judging import Judge
from .limits import MAX_FILE_BYTES, MAX_REQUEST_BYTES
from .page import STYLE, build_page, theme
from .uploads import limit_decoding

# Questions that wait; further ones are told that the queue is full.
MAX_WAITING = 32


def serve(model: str = EMBEDDED_MODEL, host: str | None = None, port: int | None = None) -> None:
    """
    Serves the Space until it is interrupted.

    Args:
        model: folder or Hub id of a reward model.
        host, port: where to listen; None takes Gradio's, from its environment or 127.0.0.1 and the first free port
            from 7860.

    Raises:
        ValueError, OSError: the model cannot be loaded, or the port is taken.
    """
    limit_decoding()
    judge = Judge(ModelOptions(model=model).open_scorer())
    page = build_page(judge, Generator.beside(judge), _note(model))
    page.queue(max_size=MAX_WAITING, default_concurrency_limit=1)
    page.launch(
        server_name=host,
        server_port=port,
        theme=theme(),
        css_paths=STYLE,
        max_file_size=MAX_FILE_BYTES,
        app_kwargs={"middleware": [Middleware(RequestBodyLimitMiddleware, max_body_size=MAX_REQUEST_BYTES)]},
        footer_links=["api"],
        share=False,
        ssr_mode=False,
        enable_monitoring=False,
    )


def _note(model: str) -> str:
    if model == EMBEDDED_MODEL:
        return "This small model judges 64 x 64 scenes of coloured shapes and nothing else, photographs least of all."
    return f"The model: {model}."
