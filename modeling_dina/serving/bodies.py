"""Reading request bodies in bounded memory and bounded time."""

import asyncio
from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.requests import Request


@dataclass(frozen=True)
class BodyLimits:
    """
    Attributes:
        body_bytes: of one body.
        total_bytes: of all bodies that are being read or wait for an answer.
        seconds: for a body to arrive.
    """

    body_bytes: int = 64 * 2**20
    total_bytes: int = 1024 * 2**20
    seconds: float = 30


class BodyReader:
    """Counts what really arrives, so that a client that claims much and sends little holds little."""

    def __init__(self, limits: BodyLimits):
        self.limits = limits
        self._held = 0

    async def read(self, request: Request) -> bytes:
        """
        The body, whose length counts as held until `release` is told of it.

        Raises:
            HTTPException: 413 for a body that is too large, 408 for one that is too slow, 429 if too much is held.
        """
        claimed = request.headers.get("content-length", "")
        if claimed.isdecimal() and int(claimed) > self.limits.body_bytes:
            raise HTTPException(413, f"body: expected at most {self.limits.body_bytes} bytes, got {claimed}")
        chunks: list[bytes] = []
        try:
            await asyncio.wait_for(self._collect(request, chunks), self.limits.seconds)
        except BaseException as error:
            self.release(sum(map(len, chunks)))
            if isinstance(error, asyncio.TimeoutError):
                raise HTTPException(408, f"body: expected within {self.limits.seconds:g} seconds") from error
            raise
        return b"".join(chunks)

    def release(self, size: int) -> None:
        """That many bytes are no longer held."""
        self._held -= size

    async def _collect(self, request: Request, chunks: list[bytes]) -> None:
        size = 0
        async for chunk in request.stream():
            chunks.append(chunk)
            size += len(chunk)
            self._held += len(chunk)
            if size > self.limits.body_bytes:
                raise HTTPException(413, f"body: expected at most {self.limits.body_bytes} bytes, got more")
            if self._held > self.limits.total_bytes:
                raise HTTPException(429, "the server holds as many bytes of requests as it may")
