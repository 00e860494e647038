"""The whole build in miniature: every stage runs, the folder it leaves loads, and a second call trains nothing."""

import json

import pytest
from typer import Typer
from typer.testing import CliRunner

from modeling_dina.identity import weights_hash
from training.world.drawing import drawing_pool
from training.world.models.build import build, build_models
from training.world.models.settings import PRESETS


@pytest.mark.slow
def test_build_in_miniature(tmp_path):
    app = Typer(pretty_exceptions_enable=False)
    app.command()(build)
    CliRunner().invoke(app, ["--out", str(tmp_path), "--scale", "0.0001"], catch_exceptions=False)
    model = tmp_path / "model"
    report = json.loads((model / "report.json").read_text())
    assert [point["step"] for point in report.pop("learning_curve")]
    head = {name: report.pop(name) for name in ("kind", "command", "revision", "settings")}
    settings = head.pop("settings")
    assert (settings["preset"], settings["scale"], settings["generator_updates"]) == ("cpu", 0.0001, 4)
    assert head == {
        "kind": "world_build",
        "command": "python -m training.world.models.build --out DIR --preset cpu --scale 0.0001",
        "revision": weights_hash(model),
    }
    generator = report.pop("generator")
    assert 0 < generator["utility"] < generator["rendered_utility"] < 6
    assert sum(each["captions"] for each in generator["kinds"].values()) == 4
    assert set(report) == {"seen", "held_out", "generated"}
    for measured in report.values():
        for values in [*measured["ensembles"].values(), *measured["levels"].values()]:
            assert 0.5 < values["best"] < 1
            assert 1 - values["best"] <= values["accuracy"] <= values["best"]

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
    with drawing_pool(1) as pool:
        build_models(tmp_path, PRESETS["cpu"].scaled(0.0001), pool)
    assert [path.stat().st_mtime_ns for path in trained] == times
