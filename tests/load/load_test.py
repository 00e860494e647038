"""Load test of the reward server: `python -m tests.load.load_test` starts servers, `--url` tests a running one.

It measures throughput and latency with and without batching. The servers take turns within one run, so that the ratio
also holds on a busy machine. It also sends broken and damaged bodies, opens connections that hang, and sends SIGTERM
under load, after which every request must have been answered.
"""

import http.client
import json
import math
import os
import platform
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from safetensors.torch import save

from modeling_dina.files import write_json
from modeling_dina.options import check_output, exit_on_bad_input
from modeling_dina.serving import TOKEN_VARIABLE
from modeling_dina.serving.protocol import VERSION, VERSION_HEADER
from tests.load.fuzz_bodies import break_body, damage_body, good_tensors

HEADERS = {"content-type": "application/octet-stream", VERSION_HEADER: VERSION}
CLIENTS = (1, 8, 64)
ROUNDS = 4
# Batching with a waiting time, batching without one (requests gather while the model computes), and no batching.
SETTINGS = {
    "batched, 5 ms": ["--max-wait-ms", "5"],
    "batched, 0 ms": ["--max-wait-ms", "0"],
    "single": ["--max-batch-size", "1", "--max-wait-ms", "0"],
}
HANGING_CLIENTS = 32
BODY_TIMEOUT = 3.0
STARTUP_SECONDS = 300
console = Console(stderr=True)


class Client:
    """A keep-alive connection that reconnects after an error. It sends the token of the environment, as servers
    expect it."""

    def __init__(self, url: str):
        parts = urlsplit(url)
        self._connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=120)
        token = os.environ.get(TOKEN_VARIABLE)
        self._authorization = {"authorization": f"Bearer {token}"} if token else {}

    def post(self, body: bytes, path: str = "/v1/score", headers: dict[str, str] = HEADERS) -> tuple[int, dict]:
        """Returns status and JSON. Raises OSError or HTTPException if the server does not answer."""
        self.send(body, path, headers)
        return self.receive()

    def send(self, body: bytes, path: str = "/v1/score", headers: dict[str, str] = HEADERS) -> None:
        """Sends the request of `post`."""
        with self._closed_on_error():
            self._connection.request("POST", path, body, {**self._authorization, **headers})

    def receive(self) -> tuple[int, dict]:
        """Receives the answer of `post`."""
        with self._closed_on_error():
            response = self._connection.getresponse()
            return response.status, json.loads(response.read())

    @contextmanager
    def _closed_on_error(self) -> Iterator[None]:
        try:
            yield
        except (OSError, http.client.HTTPException):
            self._connection.close()
            raise


