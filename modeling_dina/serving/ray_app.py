"""The reward server on a Ray cluster: replicas, each with its own model and batches.

    serve run modeling_dina.serving.ray_app:build model=FOLDER_OR_HUB_ID replicas=4 gpus=1

Ray distributes requests to the replicas and has the queue. If it is full, Ray returns status 503, not 429 like `dina
serve`. /metrics reports only the replica that answers; Ray's own metrics cover all replicas.
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
        revision: branch, tag or commit of the model on the Hub.
        backbone, backbone_revision: diffusion model that replaces the one that the model names, as a folder or Hub id,
            and its branch, tag or commit.
        cache_dir: folder for downloads from the Hub; None uses the Hub's cache.
        local_files_only: use only files that are already downloaded.
        replicas: number of replicas.
        gpus: number of GPUs per replica; 0 uses the CPU.
        latents_only: do not load VAE and text encoders, and do not serve /v1/compare.
        max_batch_size: maximum number of requests in a batch, and of samples scored at a time.
        max_wait_ms: milliseconds that a request may wait for others to fill a batch.
        max_ongoing_requests: maximum number of requests in a replica; more wait in Ray's queue.
        max_queued_requests: maximum number of requests waiting at each proxy; Ray refuses more with status 503.
    """

    model: str = EMBEDDED_MODEL
    revision: str = "main"
    backbone: str | None = None
    backbone_revision: str | None = None
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
    """Build the application for `serve run` and `serve.run`. If DINA_SERVER_TOKEN is set, clients must send it as
    bearer token."""
    deployment = serve.deployment(
        num_replicas=settings.replicas,
        ray_actor_options={"num_gpus": settings.gpus},
        max_ongoing_requests=settings.max_ongoing_requests,
        max_queued_requests=settings.max_queued_requests,
    )
    return deployment(Replica).bind(settings, os.environ.get(TOKEN_VARIABLE) or None)


@serve.ingress()
class Replica:
    """One engine with Ray's batching, which acts as the `Queue` of its own application."""

    def __init__(self, settings: Settings, token: str | None):
        quieten_libraries()
        Image.MAX_IMAGE_PIXELS = MAX_IMAGE_PIXELS
        self._engine = RewardEngine.from_pretrained(
            settings.model,
            device=usable_device("cuda" if settings.gpus else "cpu"),
            latents_only=settings.latents_only,
            max_batch_size=settings.max_batch_size,
            revision=settings.revision,
            backbone=settings.backbone,
            backbone_revision=settings.backbone_revision,
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
        """Do nothing: Ray sends no requests to a replica that is full or shutting down."""

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
