"""The application over real HTTP: answers, refusals, limits, metrics, and how it closes."""

import base64
import http.client
import json
import re
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families
from safetensors.torch import save

from modeling_dina.serving.bodies import BodyLimits
from modeling_dina.serving.protocol import ENSEMBLE_VERSION, VERSION_HEADER, parse_score_request
from tests.load.fuzz_bodies import ensemble_tensors, good_tensors
from tests.load.load_test import HEADERS, Client

EXAMPLES = Path(__file__).parents[3] / "space" / "examples"
PROMPT = "a red circle and a blue square"
IMAGES = [(EXAMPLES / name).read_bytes() for name in ("clear_1.png", "clear_2.png")]


@pytest.fixture
def server(serve):
    with serve() as running:
        yield running


def alone(engine, tensors):
    return engine.answer([parse_score_request(save(tensors))])[0]


def metrics(server):
    """Values of all samples by name and labels."""
    text = httpx.get(f"{server.url}/metrics").text
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_published_exchange(server, engine):
    tensors = good_tensors(0)
    response = httpx.post(f"{server.url}/v1/score", content=save(tensors), headers=HEADERS)
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.json() == {"protocol_version": "1", "raw_scores": alone(engine, tensors)}


def test_ensemble_exchange(server, engine):
    tensors = ensemble_tensors(0, samples=2)
    headers = {**HEADERS, VERSION_HEADER: "2"}
    status, answer = server.client.post(save(tensors, {"mode": "mean"}), headers=headers)
    sigmas, num_draws, seeds = (tensors.pop(name) for name in ("sigmas", "num_draws", "seeds"))
    with torch.no_grad():
        expected = engine.model.reward(
            **tensors, sigmas=sigmas, num_draws=int(num_draws), seed=seeds.tolist(), mode="mean"
        )
    assert (status, answer.keys()) == (
        200,
        {"protocol_version", "scores", "samples", "sigmas", "variance", "weights"},
    )
    assert answer["protocol_version"] == "2"
    for name in ("scores", "samples"):
        torch.testing.assert_close(torch.tensor(answer[name]), expected[name], rtol=0, atol=2e-6)
    for name in ("sigmas", "variance", "weights"):
        torch.testing.assert_close(torch.tensor(answer[name]), expected[name][:, None].expand(2, 2))
    assert server.client.post(save(good_tensors(0)), headers=headers)[0] == 422


@pytest.mark.slow
def test_ensembles_of_many_clients(server, engine):
    """Alternately of two and of three levels, which cannot share a batch."""
    headers = {**HEADERS, VERSION_HEADER: "2"}
    bodies = [save({**ensemble_tensors(seed), "sigmas": torch.rand(2 + seed % 2)}) for seed in range(12)]
    with ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(lambda body: Client(server.url).post(body, headers=headers), bodies))
    for body, (status, answer) in zip(bodies, answers, strict=True):
        assert status == 200
        (expected,) = engine.answer([parse_score_request(body, ENSEMBLE_VERSION)])
        assert answer["scores"] == pytest.approx(expected["scores"], abs=1e-5)


def test_client_of_the_documentation(server, capsys):
    page = (EXAMPLES.parents[1] / "docs" / "serve.md").read_text()
    (client,) = [code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "/v1/info" in code]
    exec(client.replace("http://127.0.0.1:8000", server.url), {})
    assert re.fullmatch(r"scores \[\S+, \S+\]\nstandard errors \[\S+, \S+\]\n", capsys.readouterr().out)


def test_info_describes_model_and_limits(serve, engine):
    config = engine.model.config
    with serve(token="s3cret", limits=BodyLimits(body_bytes=1000)) as server:
        assert httpx.get(f"{server.url}/v1/info").status_code == 401
        server.batcher.close()  # information does not need the queue
        response = httpx.get(f"{server.url}/v1/info", headers={"authorization": "Bearer s3cret"})
    assert (response.status_code, response.json()) == (
        200,
        {
            "protocol_versions": ["1", "2"],
            "family": "sd3",
            "latent_channels": 16,
            "patch_size": 2,
            "max_side": 16,
            "text_width": 128,
            "pooled_width": 128,
            "accepts_mask": False,
            "max_tokens": 1024,
            "compares_images": True,
            "sigmas": config.default_sigmas,
            "num_draws": config.default_num_draws,
            "mode": config.ensemble_mode,
            "limits": {"body_bytes": 1000, "levels": 16, "draws": 16},
        },
    )


def test_many_clients_each_get_their_own_scores(server, engine):
    bodies = [good_tensors(seed, samples=1 + seed % 3) for seed in range(40)]
    for index, tensors in enumerate(bodies):
        if index % 4 == 0:
            tensors["prompt_embeds"] = tensors["prompt_embeds"][:, :20].contiguous()
        if index % 5 == 0:
            del tensors["seeds"]
    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda tensors: Client(server.url).post(save(tensors)), bodies))
    for tensors, (status, answer) in zip(bodies, answers, strict=True):
        assert status == 200
        assert answer["raw_scores"] == pytest.approx(alone(engine, tensors), abs=2e-6)
    assert metrics(server)["dina_batch_samples_count",] < len(bodies), "nothing was batched"


