"""The embedded model in this process, the Space in another process, and a browser. Both are started once."""

import json
import os
import shutil
import subprocess
import sys
import time

import httpx
import pytest

from tests.processes import unused_port
from tests.space.places import EXAMPLES, ROOT

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# The last four keep Chromium itself from making requests of its own.
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
    from judge import Judge
    from modeling_dina import DinaScorer

    return Judge(DinaScorer.from_pretrained(ROOT / "modeling_dina" / "tiny"))


@pytest.fixture(scope="session")
def examples():
    return json.loads((EXAMPLES / "examples.json").read_text())


@pytest.fixture(scope="session")
def pair(examples):
    """Prompt and files of a pair of which the first is preferred. The page opens with another pair."""
    example = next(example for example in examples["pairs"] if example["title"] == "A subtle one")
    return example["prompt"], [EXAMPLES / name for name in example["images"][::-1]]


@pytest.fixture(scope="session")
def space_url(tmp_path_factory):
    """The Space as the Hub runs it: a copy of its folder alone. A traceback in its log fails the tests at the end."""
    home = tmp_path_factory.mktemp("hub")
    folder, log = home / "space", home / "log.txt"
    shutil.copytree(ROOT / "space", folder, ignore=shutil.ignore_patterns("__pycache__"))
    port = str(unused_port())
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "HOME": str(home),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "GRADIO_TEMP_DIR": str(home / "uploads"),
        "GRADIO_SERVER_PORT": port,
    }
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "app.py"], cwd=folder, env=environment, stdout=file, stderr=subprocess.STDOUT
        )
    url = f"http://127.0.0.1:{port}"
    _wait_for(url, process, log)
    yield url
    process.terminate()
    process.wait(timeout=20)
    assert "Traceback" not in log.read_text(), log.read_text()


def _wait_for(url, process, log):
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        try:
            httpx.get(url).raise_for_status()
            return
        except httpx.HTTPError:
            time.sleep(0.2)
    process.kill()
    raise AssertionError(f"the Space does not answer:\n{log.read_text()}")


# Of a module: while it is there, an event loop runs in the main thread, in which other tests start their own.
@pytest.fixture(scope="module")
def browser():
    """A window of a browser that keeps its cache."""
    playwright = pytest.importorskip("playwright.sync_api")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser.new_context(permissions=["clipboard-read", "clipboard-write"])
        browser.close()


@pytest.fixture
def open_page(browser, space_url):
    """Opens the Space in a window of a given width. Errors on the console and requests to other hosts fail the
    test."""
    pages, complaints = [], []

    def note_request(request):
        if not request.url.startswith((space_url, "data:", "blob:")):
            complaints.append(f"request of {request.url}")

    def note_message(message):
        if message.type == "error":
            complaints.append(message.text)

    def open_page(width: int = 1280):
        page = browser.new_page()
        pages.append(page)
        page.set_viewport_size({"width": width, "height": 900})
        page.set_default_timeout(90_000)  # for a busy machine
        page.on("request", note_request)
        page.on("console", note_message)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(space_url)
        page.wait_for_selector("#compare-button")
        return page

    yield open_page
    for page in pages:
        page.close()
    assert complaints == []
