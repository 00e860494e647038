"""The application as a deployment with two replicas, on a Ray cluster of this machine."""

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from safetensors.torch import save

from modeling_dina.serving.protocol import parse_score_request
from tests.load.fuzz_bodies import good_tensors
from tests.load.load_test import HEADERS, Client
from tests.processes import unused_port

# Ray's own models are of an older pydantic.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


@pytest.fixture(scope="module", autouse=True)
def environment():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("DINA_SERVER_TOKEN", "s3cret")  # of the replicas, and of `Client`
        yield


@pytest.fixture(scope="module")
def url():
    ray = pytest.importorskip("ray", reason="needs dina-lrm[ray]")
    from ray import serve

    from modeling_dina.serving.ray_app import Settings, build

    port = unused_port()
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(build(Settings(replicas=2, max_wait_ms=20)), name="reward")
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()
        ray.shutdown()


def test_replicas_score_as_the_model_does(url, engine):
    bodies = [good_tensors(seed, samples=1 + seed % 3) for seed in range(40)]
    for tensors in bodies[::4]:
        tensors["prompt_embeds"] = tensors["prompt_embeds"][:, :20].contiguous()
    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda tensors: Client(url).post(save(tensors)), bodies))
    for tensors, (status, answer) in zip(bodies, answers, strict=True):
        assert status == 200, answer
        expected = engine.answer([parse_score_request(save(tensors))])[0]
        assert answer["raw_scores"] == pytest.approx(expected, abs=2e-6)

    # The metrics are those of one of the two replicas.
    families = text_string_to_metric_families(httpx.get(f"{url}/metrics").text)
    values = {sample.name: sample.value for family in families for sample in family.samples}
    assert 0 < values["dina_batch_samples_count"] < values["dina_requests_total"], "nothing was batched"


def test_refusals_are_those_of_the_server(url):
    body = save(good_tensors(0))
    assert httpx.post(f"{url}/v1/score", content=body, headers=HEADERS).status_code == 401
    assert Client(url).post(b"nothing")[0] == 422
    assert Client(url).post(body, headers={**HEADERS, "x-drm-protocol-version": "3"})[0] == 400
    assert httpx.get(f"{url}/readyz").json() == {"status": "ready"}
