"""The same application on Ray Serve, where one machine is not enough: replicas, each with a model and batches of its
own.

    serve run modeling_dina.serving.ray_app:build model=FOLDER_OR_HUB_ID replicas=4 gpus=1

Ray spreads requests over the replicas and keeps the queue, and says 503 where `dina serve` says 429. /metrics is that
of the replica which happens to answer: Ray's own metrics are those of the whole.
"""

import asyncio
import os
from collections import defaultdict
from collections.abc import Hashable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from PIL import Image
from pydantic import BaseModel, Field
from ray import serve
from starlette.applications import Starlette

from modeling_dina.options import EMBEDDED_MODEL, quieten_libraries, usable_device
from modeling_dina.serving import TOKEN_VARIABLE
from modeling_dina.serving.server import MAX_IMAGE_PIXELS

from .application import build_application
from .bodies import BodyLimits
from .engine import Answer, Job, RewardEngine
from .metrics import Metrics


class Settings(BaseModel, extra="forbid"):
    """
    Attributes:
        model: folder or Hub id, the same on every node of the cluster.
        revision: branch, tag or commit of a Hub id.
        cache_dir: folder of downloads from the Hub; None is the Hub's own.
        local_files_only: read what has been downloaded already, without a network.
        replicas: how many models there are.
        gpus: of each replica; 0 scores on the CPU.
        latents_only: no /v1/compare, and no VAE and text encoders in memory.
        max_batch_size: requests in a batch, and samples scored at a time.
        max_wait_ms: how long a request may wait for others.
        max_ongoing_requests: that a replica holds at a time; more wait in Ray's queue.
        max_queued_requests: that wait there at each proxy; Ray refuses more with 503.
    """

    model: str = EMBEDDED_MODEL
    revision: str = "main"
    cache_dir: str | None = None
    local_files_only: bool = False
    replicas: int = Field(1, ge=1)
    gpus: float = Field(0, ge=0)
    latents_only: bool = False
    max_batch_size: int = Field(32, ge=1)
    max_wait_ms: float = Field(5, ge=0)
    max_ongoing_requests: int = Field(128, ge=1)
    max_queued_requests: int = Field(1024, ge=1)


def build(settings: Settings) -> serve.Application:
    """The application for `serve run` and `serve.run`. A token in DINA_SERVER_TOKEN is asked of every client."""
    deployment = serve.deployment(
        num_replicas=settings.replicas,
        ray_actor_options={"num_gpus": settings.gpus},
        max_ongoing_requests=settings.max_ongoing_requests,
        max_queued_requests=settings.max_queued_requests,
    )
    return deployment(Replica).bind(settings, os.environ.get(TOKEN_VARIABLE) or None)


@serve.ingress()
class Replica:
    """One engine with Ray's batching before it: the `Queue` of an application of its own."""

    def __init__(self, settings: Settings, token: str | None):
        quieten_libraries()
        Image.MAX_IMAGE_PIXELS = MAX_IMAGE_PIXELS
        self._engine = RewardEngine.from_pretrained(
            settings.model,
            device=usable_device("cuda" if settings.gpus else "cpu"),
            latents_only=settings.latents_only,
            max_batch_size=settings.max_batch_size,
            revision=settings.revision,
            cache_dir=settings.cache_dir,
            local_files_only=settings.local_files_only,
        )
        self._token = token
        self._metrics = Metrics()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reward")
        batching: Any = self._answer_batch  # `serve.batch` adds these methods
        batching.set_max_batch_size(settings.max_batch_size)
        batching.set_batch_wait_timeout_s(settings.max_wait_ms / 1000)

    def __serve_build_asgi_app__(self) -> Starlette:
        return build_application(self._engine, self, self._metrics, limits=BodyLimits(), token=self._token)

    def check_open(self) -> None:
        """Always: Ray asks no replica that is full or going away."""

    async def submit(self, job: Job) -> Answer:
        answer = await self._answer_batch(job)
        if isinstance(answer, Exception):
            raise answer
        return answer

    @serve.batch
    async def _answer_batch(self, jobs: list[Job]) -> list[Answer | Exception]:
        groups: dict[Hashable, list[int]] = defaultdict(list)
        for index, job in enumerate(jobs):
            groups[job.batch_key].append(index)
        answers: dict[int, Answer | Exception] = {}
        for indices in groups.values():
            group = [jobs[index] for index in indices]
            self._metrics.batch_samples.observe(sum(job.size for job in group))
            given = await asyncio.get_running_loop().run_in_executor(self._thread, self._engine.answer, group)
            answers.update(zip(indices, given, strict=True))
        return [answers[index] for index in range(len(jobs))]
