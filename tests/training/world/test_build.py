"""The whole build in miniature: every stage runs, the folder it leaves loads, and a second call redoes nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
def test_build_in_miniature(tmp_path):
    command = [sys.executable, "-m", "training.world.build", "--out", str(tmp_path), "--scale", "0.0001"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    report = json.loads((tmp_path / "model" / "report.json").read_text())
    assert [point["step"] for point in report.pop("learning_curve")]
    assert set(report) == {"seen", "held_out", "generated"}
    for measured in report.values():
        for values in [*measured["ensembles"].values(), *measured["levels"].values()]:
            assert 0.5 < values["best"] < 1
            assert 1 - values["best"] <= values["accuracy"] <= values["best"]

    model = tmp_path / "model"
    assert {"README.md", "config.json", "model.safetensors", "model_index.json", "pictures.webp"} <= {
        path.name for path in model.iterdir()
    }
    for path in model.rglob("*.json"):
        assert str(tmp_path) not in path.read_text(), f"{path.name} names the place it was built in"

    trained = [
        tmp_path / "pipeline" / "model_index.json",
        tmp_path / "reward_training" / "model" / "model.safetensors",
    ]
    times = [path.stat().st_mtime_ns for path in trained]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert [path.stat().st_mtime_ns for path in trained] == times
