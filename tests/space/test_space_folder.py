"""The folder as the Hub takes it."""

import runpy

import httpx
import pytest
from huggingface_hub import RepoCard
from PIL import Image

import judge as limits
from tests.space.places import ROOT

SPACE = ROOT / "space"


@pytest.fixture(scope="module")
def card():
    return RepoCard.load(SPACE / "README.md", ignore_metadata_errors=False)


def test_the_card_says_what_the_hub_runs(card):
    data = card.data.to_dict()
    assert data["sdk"] == "gradio"
    assert f"\ngradio=={data['sdk_version']}\n" in (ROOT / "constraints.txt").read_text()
    assert (SPACE / data["app_file"]).is_file()
    assert len(data["short_description"]) <= 60


def test_the_card_has_the_limits_of_the_code(card):
    assert f"{limits.MAX_PROMPT_CHARACTERS} characters" in card.content
    assert f"{limits.MAX_FILE_BYTES // 2**20} MB and 4096 x 4096 pixels" in card.content
    assert limits.MAX_IMAGE_PIXELS == 4096**2
    assert f"| pictures to rank | {limits.MAX_RANKED}, and at least {limits.MIN_RANKED} |" in card.content
    assert f"| {limits.MAX_LEVELS}, {limits.MAX_DRAWS} |" in card.content
    assert f"| requests in the queue | {limits.MAX_WAITING} |" in card.content


@pytest.mark.slow
def test_the_folder_runs_alone(space_url):
    """`space_url` is a copy of the folder without the rest of the repository; so are the files that it serves."""
    config = httpx.get(f"{space_url}/config").json()
    assert config["title"].startswith("DiNa-LRM")
    assert not config["analytics_enabled"]


@pytest.mark.slow
def test_a_model_that_does_not_exist_ends_in_one_line(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # which the Space changes
    monkeypatch.setenv("DINA_MODEL", "/nowhere")
    with pytest.raises(SystemExit, match=r"^Error: model: expected a folder or a Hub id, got /nowhere$"):
        runpy.run_path(str(SPACE / "app.py"), run_name="__main__")
