"""The card says what was measured of this model and no other, and the committed one is what its results make."""

import json
import re
from pathlib import Path

import pytest
import typer
from huggingface_hub import ModelCard
from typer.testing import CliRunner

from model_card import write
from modeling_dina.identity import weights_hash

ROOT = Path(__file__).parents[2]
EMBEDDED = Path("modeling_dina/tiny")
RESULTS = Path("model_card/results")
STUDIES = (RESULTS / "world_study", RESULTS / "alignment_study")
COMMAND = "dina evaluate --benchmark hpdv3 --model owner/name --data hpdv3/ --sigmas 0.1,0.2,0.4 --out hpdv3.json"
MEDIUM = "stabilityai/stable-diffusion-3.5-medium"


def said(ran) -> str:
    """What a command printed, without its frame."""
    return " ".join(ran.output.replace("│", " ").split())


@pytest.fixture
def command(monkeypatch):
    monkeypatch.chdir(ROOT)
    app = typer.Typer()
    app.command()(write.main)

    def run(model, *results, out, **options):
        arguments = [word for path in results for word in ("--results", str(path))]
        arguments += [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
        return CliRunner().invoke(app, ["--model", str(model), "--out", str(out), *arguments])

    return run


@pytest.fixture
def committed(monkeypatch):
    monkeypatch.chdir(ROOT)
    return ModelCard.load(EMBEDDED / "README.md")


def test_the_committed_card_is_made_of_the_committed_results(command, tmp_path):
    """If this fails after the embedded default, its results or a template changed: `make card`."""
    ran = command(EMBEDDED, RESULTS, *STUDIES, EMBEDDED / "report.json", out=tmp_path / "README.md")
    assert ran.exit_code == 0, ran.output
    assert (tmp_path / "README.md").read_bytes() == (ROOT / EMBEDDED / "README.md").read_bytes()


def test_every_number_of_the_committed_card_is_in_a_file_it_names(committed):
    prose, commands = committed.text.split("## How each number was made")
    files = re.findall(r"^# (\S+)$", commands.split("## Licence")[0], re.MULTILINE)
    sources = [json.loads((ROOT / file).read_text()) for file in [*files, EMBEDDED / "config.json"]]
    known = set()

    def collect(value):
        if isinstance(value, dict | list):
            for inner in value.values() if isinstance(value, dict) else value:
                collect(inner)
        elif isinstance(value, int | float):
            for scaled in (value, value * 1e2, value * 1e3, value / 1e6, value / 1e9):
                known.update(format(scaled, f",.{digits}f") for digits in range(5))
                known.add(format(scaled, ",.3g"))
                known.add(str(value))

    for source in sources:
        collect(source)
    evidence = re.sub(r"!?\[[^]]*\]\([^)]*\)", "", prose.split("## Training data")[1])
    numbers = re.findall(r"(?<![\w.])-?\d[\d,]*\.\d+", evidence)
    assert len(numbers) > 40
    strangers = set(numbers) - known
    # The annotators' noise is the world's own.
    assert strangers <= {str(write.IMPRESSION_NOISE)}


def test_metadata_as_the_hub_reads_it(committed):
    data = committed.data
    assert data.license == "apache-2.0"
    assert data.base_model is None
    assert data.model_name == "DiNa-LRM of the small world"
    scenes = [result for result in data.eval_results if result.dataset_type == "small-world"]
    results = {result.metric_type: result.metric_value for result in scenes}
    measured = json.loads((ROOT / RESULTS / "preferences_world.json").read_text())
    assert results["accuracy"] == pytest.approx(measured["accuracy"], abs=1e-4)
    assert set(results) == {"accuracy", "brier_score", "expected_calibration_error"}
    for absent in ("More Information Needed", "None", "undefined", "/work", "/tmp"):
        assert absent not in committed.content
    for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", committed.text):
        assert (ROOT / EMBEDDED / picture).is_file()


@pytest.fixture
def other(tiny_model, tmp_path):
    """Another model, and results of its own, as a full-size one has them."""
    tiny_model.config.base_model = MEDIUM
    tiny_model.save_pretrained(tmp_path / "model")
    results = tmp_path / "results"
    results.mkdir()
    preferences = json.loads((ROOT / RESULTS / "preferences_world.json").read_text())
    preferences |= {"benchmark": "hpdv3", "categories": {}, "used": 4000, "failed_pairs": 3}
    preferences |= {"revision": weights_hash(tmp_path / "model"), "command": COMMAND}
    preferences["settings"] |= {"model": "owner/name", "data": "hpdv3/"}
    del preferences["best_reachable_accuracy"]
    (results / "hpdv3.json").write_text(json.dumps(preferences))
    return tmp_path / "model", results


def test_a_model_of_another_base(command, other, tmp_path):
    model, results = other
    out = tmp_path / "README.md"
    ran = command(model, results, out=out, repo_id="owner/name", dataset="MizzenAI/HPDv3")
    assert ran.exit_code == 0, ran.output
    card = ModelCard.load(out)
    assert card.data.base_model == MEDIUM
    assert card.data.to_dict()["base_model_relation"] == "finetune"
    assert card.data.license_name == "stabilityai-ai-community"
    assert card.data.datasets == ["MizzenAI/HPDv3"]
    assert {result.dataset_type for result in card.data.eval_results} == {"MizzenAI/HPDv3"}
    assert "4,000 pairs under 500 prompts, 3 of them without a score" in card.text
    assert "best reachable" not in card.text
    assert 'from_pretrained("owner/name"' in card.text
    assert f"\n{COMMAND}\n" in card.text
    assert "## Cost" not in card.text
    assert "shapes" not in card.text


def test_cost_beside_other_rewards(command, tmp_path):
    """Of a model of the size of Stable Diffusion 3.5 Medium, whose weights are not needed to say what it costs."""
    cost = json.loads((ROOT / RESULTS / "cost_sd35_medium_1024.json").read_text())
    preferences = json.loads((ROOT / RESULTS / "preferences_world.json").read_text()) | {"benchmark": "hpdv2"}
    results = write.Results([preferences], [cost], None, None, None, {"cost.json": cost["command"]})
    config = write.DinaConfig(base_model=MEDIUM)
    assert write.parameter_counts(config) == cost["parameters"]
    text = write.render(tmp_path, results, config, datasets=["MizzenAI/HPDv3"]).text
    hpsv3 = cost["rewards"]["HPSv3"]
    memory = (hpsv3["weight_bytes"] + hpsv3["gradient"]["kept_bytes"]) / 1e9
    assert f"| HPSv3 | {hpsv3['parameters'] / 1e6:,.0f} | {hpsv3['forward']['flops'] / 1e12:.2f} |" in text
    assert f"| {memory:.1f} |" in text
    assert "71.1 % published, counted here 71.0 % (with decoding)" in text


def test_results_of_other_weights(command, other, tmp_path):
    """Those named are refused, and those that lie about are passed over."""
    model, results = other
    out = tmp_path / "README.md"
    stranger = RESULTS / "preferences_world.json"
    ran = command(model, results, stranger, out=out, dataset="MizzenAI/HPDv3")
    assert ran.exit_code == 2
    assert "expected results (preferences) of the weights sha256:" in said(ran)
    assert command(model, RESULTS, out=out, dataset="MizzenAI/HPDv3").exit_code == 2
    ran = command(model, results, STUDIES[1] / "results.json", out=out, dataset="MizzenAI/HPDv3")
    assert ran.exit_code == 2
    assert "expected results (alignment_study) of the weights sha256:" in said(ran)
    assert not out.exists()


def test_rude_inputs(command, other, tmp_path):
    model, results = other
    head = '"command": "", "revision": null, "settings": {}'
    faulty = {"broken.json": "{", "list.json": "[]", "other.json": '{"a": 1}', "kind.json": f'{{"kind": "a", {head}}}'}
    for name, text in faulty.items():
        (tmp_path / name).write_text(text)
        ran = command(model, results, tmp_path / name, out=tmp_path / "README.md", dataset="a/b")
        assert ran.exit_code == 2
        assert "results: expected" in said(ran)
    assert "dataset: expected" in said(command(model, results, out=tmp_path / "README.md"))
    assert "model: expected" in said(command(tmp_path, results, out=tmp_path / "README.md", dataset="a/b"))
    assert "out: expected" in said(command(model, results, out=tmp_path / "card.txt", dataset="a/b"))
    assert command(model, tmp_path / "nowhere.json", out=tmp_path / "README.md", dataset="a/b").exit_code == 2
    assert not (tmp_path / "README.md").exists()
