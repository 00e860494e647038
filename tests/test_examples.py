"""The scripts of examples/ run on the embedded model, in one process, and write what they say."""

import importlib
from pathlib import Path

import pytest
from PIL import Image

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


def test_all_scripts_are_run_and_short():
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} == set(PICTURES)
    assert all(len(path.read_text().splitlines()) <= 60 for path in (ROOT / "examples").glob("*.py"))


@pytest.mark.slow
def test_examples_run(tmp_path, monkeypatch, capsys):
    for name in ("modeling_dina", "space", "training"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name, picture in PICTURES.items():
        importlib.import_module(f"examples.{name}").main(*ARGUMENTS.get(name, []))
        assert "runs/examples/" in capsys.readouterr().out
        if picture is not None:
            with Image.open(Path("runs/examples", picture)) as image:
                assert min(image.size) >= 256
    assert Path("runs/examples/votes/run/model/model.safetensors").is_file()