@pytest.mark.parametrize("version", [None, "3", "1.0", ""])
def test_other_versions_are_refused(server, version):
    headers = {} if version is None else {"x-drm-protocol-version": version}
    status, answer = server.client.post(save(good_tensors(0)), headers=headers)
    assert status == 400
    assert answer["error"].startswith("x-drm-protocol-version: expected 1 or 2, got ")


def test_bad_bodies_are_refused_and_the_next_is_served(server):
    misfit = {**good_tensors(0), "latents": torch.ones(1, 4, 8, 8)}
    assert server.client.post(b"nothing")[0] == 422
    assert server.client.post(save(misfit)) == (422, {"error": "latents: expected [B, 16, H, W], got [1, 4, 8, 8]"})
    assert server.client.post(save(good_tensors(0)))[0] == 200
    assert metrics(server)["dina_requests_total", "score", "422"] == 2


def test_unknown_paths_and_methods_get_a_reason(server):
    assert httpx.get(f"{server.url}/v2/score").json() == {"error": "Not Found"}
    response = httpx.get(f"{server.url}/v1/score")
    assert (response.status_code, response.json()) == (405, {"error": "Method Not Allowed"})


def test_fault_is_told_and_counted(server, hooked):
    def fail(latents, sigma):
        if torch.isclose(sigma, torch.tensor(0.25)).any():
            raise RuntimeError("secrets of the device")

    hooked(fail)
    bad = {**good_tensors(0), "u": torch.tensor([0.25])}
    assert server.client.post(save(bad)) == (500, {"error": "RuntimeError in the model"})
    assert server.client.post(save(good_tensors(0)))[0] == 200
    assert metrics(server)["dina_model_faults_total",] == 1


def test_bodies_that_are_too_large_are_refused_however_they_come(serve):
    with serve(limits=BodyLimits(body_bytes=100_000)) as server:
        status, answer = server.client.post(bytes(100_001))
        assert (status, answer["error"]) == (413, "body: expected at most 100000 bytes, got 100001")
        chunks = (bytes(10_000) for _ in range(50))
        response = httpx.post(f"{server.url}/v1/score", content=chunks, headers=HEADERS)
        assert (response.status_code, response.json()["error"]) == (
            413,
            "body: expected at most 100000 bytes, got more",
        )
        assert server.client.post(save(good_tensors(0)))[0] == 200


def test_claim_without_a_body_holds_nothing(serve):
    with serve(limits=BodyLimits(body_bytes=10**6, total_bytes=10**6, seconds=1)) as server:
        hanging = []
        for _ in range(5):
            connection = http.client.HTTPConnection(urlsplit(server.url).netloc)
            connection.putrequest("POST", "/v1/score")
            for name, value in {**HEADERS, "content-length": "900000"}.items():
                connection.putheader(name, value)
            connection.endheaders(bytes(10))
            hanging.append(connection)
        assert server.client.post(save(good_tensors(0)))[0] == 200
        responses = [connection.getresponse() for connection in hanging]
        assert [response.status for response in responses] == [408] * 5
        assert json.loads(responses[0].read()) == {"error": "body: expected within 1 seconds"}


def test_bodies_in_waiting_are_bounded_together(serve, hooked):
    body = save(good_tensors(0))
    go_on = threading.Event()
    hooked(lambda latents, sigma: go_on.wait(10))
    with serve(limits=BodyLimits(total_bytes=2 * len(body))) as server, ThreadPoolExecutor(2) as threads:
        waiting = [threads.submit(Client(server.url).post, body) for _ in range(2)]
        while server.batcher.samples < 2:
            time.sleep(0.01)
        assert server.client.post(body)[0] == 429
        go_on.set()
        assert [each.result()[0] for each in waiting] == [200, 200]
        assert server.client.post(body)[0] == 200


def test_full_queue_says_when_to_come_again(serve, hooked):
    go_on = threading.Event()
    hooked(lambda latents, sigma: go_on.wait(10))
    with serve(max_queue=1) as server, ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(Client(server.url).post, save(good_tensors(0)))
        while not server.batcher.samples:
            time.sleep(0.01)
        response = httpx.post(f"{server.url}/v1/score", content=save(good_tensors(1)), headers=HEADERS)
        assert (response.status_code, response.headers["retry-after"]) == (429, "1")
        assert httpx.get(f"{server.url}/readyz").status_code == 503
        go_on.set()
        assert waiting.result()[0] == 200
        assert server.client.post(save(good_tensors(1)))[0] == 200