@dataclass
class Server:
    """A `dina serve` process that this test started."""

    process: subprocess.Popen
    url: str

    def resident_bytes(self) -> int:
        """Resident memory of the process."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status).group(1)) * 1024


@contextmanager
def run_server(*options: str) -> Iterator[Server]:
    """Starts `dina serve` with these options on a free port, and yields once it answers."""
    command = [sys.executable, "-c", "from modeling_dina.cli.app import app; app()", "serve", "--port", "0", *options]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            yield Server(process, _wait_for_url(process, log))
        finally:
            process.kill()
            process.wait()


def _wait_for_url(process: subprocess.Popen, log) -> str:
    deadline = time.monotonic() + STARTUP_SECONDS
    while time.monotonic() < deadline:
        log.seek(0)
        text = log.read()
        if found := re.search(r"running on (http://\S+)", text):
            return found.group(1)
        if process.poll() is not None:
            break
        time.sleep(0.05)
    raise RuntimeError(f"the server did not start:\n{text}")


def measure_round(url: str, clients: int, requests: int) -> tuple[float, list[float]]:
    """
    Total seconds and seconds of each request, for `clients` that share `requests` of one sample each. A client sends
    one request after another.

    Raises:
        RuntimeError: an answer is not a score.
    """
    bodies = [save(good_tensors(seed)) for seed in range(16)]

    def work(index: int) -> list[float]:
        client, seconds = Client(url), []
        for turn in range(math.ceil(requests / clients)):
            start = time.perf_counter()
            status, answer = client.post(bodies[(index + turn) % len(bodies)])
            seconds.append(time.perf_counter() - start)
            if status != 200:
                raise RuntimeError(f"expected a score, got {status} {answer}")
        return seconds

    with ThreadPoolExecutor(clients) as threads:
        start = time.perf_counter()
        latencies = [seconds for part in threads.map(work, range(clients)) for seconds in part]
        return time.perf_counter() - start, latencies


def measure_throughput(urls: dict[str, str], requests: int, rounds: int = ROUNDS) -> list[dict]:
    """Requests per second and latencies of each server for each number of clients. The servers take turns."""
    rows = []
    for clients in CLIENTS:
        seconds: dict[str, list[float]] = defaultdict(list)
        latencies: dict[str, list[float]] = defaultdict(list)
        for turn in range(rounds + 1):
            for name, url in urls.items():
                total, each = measure_round(url, clients, requests)
                if turn:  # the first turn warms up caches
                    seconds[name].append(total / len(each))
                    latencies[name].extend(each)
        for name in urls:
            p50, p95, p99 = np.percentile(latencies[name], [50, 95, 99]) * 1000
            rows.append(
                {
                    "server": name,
                    "clients": clients,
                    "requests_per_second": 1 / float(np.median(seconds[name])),
                    "p50_ms": float(p50),
                    "p95_ms": float(p95),
                    "p99_ms": float(p99),
                }
            )
    return rows


def over_single(rows: list[dict]) -> dict[str, float]:
    """Ratio of requests per second to the server without batching, for each server and number of clients."""
    rates = {(row["server"], row["clients"]): row["requests_per_second"] for row in rows}
    return {
        f"{server}, {clients} clients": rate / rates["single", clients]
        for (server, clients), rate in rates.items()
        if server != "single"
    }


def fuzz(url: str, count: int, seed: int = 0) -> dict[str, dict[str, int]]:
    """
    Counts the statuses of each kind of bad body. Every tenth request is a good one, whose score must not change.

    Raises:
        AssertionError: a broken body was not refused with a reason, a damaged one was neither refused nor scored, or
            the score of a good one changed.
    """
    generator, client = random.Random(seed), Client(url)
    good = save(good_tensors(0))
    expected = client.post(good)
    assert expected[0] == 200, expected
    outcomes: dict[str, Counter] = defaultdict(Counter)
    for turn in range(count):
        if turn % 10 == 0:
            again = client.post(good)
            assert again == expected, f"a good request got {again} for {expected}"
        make = generator.choice([break_body, damage_body])
        name, body = make(generator)
        status, answer = client.post(body)
        outcomes[name][str(status)] += 1
        if make is damage_body and status == 200:
            assert all(map(math.isfinite, answer["raw_scores"])), (name, answer)
        else:
            assert 400 <= status < 500, (name, status, answer)
            assert isinstance(answer["error"], str), (name, status, answer)
    return {name: dict(counts) for name, counts in sorted(outcomes.items())}


def try_hanging_clients(url: str, requests: int) -> dict[str, float]:
    """Measures latency beside clients that send half a body and wait. The server's body timeout must be
    `BODY_TIMEOUT`.

    Raises:
        AssertionError: a hanging client did not get status 408.
    """
    alone = np.percentile(measure_round(url, 1, requests)[1], 95)
    body = save(good_tensors(0))
    hanging = []
    for _ in range(HANGING_CLIENTS):
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=BODY_TIMEOUT * 5)
        connection.putrequest("POST", "/v1/score")
        for name, value in {**HEADERS, "content-length": str(len(body))}.items():
            connection.putheader(name, value)
        connection.endheaders(body[: len(body) // 2])
        hanging.append(connection)
    beside = np.percentile(measure_round(url, 1, requests)[1], 95)
    statuses = Counter(connection.getresponse().status for connection in hanging)
    assert statuses == {408: HANGING_CLIENTS}, statuses
    return {"p95_ms_alone": float(alone * 1000), "p95_ms_beside_hanging": float(beside * 1000)}


def try_long_bodies(server: Server, clients: int, megabytes: int) -> dict:
    """
    Sends long bodies of undeclared length from several clients at the same time.

    Raises:
        AssertionError: a body was not refused as too large or too slow, or the server's memory grew by half of what
            was sent.
    """
    before = server.resident_bytes()

    def work(_: int) -> tuple[int, int]:
        connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=120)
        chunks = (bytes(2**16) for _ in range(megabytes * 16))
        connection.request("POST", "/v1/score", chunks, HEADERS, encode_chunked=True)
        return connection.getresponse().status, server.resident_bytes()

    with ThreadPoolExecutor(clients) as threads:
        statuses, sizes = zip(*threads.map(work, range(clients)), strict=True)
    growth = max(sizes) - before
    assert set(statuses) <= {408, 413, 429}, statuses
    assert growth < clients * megabytes * 2**20 / 2, f"{growth} bytes more for {clients} x {megabytes} MiB"
    return {"sent_mb": clients * megabytes, "growth_mb": growth / 2**20, "statuses": _counted(statuses)}


@dataclass
class _Sent:
    """A request that was sent completely, and its answer. Status None: no answer."""

    at: float
    answered: float = math.inf
    status: int | None = None


def try_sigterm(server: Server, clients: int, seconds: float = 2) -> dict:
    """
    Sends SIGTERM to a server that `clients` keep busy. Each client stops when it is refused or cannot connect.

    Raises:
        AssertionError: a request that was sent before the signal got no answer, or the server did not end.
    """
    sent: list[_Sent] = []

    def work(index: int) -> None:
        client, body = Client(server.url), save(good_tensors(index, samples=4))
        with suppress(OSError, http.client.HTTPException):
            while True:
                client.send(body)
                sent.append(request := _Sent(time.monotonic()))
                request.status, _ = client.receive()
                request.answered = time.monotonic()
                if request.status != 200:
                    return

    threads = [threading.Thread(target=work, args=(index,)) for index in range(clients)]
    for thread in threads:
        thread.start()
    time.sleep(seconds)
    signalled = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join(60)
    assert server.process.wait(30) in (0, -signal.SIGTERM), server.process.returncode
    before = [request for request in sent if request.at < signalled]
    after = [request for request in sent if request.at >= signalled]
    lost = sum(request.status not in (200, 503) for request in before)
    assert lost == 0, f"{lost} requests that were sent before the signal got no answer"
    return {
        "before": _counted(request.status for request in before),
        "of_them_in_flight": sum(request.answered >= signalled for request in before),
        "after": _counted(request.status or "connection closed" for request in after),
    }


def _counted(values) -> dict[str, int]:
    return {str(value): count for value, count in sorted(Counter(values).items(), key=str)}


def throughput_of_settings(requests: int) -> dict:
    """Runs `measure_throughput` on one server for each of `SETTINGS`."""
    with ExitStack() as stack:
        servers = {name: stack.enter_context(run_server(*options)) for name, options in SETTINGS.items()}
        rows = measure_throughput({name: server.url for name, server in servers.items()}, requests)
    return {"rows": rows, "requests_per_second_over_single": over_single(rows)}


def fuzz_in_bounded_memory(count: int) -> dict:
    """Runs `fuzz` and reports the server's memory before and after."""
    with run_server() as server:
        Client(server.url).post(save(good_tensors(0)))
        before = server.resident_bytes()
        outcomes = fuzz(server.url, count)
        after = server.resident_bytes()
    return {"outcomes": outcomes, "resident_mb_before": before / 2**20, "resident_mb_after": after / 2**20}


def stages(url: str | None, requests: int, fuzzed: int) -> dict[str, Callable[[], dict]]:
    """The parts of the load test by name. A server at `url` gets only those that need no control of its process."""
    if url:
        return {
            "throughput": lambda: {"rows": measure_throughput({"url": url}, requests)},
            "fuzzing": lambda: {"outcomes": fuzz(url, fuzzed)},
        }
    limits = ["--body-timeout", str(BODY_TIMEOUT), "--max-body-mb", "4", "--max-total-mb", "16"]

    def on_server(options: list[str], trial: Callable[[Server], dict]) -> dict:
        with run_server(*options) as server:
            return trial(server)

    return {
        "throughput": lambda: throughput_of_settings(requests),
        "sigterm": lambda: on_server([], lambda server: try_sigterm(server, clients=64)),
        "hanging_clients": lambda: on_server(limits, lambda server: try_hanging_clients(server.url, requests // 8)),
        "long_bodies": lambda: on_server(limits, lambda server: try_long_bodies(server, clients=16, megabytes=32)),
        "fuzzing": lambda: fuzz_in_bounded_memory(fuzzed),
    }


def check_url(url: str) -> None:
    """ValueError where no server answers."""
    try:
        parts = urlsplit(url)
        socket.create_connection((parts.hostname or "", parts.port or 80), timeout=10).close()
    except (OSError, ValueError) as error:
        raise ValueError(f"url: expected that of a server that runs, got {url}: {error}") from error


def read_before(out: Path) -> dict:
    """What an interrupted run has written, empty if there is none; ValueError if it is something else."""
    try:
        before = json.loads(out.read_text()) if out.exists() else {}
    except ValueError as error:
        raise ValueError(f"out: expected a new file or results of this test, got {out}: {error}") from error
    if not isinstance(before, dict):
        raise ValueError(f"out: expected a new file or results of this test, got {out}")
    return before


def print_result(result: dict) -> None:
    """Prints the throughput as a table, and one line for each of the other parts."""
    table = Table("clients", "server", "requests/s", "p50 ms", "p95 ms", "p99 ms")
    for row in result["throughput"]["rows"]:
        numbers = (f"{row[name]:.1f}" for name in ("requests_per_second", "p50_ms", "p95_ms", "p99_ms"))
        table.add_row(str(row["clients"]), row["server"], *numbers)
    console.print(table)
    statuses = sum((Counter(counts) for counts in result["fuzzing"]["outcomes"].values()), Counter())
    lines = {**result, "throughput": result["throughput"].get("requests_per_second_over_single"), "fuzzing": statuses}
    for name, value in lines.items():
        console.print(f"{name}: {value}", highlight=False)


def main(
    url: Annotated[
        str | None, typer.Option(help="Running server of the embedded model. Default: start servers.")
    ] = None,
    requests: Annotated[int, typer.Option(min=64, help="Requests in each round of the throughput test.")] = 256,
    fuzzed: Annotated[int, typer.Option(min=1, help="Number of bad bodies to send.")] = 10_000,
    out: Annotated[
        Path | None, typer.Option(help="Also write the results to this JSON file. An interrupted run continues.")
    ] = None,
) -> None:
    """Load-test the reward server. Fails if a request is lost or answered wrongly."""
    libraries = ("torch", "starlette", "uvicorn", "safetensors")
    result: dict = {
        "settings": {"url": url, "requests": requests, "rounds": ROUNDS, "bad_bodies": fuzzed},
        "machine": {"cpus": os.cpu_count(), "architecture": platform.machine(), "python": platform.python_version()},
        "versions": {name: version(name) for name in libraries},
    }
    with exit_on_bad_input():
        if url is not None:
            check_url(url)
        if out is not None:
            check_output("out", out, (".json",))
            before = read_before(out)
            if before | result == before:  # of the same settings, machine and versions
                result = before
    for name, stage in stages(url, requests, fuzzed).items():
        if name in result:
            continue
        console.print(f"{name} …", highlight=False)
        result[name] = stage()
        if out is not None:
            write_json(out, result)
    print_result(result)


if __name__ == "__main__":
    typer.run(main)
