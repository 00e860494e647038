"""`dina serve` as a process: how it starts, what it survives, and how it ends. A short run of the load test."""

import base64
import io
import json

import httpx
import pytest
from PIL import Image
from safetensors.torch import save
from typer.testing import CliRunner

from modeling_dina.cli.app import app
from tests.load import load_test
from tests.load.fuzz_bodies import good_tensors
from tests.load.load_test import HEADERS, Client, run_server

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server():
    """Two workers that batch, and limits that a test can reach."""
    limits = ["--max-body-mb", "4", "--max-total-mb", "16", "--body-timeout", str(load_test.BODY_TIMEOUT)]
    with run_server("--device", "cpu", "--device", "cpu", *limits) as running:
        yield running


def test_load_test_writes_its_numbers_and_does_nothing_twice(server, tmp_path):
    out = tmp_path / "numbers.json"
    load_test.main(server.url, requests=64, fuzzed=20, out=out)
    written = out.read_text()
    rows = json.loads(written)["throughput"]["rows"]
    assert [row["clients"] for row in rows] == [1, 8, 64]
    assert all(row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"] for row in rows)

    served = httpx.get(f"{server.url}/metrics").text
    load_test.main(server.url, requests=64, fuzzed=20, out=out)
    assert out.read_text() == written
    assert httpx.get(f"{server.url}/metrics").text == served


def test_fuzzing_in_bounded_memory(server):
    Client(server.url).post(save(good_tensors(0)))
    before = server.resident_bytes()
    outcomes = load_test.fuzz(server.url, 400)
    assert len(outcomes) > 30
    assert server.resident_bytes() - before < 100 * 2**20
    assert "dina_model_faults_total 0.0" in httpx.get(f"{server.url}/metrics").text


def test_hanging_clients_are_sent_away_and_hinder_nobody(server):
    assert load_test.try_hanging_clients(server.url, 20)["p95_ms_beside_hanging"] < load_test.BODY_TIMEOUT * 1000


def test_endless_bodies_in_bounded_memory(server):
    load_test.try_long_bodies(server, clients=8, megabytes=32)


def test_large_picture_is_refused_before_it_is_decoded(server):
    file = io.BytesIO()
    Image.new("1", (5000, 5000)).save(file, "PNG")
    image = base64.b64encode(file.getvalue()).decode()
    body = json.dumps({"prompt": "a cat", "images": [image, image]}).encode()
    status, answer = Client(server.url).post(body, "/v1/compare", {"content-type": "application/json"})
    assert status == 422
    assert "25000000 pixels" in answer["error"]


def test_sigterm_under_load_loses_nothing(monkeypatch):
    monkeypatch.setenv("DINA_SERVER_TOKEN", "s3cret")  # of the server, and of the clients of the load test
    with run_server("--latents-only") as running:
        assert httpx.post(f"{running.url}/v1/score", content=b"", headers=HEADERS).status_code == 401
        outcome = load_test.try_sigterm(running, clients=16, seconds=1)
        assert outcome["of_them_in_flight"] > 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{running.url}/healthz")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--model", "/nowhere"], "model: expected a folder or a Hub id, got /nowhere"),
        (["--device", "abacus"], "device: expected one that torch can use here, got 'abacus'"),
        (["--max-batch-size", "0"], "--max-batch-size"),
    ],
)
def test_bad_options_end_in_a_sentence(options, reason):
    result = CliRunner().invoke(app, ["serve", *options])
    assert result.exit_code == 2
    assert reason in " ".join(result.stderr.split())
