"""Benchmarks in the schemas they are published in, with images of one grey each, whose brightness is their reward."""

import io
import json
from pathlib import Path

import pytest

SCORERS = "tests.modeling_dina.evaluation.scorers"


@pytest.fixture(autouse=True)
def _own_caches(tmp_path_factory, monkeypatch):
    import datasets
    import huggingface_hub.utils._cache_assets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
    monkeypatch.setattr(huggingface_hub.utils._cache_assets, "HF_ASSETS_CACHE", tmp_path_factory.mktemp("assets"))


def grey(level):
    """Bytes of a PNG file."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (level, level, level)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


@pytest.fixture
def write_json(data):
    def write(rows, name="test.json"):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_text(json.dumps(rows))

    return write


@pytest.fixture
def write_greys(data):
    """Writes images, given their grey levels by path."""

    def write(greys):
        for path, level in greys.items():
            (data / path).parent.mkdir(parents=True, exist_ok=True)
            (data / path).write_bytes(grey(level))

    return write


@pytest.fixture
def run(data, tmp_path):
    """Runs the command in this process on `data`; results, or the message of a refusal."""
    from typer.testing import CliRunner

    from model_card.evaluate_preferences import app

    def run(benchmark, *options, scorer=f"{SCORERS}:brightness", refused=False):
        out = tmp_path / "results.json"
        out.unlink(missing_ok=True)
        source = [] if benchmark == "world" else ["--data", data]
        baseline = [] if scorer is None else ["--scorer", scorer]
        arguments = ["--benchmark", benchmark, "--out", out, *source, *baseline, *options]
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if refused:
            assert result.exit_code == 2, result.output
            assert not out.exists()
            return " ".join(result.stderr.replace("│", " ").split())
        assert result.exit_code == 0, result.output
        assert not Path(f"{out}.partial").exists()
        return json.loads(out.read_text(), parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))

    return run
