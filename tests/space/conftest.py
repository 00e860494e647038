"""The embedded model in this process, the Space in a process of its own, and a browser that looks at it."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from modeling_dina import DinaScorer
from space.demo.judging import Judge
from tests.space.places import EXAMPLES, ROOT

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# The last four keep Chromium itself from asking its maker for anything.
ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="session")
def judge():
    return Judge(DinaScorer.from_pretrained(ROOT / "modeling_dina" / "tiny"))


@pytest.fixture(scope="session")
def examples():
    return json.loads((EXAMPLES / "examples.json").read_text())


@pytest.fixture(scope="session")
def pair():
    """Prompt and files of a pair."""
    return (EXAMPLES / "prompt.txt").read_text().strip(), [EXAMPLES / "a.png", EXAMPLES / "b.png"]


@pytest.fixture(scope="session")
def start_space(tmp_path_factory):
    """Starts a command that serves the Space and returns its URL, once it answers. Whatever went wrong inside by the
    end of the tests fails them."""
    started = []

    def start(command: list[str], folder: Path, port: str, **environment: str) -> str:
        home = tmp_path_factory.mktemp("home")
        log = home / "log.txt"
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "GRADIO_TEMP_DIR": str(home / "uploads"),
            **environment,
        }
        with log.open("w") as file:
            process = subprocess.Popen(command, cwd=folder, env=environment, stdout=file, stderr=subprocess.STDOUT)
        started.append((process, log))
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and process.poll() is None:
            try:
                httpx.get(url).raise_for_status()
                return url
            except httpx.HTTPError:
                time.sleep(0.2)
        raise AssertionError(f"{command} does not answer:\n{log.read_text()}")

    yield start
    for process, _ in started:
        process.terminate()
    for process, log in started:
        process.wait(timeout=20)
        assert "Traceback" not in log.read_text(), log.read_text()


@pytest.fixture(scope="session")
def space_url(start_space, tmp_path_factory):
    """The Space as the Hub runs it: a copy of its folder, alone."""
    folder = tmp_path_factory.mktemp("hub") / "space"
    shutil.copytree(ROOT / "space", folder, ignore=shutil.ignore_patterns("__pycache__"))
    port = unused_port()
    return start_space([sys.executable, "app.py"], folder, port, GRADIO_SERVER_PORT=port)


@pytest.fixture
def free_port():
    return unused_port()


def unused_port() -> str:
    """A port that nothing listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


# Of a module: while it is there, an event loop runs in the main thread, in which other tests start their own.
@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, space_url):
    """Opens the Space in a window of some width. Errors on its console and requests to any other
    host fail the test."""
    contexts, complaints = [], []

    def note_request(request):
        if not request.url.startswith((space_url, "data:", "blob:")):
            complaints.append(f"request of {request.url}")

    def note_message(message):
        if message.type == "error":
            complaints.append(message.text)

    def open_page(width: int = 1280):
        context = browser.new_context(
            viewport={"width": width, "height": 900},
            permissions=["clipboard-read", "clipboard-write"],
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(90_000)  # of a busy machine
        page.on("request", note_request)
        page.on("console", note_message)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(space_url)
        page.wait_for_selector("#compare-button")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []
