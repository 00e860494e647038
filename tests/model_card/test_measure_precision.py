"""Precisions of the backbone: bytes as they are stored, and the same order of pictures."""

import json

import pytest
import torch
import typer
from typer.testing import CliRunner

from model_card import measure_precision
from training.costs import weight_bytes


def run(*arguments):
    app = typer.Typer()
    app.command()(measure_precision.main)
    return CliRunner().invoke(app, arguments)


def test_bytes_of_plain_weights():
    assert weight_bytes(torch.nn.Linear(3, 5, dtype=torch.bfloat16)) == 2 * (3 * 5 + 5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_precisions_of_the_embedded_model(tmp_path):
    pytest.importorskip("torchao", reason="needs dina-lrm[quantization]")
    out = tmp_path / "precision.json"
    result = run("--groups", "8", "--rounds", "1", "--device", "cpu", "--out", str(out))
    assert result.exit_code == 0, result.output
    found = json.loads(out.read_text())["precisions"]
    full, half = (found[name]["weight_bytes"] for name in ("float32", "bfloat16"))
    assert full == 2 * half
    for name in ("int8 weights", "float8 weights"):
        # A byte for each weight of a linear layer, and its scales; the rest stays in bfloat16.
        assert half / 2 < found[name]["weight_bytes"] < 0.6 * half
    assert all(each["rank_correlation"] > 0.99 for each in found.values())
    assert found["bfloat16"]["rank_correlation"] == pytest.approx(1)
    assert found["bfloat16"]["largest_difference"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "no"], "device: expected one that torch can use here"),
        (["--model", "no/folder"], "model: expected a folder, got no/folder"),
        (["--out", "no.txt"], "out: expected"),
    ],
)
def test_bad_input(arguments, message):
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
