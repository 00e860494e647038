"""The server of the page: it shows pairs to annotators and takes their votes over HTTP."""

import html
import json
import logging
import socket
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from modeling_dina.serving.bodies import BodyLimits, BodyReader
from training.label.pictures import encoded_picture
from training.label.session import Presentation, Session
from training.label.votes import CHOICES, SIDES

PAGE = Path(__file__).parent / "page"
BODY_LIMITS = BodyLimits(body_bytes=2**14)
# Longest time of a vote that is believed, in seconds.
LONGEST_VOTE = 24 * 60 * 60
# A page asks again after this status. The vote is not lost: the page sends it until it is recorded.
STORAGE_FAULT = 507
logger = logging.getLogger(__name__)


def build_application(
    session: Session,
    *,
    on_vote: Callable[[], None] = lambda: None,
    on_unusable: Callable[[str, str], None] = lambda name, error: None,
    lifespan: Callable[[Starlette], AbstractAsyncContextManager[None]] | None = None,
) -> Starlette:
    """
    The application: a page for each annotator at /vote/NAME, and what the page calls.

    Args:
        session: pairs, annotators and votes.
        on_vote: called after each recorded vote and undo.
        on_unusable: called with name and error of a pair whose pictures cannot be shown.
        lifespan: context that is open while the application runs.
    """
    endpoints = _Endpoints(session, on_vote, on_unusable)
    return Starlette(
        routes=[
            Route("/", endpoints.links),
            Route("/vote/{annotator}", endpoints.page),
            Route("/api/{annotator}/pair", endpoints.pair),
            Route("/api/{annotator}/vote", endpoints.vote, methods=["POST"]),
            Route("/api/{annotator}/undo", endpoints.undo, methods=["POST"]),
            Route("/pictures/{pair}/{side}", endpoints.picture),
            Mount("/page", StaticFiles(directory=PAGE)),
        ],
        exception_handlers={HTTPException: _problem_of, ValueError: _problem_of, OSError: _problem_of},
        lifespan=lifespan,
    )


def link(annotator: str) -> str:
    """Path of an annotator's page."""
    return f"/vote/{quote(annotator, safe='')}"


