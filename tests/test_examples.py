"""The scripts and notebooks of examples/ run on the embedded model, in one process, and write what they say."""

import importlib
import json
import re
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from PIL import Image

from modeling_dina import DinaScorer
from training.label.pairs import read_pairs
from training.label.votes import read_votes

ROOT = Path(__file__).parents[1]
PICTURES = {
    "compare_two_images": "comparison.png",
    "best_of_n": "best_of_n.png",
    "reward_in_a_sampler": "reward_in_a_sampler.png",
    "align_the_generator": "align/1_updates/before_and_after.png",
    "train_on_your_votes": None,
}
# Fewer updates than the scripts make by themselves.
ARGUMENTS = {"align_the_generator": [1], "train_on_your_votes": [2]}
WAY = "from_pictures_to_reward"  # has a test of its own


def test_all_scripts_are_run_and_short():
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} == {*PICTURES, WAY}
    assert all(len(path.read_text().splitlines()) <= 75 for path in (ROOT / "examples").glob("*.py"))


@pytest.fixture
def empty_clone(tmp_path, monkeypatch):
    """A folder with the packages, in which the examples run."""
    for name in ("modeling_dina", "space", "training"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.mark.slow
@pytest.mark.usefixtures("empty_clone")
def test_examples_run(capsys):
    for name, picture in PICTURES.items():
        importlib.import_module(f"examples.{name}").main(*ARGUMENTS.get(name, []))
        assert "runs/examples/" in capsys.readouterr().out
        if picture is not None:
            with Image.open(Path("runs/examples", picture)) as image:
                assert min(image.size) >= 256
    assert Path("runs/examples/votes/run/model/model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.usefixtures("empty_clone")
def test_from_pictures_to_a_reward_on_the_hub(connected_hub, monkeypatch, capsys):
    monkeypatch.setenv("HF_REPO", "owner/taste")
    importlib.import_module(f"examples.{WAY}").main(2, 8, 2)
    assert "DINA_MODEL=runs/examples/pictures/reward" in capsys.readouterr().out
    folder = Path("runs/examples/pictures")
    assert len(read_votes(folder / "votes")) == 8
    prompts = [{pair.prompt for pair in read_pairs(folder / name).values()} for name in ("votes", "test")]
    assert not set.intersection(*prompts)
    before, after = (json.loads((folder / f"{name}.json").read_text()) for name in ("before", "after"))
    assert before["pairs"] == after["pairs"] == 16
    assert before["log_likelihood"] != after["log_likelihood"]
    # The pushed model is the calibrated one, and complete.
    shown = {"prompts": ["a red circle and a blue square"], "images": ["space/examples/clear_1.png"]}
    pushed, written, uncalibrated = (
        DinaScorer.from_pretrained(source).score(**shown).scores
        for source in ("owner/taste", folder / "reward", folder / "run/model")
    )
    assert pushed == written != uncalibrated


NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


def cells(notebook, kind):
    """Sources of the cells of a kind, "code" or "markdown"."""
    found = json.loads(notebook.read_text())["cells"]
    return ["".join(cell["source"]) for cell in found if cell["cell_type"] == kind]


def test_notebooks_are_stored_without_outputs():
    assert len(NOTEBOOKS) == 2
    for notebook in NOTEBOOKS:
        assert all(not cell.get("outputs") for cell in json.loads(notebook.read_text())["cells"])
        links = re.findall(r"\]\(([^)]+)\)", "".join(cells(notebook, "markdown")))
        assert links
        assert not [link for link in links if not (notebook.parent / link).is_file()]


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(notebook, monkeypatch, tmp_path, capsys):
    """As a user starts them, in the folder of the notebook; what a run writes is put elsewhere."""
    monkeypatch.chdir(notebook.parent)
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.extend(map(plt.figure, plt.get_fignums())))
    names = {}
    for source in cells(notebook, "code"):
        exec(compile(source.replace("runs/examples", str(tmp_path)), notebook.name, "exec"), names)
    plt.close("all")
    assert len(shown) >= 2
    assert all(figure.axes for figure in shown)
    assert len(capsys.readouterr().out.splitlines()) >= 3
