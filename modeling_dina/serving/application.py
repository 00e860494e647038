"""The HTTP application: authentication, parsing of requests, and responses for all outcomes. Requests are passed to a
queue, which is a `Batcher` in this process or a replica of Ray Serve."""

import asyncio
import hmac
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .batching import QueueClosedError, QueueFullError
from .bodies import BodyLimits, BodyReader
from .comparison import MAX_IMAGES, CompareRequest, build_comparison, parse_json_comparison
from .engine import Answer, Job, ModelFaultError, RewardEngine
from .metrics import Metrics
from .protocol import (
    MAX_DRAWS,
    MAX_LEVELS,
    VERSION,
    VERSION_HEADER,
    VERSIONS,
    ScoreRequest,
    ensemble_answer,
    parse_score_request,
    score_answer,
)

RETRY = {"retry-after": "1"}
CLIENT_CLOSED = 499  # never received by the client, but counted in the metrics
MAX_REASON = 1000  # characters, because a reason may quote the request
logger = logging.getLogger(__name__)


class Queue(Protocol):
    """The interface between the application and its engines; see `Batcher`."""

    def check_open(self) -> None: ...

    async def submit(self, job: Job) -> Answer: ...


def build_application(
    engine: RewardEngine,
    queue: Queue,
    metrics: Metrics,
    *,
    limits: BodyLimits,
    token: str | None = None,
    lifespan: Callable[[Starlette], AbstractAsyncContextManager[None]] | None = None,
) -> Starlette:
    """
    The application with /v1/score, /v1/compare, /v1/info, /healthz, /readyz and /metrics.

    Args:
        engine: any of the engines, which checks requests before they are queued.
        queue: queue to which requests are passed.
        metrics: metrics to update.
        limits: limits of request bodies.
        token: bearer token that clients of /v1 must send; None requires none.
        lifespan: context that is open while the application runs.
    """
    endpoints = _Endpoints(engine, queue, metrics, BodyReader(limits), token)
    return Starlette(
        routes=[
            Route("/v1/score", endpoints.answered("score", endpoints.score), methods=["POST"]),
            Route("/v1/compare", endpoints.answered("compare", endpoints.compare), methods=["POST"]),
            Route("/v1/info", endpoints.answered("info", endpoints.info)),
            Route("/healthz", endpoints.healthz),
            Route("/readyz", endpoints.readyz),
            Route("/metrics", endpoints.metrics),
        ],
        exception_handlers={HTTPException: _http_error_response},  # for unknown paths and methods
        lifespan=lifespan,
    )