class _Endpoints:
    def __init__(self, session: Session, on_vote: Callable[[], None], on_unusable: Callable[[str, str], None]) -> None:
        self._session = session
        self._on_vote = on_vote
        self._on_unusable = on_unusable
        self._bodies = BodyReader(BODY_LIMITS)

    async def links(self, request: Request) -> Response:
        """The page of the only annotator, or a list of links."""
        names = self._session.annotators
        if len(names) == 1:
            return RedirectResponse(link(names[0]))
        items = "".join(f'<li><a href="{link(name)}">{html.escape(name)}</a></li>' for name in names)
        return HTMLResponse((PAGE / "links.html").read_text("utf-8").replace("<!-- links -->", items))

    async def page(self, request: Request) -> Response:
        self._annotator(request)
        return FileResponse(PAGE / "vote.html", headers={"cache-control": "no-cache"})

    async def pair(self, request: Request) -> Response:
        return JSONResponse(await self._state(self._annotator(request)))

    async def vote(self, request: Request) -> Response:
        annotator, body = self._annotator(request), await self._body(request)
        left, choice = body.get("left"), body.get("choice")
        if left not in SIDES or choice not in CHOICES:
            raise ValueError(f"left, choice: expected one of {SIDES} and of {CHOICES}, got {left!r} and {choice!r}")
        recorded = self._session.vote(annotator, _number(body), str(body.get("pair")), left, choice, _seconds(body))
        return await self._answer(annotator, recorded)

    async def undo(self, request: Request) -> Response:
        annotator, body = self._annotator(request), await self._body(request)
        return await self._answer(annotator, self._session.undo(annotator, _number(body)))

    async def picture(self, request: Request) -> Response:
        pair, side = self._session.pairs.get(request.path_params["pair"]), request.path_params["side"]
        if pair is None or side not in ("a", "b"):
            raise HTTPException(404, "expected a picture of a pair")
        try:
            content = await run_in_threadpool(encoded_picture, pair.image_a if side == "a" else pair.image_b)
        except ValueError as error:
            raise HTTPException(404, "the picture cannot be read") from error
        # A pair is identified by the contents of its pictures, so that they never change.
        return Response(content, media_type="image/png", headers={"cache-control": "max-age=86400, immutable"})

    def _annotator(self, request: Request) -> str:
        name = request.path_params["annotator"]
        if name not in self._session.annotators:
            raise HTTPException(404, f"annotator: expected the link of an annotator, got {name!r}")
        return name

    async def _body(self, request: Request) -> dict[str, Any]:
        # Other sites cannot send this type without the consent of this server.
        kind = request.headers.get("content-type", "").partition(";")[0].strip()
        if kind != "application/json":
            raise HTTPException(415, f"content-type: expected application/json, got {kind or 'none'}")
        content = await self._bodies.read(request)
        self._bodies.release(len(content))
        try:
            body = json.loads(content)
        except ValueError as error:
            raise HTTPException(400, "body: expected JSON") from error
        if not isinstance(body, dict):
            raise HTTPException(400, f"body: expected an object, got {type(body).__name__}")
        return body

    async def _answer(self, annotator: str, recorded: bool) -> Response:
        if recorded:
            self._on_vote()
        return JSONResponse({"recorded": recorded, **await self._state(annotator)})

    async def _state(self, annotator: str) -> dict[str, Any]:
        """What the page shows."""
        shown = await self._present(annotator)
        progress = self._session.progress(annotator)
        state: dict[str, Any] = {
            "done": progress.done,
            "remaining": progress.remaining,
            "seconds": progress.seconds,
            "can_undo": self._session.can_undo(annotator),
            "number": self._session.next_number(annotator),
            "pair": None,
        }
        if shown is not None:
            sides = (shown.left, "b" if shown.left == "a" else "a")
            left, right = (f"/pictures/{shown.pair.key}/{side}" for side in sides)
            state |= {
                "pair": shown.pair.key,
                "left": shown.left,
                "prompt": shown.pair.prompt,
                "pictures": [left, right],
            }
        return state

    async def _present(self, annotator: str) -> Presentation | None:
        """The annotator's next pair whose pictures can be shown."""
        while (shown := self._session.present(annotator)) is not None:
            try:
                for path in (shown.pair.image_a, shown.pair.image_b):
                    await run_in_threadpool(encoded_picture, path)
            except ValueError as error:
                self._session.drop(shown.pair)
                self._on_unusable(f"pair {shown.pair.key}", str(error))
            else:
                return shown
        return None


def _number(body: dict[str, Any]) -> int:
    number = body.get("number")
    if not isinstance(number, int):
        raise HTTPException(400, f"number: expected the number of a presentation, got {number!r}")
    return number


def _seconds(body: dict[str, Any]) -> float | None:
    """The time of a vote if it is credible; a vote counts without it."""
    seconds = body.get("seconds")
    return float(seconds) if isinstance(seconds, int | float) and 0 <= seconds <= LONGEST_VOTE else None


async def _problem_of(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        return JSONResponse({"error": error.detail}, error.status_code)
    if isinstance(error, ValueError):
        return JSONResponse({"error": str(error)}, 400)
    logger.error("a vote cannot be written: %s", error)
    return JSONResponse({"error": f"the vote cannot be written: {error}"}, STORAGE_FAULT)


def open_socket(host: str, port: int) -> socket.socket:
    """A socket that listens on a port; 0 takes a free one.

    Raises:
        ValueError: the address is not one of this machine, or the port is in use.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ValueError(f"host, port: expected an address that is free, got {host} and {port}: {error}") from error


def serve(application: Starlette, listening: Sequence[socket.socket]) -> None:
    """Serve until SIGTERM or SIGINT."""
    config = uvicorn.Config(application, log_level="warning", access_log=False, timeout_graceful_shutdown=2)
    uvicorn.Server(config).run(sockets=list(listening))
