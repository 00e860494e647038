"""Reading request bodies with limits on memory and time."""

import asyncio
from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.requests import Request


@dataclass(frozen=True)
class BodyLimits:
    """
    Attributes:
        body_bytes: maximum size of one body.
        total_bytes: maximum total size of all bodies that are being read or processed.
        seconds: maximum time in which a body must arrive.
    """

    body_bytes: int = 64 * 2**20
    total_bytes: int = 1024 * 2**20
    seconds: float = 30


class BodyReader:
    """Reads bodies within limits. It counts received bytes, not announced ones, so that a client cannot block others
    by announcing large bodies."""

    def __init__(self, limits: BodyLimits):
        self.limits = limits
        self._total_bytes = 0

    async def read(self, request: Request) -> bytes:
        """
        Read the body, whose length counts towards the total until `release` is called.

        Raises:
            HTTPException: status 413 if the body is too large, 408 if it is too slow, 429 if the total is too large.
        """
        announced = request.headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > self.limits.body_bytes:
            raise HTTPException(413, f"body: expected at most {self.limits.body_bytes} bytes, got {announced}")
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
        """Subtract a processed body from the total."""
        self._total_bytes -= size

    async def _collect(self, request: Request, chunks: list[bytes]) -> None:
        size = 0
        async for chunk in request.stream():
            chunks.append(chunk)
            size += len(chunk)
            self._total_bytes += len(chunk)
            if size > self.limits.body_bytes:
                raise HTTPException(413, f"body: expected at most {self.limits.body_bytes} bytes, got more")
            if self._total_bytes > self.limits.total_bytes:
                raise HTTPException(429, "the server's limit on the total size of requests is reached")
