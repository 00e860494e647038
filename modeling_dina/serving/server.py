"""The reward server's process: engines on their devices, the queue before them, the application on a port, and an end
that leaves no accepted request without its answer."""

import asyncio
from collections.abc import Sequence

import uvicorn
from PIL import Image

from modeling_dina.serving.application import build_application
from modeling_dina.serving.batching import Batcher
from modeling_dina.serving.bodies import BodyLimits
from modeling_dina.serving.engine import RewardEngine
from modeling_dina.serving.metrics import Metrics

# 48 MB in memory. PIL's own limit is five times as much, and a request may bring sixteen.
MAX_IMAGE_PIXELS = 4096**2
# Longer than clients keep idle connections (aiohttp: 15 s), so that none is closed under a request on its way.
KEEP_ALIVE_SECONDS = 75
# For connections that hang, once every accepted request has been answered.
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
    Serves until SIGTERM or SIGINT; then refuses what is new with 503, answers what was accepted, and returns.

    Args:
        engines: of one model, one for each device.
        port: 0 takes a free one and logs it.
        max_batch_size, max_wait, max_queue: of the `Batcher`; seconds and samples.
        token: bearer token that /v1 asks for.
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
    """uvicorn refuses connections as soon as it is told to stop; this one first answers all that it has accepted, and
    says 503 to the rest."""

    def __init__(self, config: uvicorn.Config, batcher: Batcher):
        super().__init__(config)
        self._batcher = batcher

    async def shutdown(self, sockets=None) -> None:
        self._batcher.close()
        while self._batcher.samples and not self.force_exit:
            await asyncio.sleep(0.02)
        await super().shutdown(sockets)
