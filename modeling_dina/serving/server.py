"""The process of the reward server: engines on their devices, a queue, the application on a port, and a shutdown that
first answers all accepted requests."""

import asyncio
from collections.abc import Sequence

import uvicorn
from PIL import Image

from modeling_dina.serving.application import build_application
from modeling_dina.serving.batching import Batcher
from modeling_dina.serving.bodies import BodyLimits
from modeling_dina.serving.engine import RewardEngine
from modeling_dina.serving.metrics import Metrics

# 48 MB in memory. PIL's default limit is five times as large, and a request may contain sixteen images.
MAX_IMAGE_PIXELS = 4096**2
# Longer than clients keep idle connections (aiohttp: 15 s), so that no connection is closed during a request.
KEEP_ALIVE_SECONDS = 75
# Timeout for hanging connections after every accepted request has been answered.
CLOSING_SECONDS = 2


def serve_engines(
    engines: Sequence[RewardEngine],
    *,
    host: str,
    port: int,
    max_batch_size: int,
    max_wait: float,
    max_queue: int,
    limits: BodyLimits,
    token: str | None,
) -> None:
    """
    Serve until SIGTERM or SIGINT. Then refuse new requests with status 503, answer all accepted ones, and return.

    Args:
        engines: engines of one model, one per device.
        host: address to listen on.
        port: TCP port; 0 takes a free one and logs it.
        max_batch_size, max_wait, max_queue: as in `Batcher`, in samples and seconds.
        limits: limits of request bodies.
        token: bearer token that clients of /v1 must send; None requires none.
    """
    Image.MAX_IMAGE_PIXELS = MAX_IMAGE_PIXELS
    metrics = Metrics()
    batcher = Batcher(engines, metrics, max_batch_size=max_batch_size, max_wait=max_wait, max_queue=max_queue)
    application = build_application(
        engines[0], batcher, metrics, limits=limits, token=token, lifespan=lambda _: batcher.running()
    )
    config = uvicorn.Config(
        application,
        host=host,
        port=port,
        access_log=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=CLOSING_SECONDS,
    )
    _DrainingServer(config, batcher).run()


class _DrainingServer(uvicorn.Server):
    """A uvicorn server that, before it stops, answers all accepted requests and refuses others with status 503.
    uvicorn itself would refuse connections at once."""

    def __init__(self, config: uvicorn.Config, batcher: Batcher):
        super().__init__(config)
        self._batcher = batcher

    async def shutdown(self, sockets=None) -> None:
        self._batcher.close()
        while self._batcher.samples and not self.force_exit:
            await asyncio.sleep(0.02)
        await super().shutdown(sockets)
