"""Cost: what the counter counts against what can be worked out, and the ratios that a reward promises."""

import json

import pytest
import torch
from typer.testing import CliRunner

from model_card import measure_cost
from model_card.measure_cost import Device, Preset, count_flops, measure


def test_flops_of_a_product_by_hand():
    a, b = torch.empty(3, 4, device="meta"), torch.empty(4, 5, device="meta")
    assert count_flops(lambda: a @ b) == 2 * 3 * 4 * 5


@pytest.mark.parametrize(("preset", "resolution"), [(Preset.small, 64), (Preset.sd35_medium, 512)])
def test_flops_of_a_reward(preset, resolution):
    result = measure(preset, Device.meta, resolution, 1, torch.float32)
    assert result["flops_ratios"]["1 level / (backbone + head)"] <= 1.001
    assert result["flops_ratios"]["3 levels / 1 level"] <= 3.1
    flops = result["flops"]
    assert flops["reward, 3 levels x 4 draws"] == pytest.approx(4 * flops["reward, 3 levels"])
    assert "seconds" not in result


def test_parameters_of_sd35_medium():
    """Half of the blocks of a 2.5 billion parameter transformer (its model card), and a head a tenth of that."""
    parameters = measure(Preset.sd35_medium, Device.meta, 64, 1, torch.bfloat16)["parameters"]
    assert 1.1e9 < parameters["backbone"] < 1.7e9
    assert parameters["head"] < 0.15 * parameters["backbone"]


def test_seconds_and_memory_on_the_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr(measure_cost, "ROUNDS", 2)
    result = measure(Preset.small, Device.cpu, 64, 2, torch.float32)
    assert set(result["seconds"]) == set(result["flops"]) == set(result["peak_bytes"])
    assert result["seconds"]["reward, 3 levels x 4 draws"] > result["seconds"]["reward, 1 level"] > 0


def test_command_writes_json(tmp_path):
    app = measure_cost.typer.Typer()
    app.command()(measure_cost.main)
    out = tmp_path / "cost.json"
    result = CliRunner().invoke(app, ["--preset", "small", "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert json.loads(out.read_text())["device"] == "meta"
    assert CliRunner().invoke(app, ["--resolution", "65"]).exit_code == 2
    assert CliRunner().invoke(app, ["--dtype", "int8"]).exit_code == 2
