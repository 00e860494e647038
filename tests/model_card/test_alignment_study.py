"""The alignment study: its summary by hand, and a run of it in miniature."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer import Typer
from typer.testing import CliRunner

from model_card.studies.alignment import measurement, summary
from model_card.studies.alignment.__main__ import AlignmentStudy, main
from model_card.studies.alignment.costs import count_full_size
from model_card.studies.alignment.report import write_report
from model_card.studies.alignment.variants import DECODED, LATENT, VARIANTS
from modeling_dina.options import EMBEDDED_MODEL
from tests.model_card.reports import assert_report_is_of_results
from training.align.evaluation import diversity

ROOT = Path(__file__).parents[2]
COST = {"seconds": 2.0, "peak_bytes": 1e6, "flops": 1e9}


def point(update, utility, dina=0.0, pixel=0.0):
    """An evaluation of four captions whose utilities lie around a mean."""
    spread = np.array([-0.3, -0.1, 0.1, 0.3])
    values = {"utility": utility + spread, "dina": dina + spread, "pixel": pixel + spread, "diversity": 1 + spread}
    return {"update": update, **{name: each.tolist() for name, each in values.items()}}


def read_results():
    """Of the study as it was run."""
    return json.loads((ROOT / "model_card/results/alignment_study/results.json").read_text())


# The second seed is watched to be best at the second evaluation, the first at the last.
CURVES = [
    [point(0, 2.0), point(10, 3.0, dina=1, pixel=0.2), point(20, 2.5, dina=2, pixel=0.3)],
    [point(0, 2.0), point(10, 3.2, dina=1, pixel=0.5), point(20, 2.1, dina=2, pixel=0.1)],
]


def test_variant_by_hand():
    row = summary.summarize_variant(CURVES, "dina", COST)
    assert row["watched"] == "pixel"
    assert [each["update"] for each in row["curve"]] == [0, 10, 20]
    assert [each["seconds"] for each in row["curve"]] == [0, 20, 40]
    assert [each["utility"]["mean"] for each in row["curve"]] == pytest.approx([2.0, 3.1, 2.3])
    assert row["last"]["utility"]["rise"]["mean"] == pytest.approx(0.3)
    assert row["selected"]["updates"] == [20, 10]
    assert row["selected"]["utility"]["mean"] == pytest.approx((2.5 + 3.2) / 2)
    # The captions' own utilities cancel: what is uncertain is the seeds' difference alone.
    assert row["selected"]["utility"]["rise"]["standard_error"] == pytest.approx(np.std([0.5, 1.2], ddof=1) / 2**0.5)


@pytest.mark.parametrize(("utility", "expected"), [(1.5, 0.0), (2.0, 0.0), (2.55, 10.0), (3.1, 20.0), (3.2, None)])
def test_seconds_to_reach(utility, expected):
    curve = summary.summarize_variant(CURVES, "dina", COST)["curve"]
    reached = summary.seconds_to_reach(curve, utility)
    assert reached == (None if expected is None else pytest.approx(expected))


def test_aim_by_hand():
    slower = COST | {"seconds": 4.0, "peak_bytes": 4e6}
    pixels = [[point(0, 2.0), point(10, 2.55, dina=0.5), point(20, 2.55, dina=0.2)]]
    rows = {
        LATENT: summary.summarize_variant(CURVES, "dina", COST),
        DECODED: summary.summarize_variant(pixels, "pixel", slower),
    }
    aim = summary.compare_with_pixels(rows)
    assert aim["targets"]["last"] == pytest.approx(
        {"utility": 2.55, "pixel_seconds": 80.0, "seconds": 10.0, "ratio": 0.125}
    )
    assert aim["targets"]["selected"]["ratio"] == pytest.approx(0.25)
    assert aim["peak_bytes"] == {"latent": 1e6, "pixel": 4e6}
    assert aim["verdict"] == "undecided"  # two seeds as far apart as these say little


def test_diversity_by_hand():
    latents = torch.zeros(4, 2, 1, 2)
    latents[1] += 2.0
    latents[3, 0] += 1.0
    assert diversity(latents, 2).tolist() == pytest.approx([2.0, 0.5**0.5])
    three = torch.tensor([0.0, 1.0, 3.0]).view(3, 1, 1, 1)
    assert diversity(three, 3).tolist() == pytest.approx([2.0])


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_are_runs(name, tmp_path):
    study = AlignmentStudy(tmp_path, EMBEDDED_MODEL, scale=1.0, seeds=1, names=[name])
    arguments, algorithm_arguments = study.arguments(name, tmp_path, seed=3)
    assert arguments.seed == 3
    assert arguments.rewards == [VARIANTS[name].reward]
    assert arguments.watched == []
    assert arguments.policy == EMBEDDED_MODEL
    assert algorithm_arguments.evaluations().scored >= 1


def test_size():
    updates, samples, prompts = (AlignmentStudy.amounts[name] for name in ("updates", "eval_samples", "prompts"))
    assert (updates.scaled(1.0), samples.scaled(1.0), prompts.scaled(1.0)) == (80, 96, 1.0)
    assert (updates.scaled(0.0), samples.scaled(0.0), prompts.scaled(0.0)) == (2, 4, 0.0)
    assert samples.scaled(0.5) == 48


def test_the_committed_tables_are_of_the_committed_results(tmp_path):
    """If this fails after a change of the results or of the tables: the study's command with --report."""
    assert_report_is_of_results("alignment_study", write_report, tmp_path)


