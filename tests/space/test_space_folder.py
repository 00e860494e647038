"""The folder as the Hub takes it."""

import os
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

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


# What the Space does when it starts, but for the server.
START = """
import app, modeling_dina
print(modeling_dina.__file__)
judge = app.Judge(app.ModelOptions(model=app.EMBEDDED_MODEL).open_scorer())
print(app.build_page(judge, app.Generator.beside(judge), app.model_note(app.EMBEDDED_MODEL, judge)).config["title"])
"""


@pytest.mark.slow
def test_one_command_deploys_it(loopback_hub, tmp_path):
    """The folder arrives with a wheel, whose address is its one requirement, and both run without the repository."""
    clone, space, installed = tmp_path / "clone", tmp_path / "page", tmp_path / "installed"
    for name in ("modeling_dina", "space"):
        shutil.copytree(ROOT / name, clone / name)
    for name in ("Makefile", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, clone / name)
    subprocess.run(
        ["make", "-o", "setup", "deploy", "SPACE=me/page", f"BIN={Path(sys.executable).parent}"],
        cwd=clone,
        env=loopback_hub.environment(tmp_path / "home"),
        capture_output=True,
        check=True,
    )
    files = loopback_hub.repos["spaces/me/page"].files()
    for path, content in files.items():
        (space / path).parent.mkdir(parents=True, exist_ok=True)
        (space / path).write_bytes(content)
    expected = {path.relative_to(SPACE).as_posix() for path in SPACE.rglob("*") if path.is_file()}
    expected = {path for path in expected if "__pycache__" not in path}
    (wheel,) = set(files) - expected - {".gitattributes"}
    assert set(files) == expected | {wheel, ".gitattributes"}

    requirement, _, address = files["requirements.txt"].decode().strip().partition(" @ ")
    assert requirement == "dina-lrm[space]"
    (tmp_path / wheel).write_bytes(httpx.get(address).raise_for_status().content)
    zipfile.ZipFile(tmp_path / wheel).extractall(installed)
    environment = os.environ | {"PYTHONPATH": str(installed), "HF_HOME": str(tmp_path / "home")}
    ran = subprocess.run(
        [sys.executable, "-c", START], cwd=space, env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    module, title = ran.stdout.splitlines()
    assert module == str(installed / "modeling_dina" / "__init__.py")
    assert f"\n# {title}\n" in files["README.md"].decode()


@pytest.mark.slow
def test_a_model_that_does_not_exist_ends_in_one_line(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # which the Space changes
    monkeypatch.setenv("DINA_MODEL", "/nowhere")
    with pytest.raises(SystemExit, match=r"^Error: model: expected a folder or a Hub id, got /nowhere$"):
        runpy.run_path(str(SPACE / "app.py"), run_name="__main__")