def test_closing_server_answers_what_it_accepted(serve, hooked):
    go_on = threading.Event()
    hooked(lambda latents, sigma: go_on.wait(10))
    with serve() as server, ThreadPoolExecutor(12) as threads:
        assert httpx.get(f"{server.url}/readyz").json() == {"status": "ready"}
        waiting = [threads.submit(Client(server.url).post, save(good_tensors(seed))) for seed in range(12)]
        while server.batcher.samples < 12:
            time.sleep(0.01)
        server.batcher.close()
        response = httpx.post(f"{server.url}/v1/score", content=save(good_tensors(0)), headers=HEADERS)
        assert (response.status_code, response.json()) == (503, {"error": "the server is shutting down"})
        assert httpx.get(f"{server.url}/readyz").status_code == 503
        assert httpx.get(f"{server.url}/healthz").json() == {"status": "ok"}
        go_on.set()
        assert [each.result()[0] for each in waiting] == [200] * 12


@pytest.mark.parametrize(
    "authorization", [None, "Bearer", "Bearer wrong", "Basic s3cret", "s3cret", "Bearer caf\u00e9"]
)
def test_token_is_asked_for(serve, authorization):
    headers = HEADERS if authorization is None else {**HEADERS, "authorization": authorization.encode("latin-1")}
    with serve(token="s3cret") as server:
        response = httpx.post(f"{server.url}/v1/score", content=save(good_tensors(0)), headers=headers)
        assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
        good = {**HEADERS, "authorization": "Bearer s3cret"}
        assert server.client.post(save(good_tensors(0)), headers=good)[0] == 200
        assert httpx.get(f"{server.url}/healthz").status_code == 200


def test_comparison_of_images_as_json_and_as_a_form(server, engine):
    expected = engine.scorer.rank(prompt=PROMPT, images=[EXAMPLES / "clear_1.png", EXAMPLES / "clear_2.png"]).to_dict()
    images = [base64.b64encode(image).decode() for image in IMAGES]
    as_json = httpx.post(f"{server.url}/v1/compare", json={"prompt": PROMPT, "images": images})
    form = {"data": {"prompt": PROMPT}, "files": [("images", image) for image in IMAGES]}
    as_form = httpx.post(f"{server.url}/v1/compare", **form)
    assert (as_json.status_code, as_form.status_code) == (200, 200), as_form.text
    assert as_json.json() == as_form.json() == expected
    assert expected["order"] == [0, 1]


def bomb():
    """A PNG of a few bytes that claims 50,000 x 50,000 pixels."""
    size = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", size), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


@pytest.mark.parametrize(
    ("data", "files", "reason"),
    [
        ({"prompt": PROMPT}, [("images", IMAGES[0])], "images: expected 2 to 16, got 1"),
        ({"prompt": PROMPT}, [("images", IMAGES[0]), ("images", b"no")], "images[1]: expected a picture"),
        ({"prompt": PROMPT}, [("images", IMAGES[0]), ("images", bomb())], "images[1]: refused before decoding"),
        ({"prompt": PROMPT}, [("pictures", IMAGES[0])] * 2, "body: expected a field prompt and files images"),
        ({"prompt": " "}, [("images", IMAGES[0])] * 2, "prompt: expected a text"),
        ({}, [("images", IMAGES[0])] * 2, "body: expected a field prompt and files images"),
        ({}, [("images", IMAGES[0])] * 2 + [("prompt", b"a file")], "prompt: expected a text"),
        ({"prompt": PROMPT}, [("images", IMAGES[0])] * 17, "Too many files"),
    ],
)
def test_bad_forms_are_refused_with_a_reason(server, data, files, reason):
    response = httpx.post(f"{server.url}/v1/compare", data=data, files=files)
    assert response.status_code in (400, 422)
    assert response.json()["error"].startswith(reason)


def test_reason_is_short_whatever_it_quotes(server):
    body = json.dumps({"prompt": PROMPT, "x" * 100_000: "\ud800"})
    response = httpx.post(f"{server.url}/v1/compare", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 422
    assert len(response.text) < 2000


@pytest.mark.parametrize("kind", [None, "text/plain", "application/octet-stream"])
def test_other_kinds_of_comparison_are_refused(server, kind):
    headers = {} if kind is None else {"content-type": kind}
    response = httpx.post(f"{server.url}/v1/compare", content=b"{}", headers=headers)
    assert (response.status_code, response.json()["error"].partition(",")[0]) == (
        415,
        "content-type: expected application/json or multipart/form-data",
    )


def test_form_without_a_boundary_is_refused(server):
    response = httpx.post(f"{server.url}/v1/compare", content=b"x", headers={"content-type": "multipart/form-data"})
    assert response.status_code == 400
    assert "error" in response.json()


def test_client_that_goes_away_harms_nobody(server):
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc)
    connection.putrequest("POST", "/v1/score")
    for name, value in {**HEADERS, "content-length": "50000"}.items():
        connection.putheader(name, value)
    connection.endheaders(bytes(100))
    time.sleep(0.1)
    connection.close()
    deadline = time.monotonic() + 5
    while ("dina_requests_total", "score", "499") not in metrics(server):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert server.client.post(save(good_tensors(0)))[0] == 200