app = Typer(pretty_exceptions_enable=False)
app.command()(main)


def test_rude_inputs(tmp_path):
    (tmp_path / "file").write_text("")
    for options, message in (
        (["--out", str(tmp_path / "file")], "out: expected a folder"),
        (["--out", str(tmp_path / "new"), "--pipeline", "nowhere"], "pipeline: expected a folder"),
    ):
        ran = CliRunner().invoke(app, options)
        assert ran.exit_code == 2
        assert message in ran.output
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_full_size_as_committed():
    full_size = read_results()["full_size"]
    noisy, clean, pixels = full_size.values()
    assert clean["flops"]["update"] == pixels["flops"]["update"]
    assert clean["bytes"]["generator"] == pixels["bytes"]["generator"]
    # A level of DiNa-LRM forward and back against HPSv3 behind the decoder: README's table.
    assert clean["flops"]["reward"] == pytest.approx(17.07e12, rel=1e-3)
    assert pixels["flops"]["reward"] == pytest.approx(46.90e12, rel=1e-3)
    # 0 to 38 steps before the gradient against 30 to 39, each under guidance.
    assert clean["flops"]["sampling"] / noisy["flops"]["sampling"] == pytest.approx(34.5 / 19)


@pytest.mark.slow
def test_full_size_is_counted_as_committed():
    assert count_full_size() == read_results()["full_size"]


# Few steps and draws, which make the same computations as many.
FEW_STEPS = {"num_steps": 3, "first_step": 1, "last_step": 1, "eval_steps": 1, "reward_draws": 1}


@pytest.mark.slow
def test_study_in_miniature_goes_on_where_it_stopped(tmp_path, monkeypatch):
    # The cost at full size does not depend on the study's own size, and takes longer to count than everything else.
    (tmp_path / "full_size.json").write_text(json.dumps(read_results()["full_size"]))
    for name in VARIANTS.keys() - {LATENT, DECODED}:
        monkeypatch.delitem(VARIANTS, name)
    for name, variant in list(VARIANTS.items()):
        monkeypatch.setitem(VARIANTS, name, replace(variant, overrides=variant.overrides | FEW_STEPS))
    monkeypatch.setattr(measurement, "CANDIDATES", (2, 4))
    command = ["--out", str(tmp_path), "--scale", "0", "--seeds", "1"]
    first = CliRunner().invoke(app, [*command, "--variant", LATENT])
    assert first.exit_code == 0, first.output
    alone = json.loads((tmp_path / "results.json").read_text())
    assert [row["variant"] for row in alone["variants"]] == [LATENT]
    assert "aim" not in alone
    assert not (tmp_path / "tables.md").exists()

    (tmp_path / f"variants/{LATENT}-0.json").unlink()
    complete = [tmp_path / f"{name}.json" for name in ("best_of_n", "reward_models", f"costs-{LATENT}")]
    complete = {path: path.stat().st_mtime_ns for path in (*complete, tmp_path / "pixel_reward/model.safetensors")}
    second = CliRunner().invoke(app, command)
    assert second.exit_code == 0, second.output
    assert {path: path.stat().st_mtime_ns for path in complete} == complete
    results = json.loads((tmp_path / "results.json").read_text())
    assert [row["variant"] for row in results["variants"]] == list(VARIANTS)
    # A run does not depend on what was done before it, to the rounding of kernels.
    curves = [[point["dina"]["mean"] for point in found["variants"][0]["curve"]] for found in (alone, results)]
    assert curves[1] == pytest.approx(curves[0], abs=0.01)
    beginnings = [row["curve"][0]["utility"]["mean"] for row in results["variants"]]
    assert beginnings == pytest.approx([results["unaligned"]["utility"]["mean"]] * len(beginnings), abs=0.02)
    cost = {row["variant"]: row["cost"] for row in results["variants"]}
    assert cost[DECODED]["flops"] > cost[LATENT]["flops"]
    assert cost[DECODED]["peak_bytes"] > cost[LATENT]["peak_bytes"] > 0
    by = {(each["reward"], each["candidates"]): each for each in results["best_of_n"]}
    for reward in ("dina", "pixel"):
        assert by[reward, 4][reward]["mean"] > by[reward, 2][reward]["mean"] - 1e-3
    assert not list((tmp_path / "runs").glob("*/checkpoint-*"))
    page = (tmp_path / "tables.md").read_text()
    assert all((tmp_path / f"{name}.png").is_file() and f"]({name}.png)" in page for name in ("rewards", "utility"))

    other = CliRunner().invoke(app, [*command[:-4], "--scale", "1"])
    assert other.exit_code == 2
    assert "size" in other.output
