"""The embedded model in this process, and the Space in another process, which is started once."""

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


@pytest.fixture
def open_page(open_window, space_url):
    """Opens the Space in a window of a given width."""

    def open_page(width: int = 1280):
        page = open_window(space_url, width)
        page.wait_for_selector("#compare-button")
        return page

    return open_page
