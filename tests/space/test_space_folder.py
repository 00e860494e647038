"""The folder as the Hub takes it, and the command that serves it."""

import sys
from pathlib import Path

import httpx
import pytest
from huggingface_hub import RepoCard

from space.demo import limits, serving
from tests.space.places import ROOT

SPACE = ROOT / "space"


@pytest.fixture(scope="module")
def card():
    return RepoCard.load(SPACE / "README.md", ignore_metadata_errors=False)


def test_the_card_says_what_the_hub_runs(card):
    data = card.data.to_dict()
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    assert data["sdk"] == "gradio"
    assert data["sdk_version"] == pins["gradio"]
    assert (SPACE / data["app_file"]).is_file()
    assert len(data["short_description"]) <= 60


def test_the_card_tells_the_limits_that_hold(card):
    assert f"{limits.MAX_PROMPT_CHARACTERS} characters" in card.content
    assert f"{limits.MAX_FILE_BYTES // 2**20} MB and 4096 x 4096 pixels" in card.content
    assert limits.MAX_IMAGE_PIXELS == 4096**2
    assert f"| pictures to rank | {limits.MAX_RANKED}, and at least {limits.MIN_RANKED} |" in card.content
    assert f"| {limits.MAX_LEVELS}, {limits.MAX_DRAWS} |" in card.content
    assert f"| questions that wait | {serving.MAX_WAITING} |" in card.content


@pytest.mark.slow
def test_the_folder_runs_alone(space_url):
    """`space_url` is a copy of the folder without the rest of the repository; so are the files that it serves."""
    config = httpx.get(f"{space_url}/config").json()
    assert config["title"].startswith("DiNa-LRM")
    assert not config["analytics_enabled"]


@pytest.mark.slow
def test_dina_demo_serves_it(start_space, free_port):
    command = [str(Path(sys.executable).with_name("dina")), "demo", "--port", free_port]
    url = start_space(command, ROOT, free_port)
    assert "DiNa-LRM" in httpx.get(url).text
