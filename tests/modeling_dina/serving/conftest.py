"""The embedded model behind a real HTTP server, in a thread of the test."""

import threading
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

EMBEDDED = Path(__file__).parents[3] / "modeling_dina" / "tiny"


@pytest.fixture(scope="session")
def engine():
    from modeling_dina.serving.engine import RewardEngine

    return RewardEngine.from_pretrained(str(EMBEDDED), device="cpu", max_batch_size=8)


@pytest.fixture
def hooked(engine):
    """A function that has another called with the noisy latents and the levels of every batch."""
    handles = []

    def hook(function):
        def call(module, arguments):
            noisy_latents, timestep = arguments[:2]
            function(noisy_latents, timestep / 1000)  # whose result, if any, would replace the arguments

        handles.append(engine.model.backbone.register_forward_pre_hook(call))

    yield hook
    for handle in handles:
        handle.remove()


@pytest.fixture
def serve(engine):
    """A context manager: the application with these options of `Batcher` and `build_application` on a free port, as
    an object of url, client, batcher and metrics."""
    import uvicorn

    from modeling_dina.serving.application import build_application
    from modeling_dina.serving.batching import Batcher
    from modeling_dina.serving.bodies import BodyLimits
    from modeling_dina.serving.metrics import Metrics
    from tests.load.load_test import Client

    @contextmanager
    def run(limits=BodyLimits(), token=None, **options):  # noqa: B008
        metrics = Metrics()
        batcher = Batcher([engine], metrics, max_batch_size=8, **options)
        application = build_application(
            engine, batcher, metrics, limits=limits, token=token, lifespan=lambda _: batcher.running()
        )
        server = uvicorn.Server(uvicorn.Config(application, port=0, log_level="warning", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        try:
            yield SimpleNamespace(url=url, client=Client(url), batcher=batcher, metrics=metrics)
        finally:
            server.should_exit = True
            thread.join()

    return run
