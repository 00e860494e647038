"""The distillation study: its labels, its report, and a run of it in miniature."""

import json

import numpy as np
import pytest
import torch
from typer import Typer
from typer.testing import CliRunner

from model_card.studies.distillation.__main__ import main
from model_card.studies.distillation.report import VARIANTS, summarize, write_report
from model_card.studies.method.summary import SETS
from tests.model_card.reports import assert_report_is_of_results
from training.encode_world import write_pairs
from training.reward.data import load_pairs, with_targets
from training.world.groups import Groups


def test_labels_replace_votes_and_nothing_else(tmp_path):
    latents = torch.randn(2, 4, 16, 8, 8, generator=torch.Generator().manual_seed(0)).half()
    groups = Groups(["a", "b"], np.arange(8.0).reshape(2, 4), latents=latents)
    write_pairs(groups, tmp_path)
    pairs, targets = load_pairs([tmp_path]), (np.arange(12) / 12).tolist()
    labelled = with_targets(pairs, targets)
    assert [labelled[row]["target"] for row in range(12)] == targets
    for before, after in zip(pairs, labelled, strict=True):
        assert (before["prompt"], before["row"]) == (after["prompt"], after["row"])
        assert torch.equal(torch.as_tensor(before["latents_b"]), torch.as_tensor(after["latents_b"]))
    # The pairs are in the order of `Groups.pairs`, to which the scores belong.
    first, _ = groups.pairs
    for row, image in enumerate(first):
        assert torch.equal(torch.as_tensor(labelled[row]["latents_a"]).half(), latents.flatten(0, 1)[image])
    part = groups.first(1)
    assert (len(part), part.captions) == (1, ["a"])
    assert torch.equal(part.latents, latents[:1])


def invented(name, accuracy):
    """What would be measured of a reward with this accuracy in each of three groups."""
    measured = {of: {"accuracy": [accuracy] * 3, "log_likelihood": [-0.5] * 3} for of in SETS}
    counts = {"votes": 240 if name == "votes" else 30, "pairs": 240 if name in ("votes", "distilled") else 30}
    parts = {"distilled": ("scorer", "labels", "reward"), "scorer": ("scorer",)}.get(name, ("reward",))
    seconds = {part: 60.0 * place for place, part in enumerate(parts, start=1)}
    return {**counts, "parts": seconds, "evaluations": {VARIANTS[name].evaluations[0]: measured}}


def test_report(tmp_path):
    accuracies = {"votes": 0.75, "few_votes": 0.65, "scorer": 0.7, "distilled": 0.72}
    best = {of: {"accuracy": [0.85, 0.85, 0.85]} for of in SETS}
    runs = {name: [invented(name, value), invented(name, value)] for name, value in accuracies.items()}
    results = summarize(runs, best)
    json.dumps(results, allow_nan=False)
    write_report(results, tmp_path)
    page = (tmp_path / "tables.md").read_text()
    accuracy = "72.0 [72.0, 72.0]"
    row = ["distilled from the pixel scorer", accuracy, accuracy, "30", "240", "1.0", "2.0", "3.0", "6.0"]
    assert f"| {' | '.join(row)} |" in page
    assert "| Distillation is better than training on the scorer's votes alone | +7.0 [+7.0, +7.0] |" in page
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    alone = summarize({"votes": runs["votes"]}, best)
    assert alone["claims"] == []


def test_report_is_made_from_the_results(tmp_path):
    assert_report_is_of_results("distillation_study", write_report, tmp_path)


@pytest.mark.slow
def test_study_in_miniature(tmp_path):
    app = Typer(pretty_exceptions_enable=False)
    app.command()(main)
    ran = CliRunner().invoke(app, ["--out", str(tmp_path), "--scale", "0", "--seeds", "1"])
    assert ran.exit_code == 0, ran.output
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["kind"] == "distillation_study"
    found = {each["variant"]: (each["votes"], each["pairs"], set(each["parts"])) for each in results["variants"]}
    assert found == {
        "votes": (72, 72, {"reward"}),
        "few_votes": (18, 18, {"reward"}),
        "scorer": (18, 18, {"scorer"}),
        "distilled": (18, 72, {"scorer", "labels", "reward"}),
    }