class _Endpoints:
    def __init__(self, engine: RewardEngine, queue: Queue, metrics: Metrics, bodies: BodyReader, token: str | None):
        self._engine = engine
        self._queue = queue
        self._metrics = metrics
        self._bodies = bodies
        self._token = token
        # Parsing a large body takes milliseconds, so it runs outside the event loop, one body at a time.
        self._parser = ThreadPoolExecutor(max_workers=1, thread_name_prefix="parse")

    def answered(self, name: str, endpoint: Callable[[Request], Awaitable[dict]]):
        """Wrap an endpoint so that it responds to every outcome and updates the metrics."""

        async def handle(request: Request) -> Response:
            start = time.perf_counter()
            response = await self._respond(request, endpoint)
            self._metrics.requests.labels(name, response.status_code).inc()
            self._metrics.request_seconds.labels(name).observe(time.perf_counter() - start)
            return response

        return handle

    async def score(self, request: Request) -> dict:
        version = request.headers.get(VERSION_HEADER)
        if version not in VERSIONS:
            raise HTTPException(400, f"{VERSION_HEADER}: expected {' or '.join(VERSIONS)}, got {version}")
        answer = await self._process(request, self._parse_score)
        if version == VERSION:
            assert isinstance(answer, list)
            return score_answer(answer)
        assert isinstance(answer, dict)
        return ensemble_answer(answer)

    async def compare(self, request: Request) -> dict:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        parsers = {"application/json": self._parse_json, "multipart/form-data": _parse_form}
        if kind not in parsers:
            raise HTTPException(415, f"content-type: expected {' or '.join(parsers)}, got {kind or 'none'}")
        ranking = await self._process(request, parsers[kind])
        assert isinstance(ranking, dict)
        return ranking

    async def info(self, request: Request) -> dict:
        """Describe the model, and the limits of a request."""
        limits = {"body_bytes": self._bodies.limits.body_bytes, "levels": MAX_LEVELS, "draws": MAX_DRAWS}
        return {**self._engine.info(), "limits": limits}

    async def healthz(self, request: Request) -> Response:
        """Report that the process is alive."""
        return JSONResponse({"status": "ok"})

    async def readyz(self, request: Request) -> Response:
        """Report whether a request would be accepted now."""
        try:
            self._queue.check_open()
        except (QueueClosedError, QueueFullError) as error:
            return _problem(503, str(error), RETRY)
        return JSONResponse({"status": "ready"})

    async def metrics(self, request: Request) -> Response:
        return Response(generate_latest(self._metrics.registry), headers={"content-type": CONTENT_TYPE_LATEST})

    async def _respond(self, request: Request, endpoint: Callable[[Request], Awaitable[dict]]) -> Response:
        try:
            if self._token is not None and not _has_token(request, self._token):
                raise HTTPException(401, "expected a bearer token", {"www-authenticate": "Bearer"})
            return JSONResponse(await endpoint(request))
        except HTTPException as error:
            return await _http_error_response(request, error)
        except ValueError as error:
            return _problem(422, str(error))
        except QueueFullError as error:
            return _problem(429, str(error), RETRY)
        except QueueClosedError as error:
            return _problem(503, str(error), RETRY)
        except ModelFaultError as error:
            self._metrics.model_faults.inc()
            return _problem(500, str(error))
        except ClientDisconnect:
            return Response(status_code=CLIENT_CLOSED)
        except Exception:
            logger.exception("internal error while processing a request")
            return _problem(500, "internal error")

    async def _process(self, request: Request, parse: Callable[[Request, bytes], Awaitable[Job]]) -> Answer:
        self._queue.check_open()  # before reading a body that would be refused in any case
        body = await self._bodies.read(request)
        size = len(body)
        try:
            job = await parse(request, body)
            del body  # the job has its own copy
            self._engine.check(job)
            with self._metrics.in_queue(job.size):
                return await self._queue.submit(job)
        finally:
            self._bodies.release(size)

    async def _parse_score(self, request: Request, body: bytes) -> ScoreRequest:
        version = request.headers[VERSION_HEADER]
        return await asyncio.get_running_loop().run_in_executor(self._parser, parse_score_request, body, version)

    async def _parse_json(self, request: Request, body: bytes) -> CompareRequest:
        return await asyncio.get_running_loop().run_in_executor(self._parser, parse_json_comparison, body)


async def _parse_form(request: Request, body: bytes) -> CompareRequest:
    async def replay():
        return {"type": "http.request", "body": body, "more_body": False}

    async with Request(request.scope, replay).form(max_files=MAX_IMAGES, max_fields=1) as form:
        files = form.getlist("images")
        images = [file for file in files if isinstance(file, UploadFile)]
        if form.keys() != {"prompt", "images"} or len(images) != len(files):
            raise ValueError(f"body: expected a field prompt and files images, got {sorted(form.keys())}")
        return build_comparison(form["prompt"], [await image.read() for image in images])


def _has_token(request: Request, token: str) -> bool:
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), token.encode())


async def _http_error_response(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = {**(error.headers or {}), **(RETRY if error.status_code == 429 else {})}
    return _problem(error.status_code, error.detail, headers)


def _problem(status: int, reason: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": reason[:MAX_REASON]}, status, headers)
