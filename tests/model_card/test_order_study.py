"""The study of orders: its votes, its statistics by hand, its report, and a run of it in miniature."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset
from diffusers import StableDiffusion3Pipeline
from typer import Typer
from typer.testing import CliRunner

from model_card.studies.method.measurement import latent_reader
from model_card.studies.orders import __main__ as study
from model_card.studies.orders.measurement import collect_votes, frozen_reader, voted_pairs, with_taste
from model_card.studies.orders.report import write_report
from model_card.studies.orders.summary import equivalents, gain, summarize
from model_card.studies.orders.variants import VARIANTS
from modeling_dina import DinaRewardModel
from modeling_dina.options import EMBEDDED_MODEL
from modeling_dina.pipelines_dina import EncodedPrompts
from tests.model_card.reports import assert_report_is_of_results
from training.label.order import orders
from training.label.votes import VoteFile
from training.world.groups import Groups
from training.world.latents import rendered_groups
from training.world.models.scores import encode_captions

VOTES = np.array([10, 20, 40, 80])


def test_every_order_is_studied():
    assert set(VARIANTS) == set(orders())


def test_taste_by_hand():
    """A picture that matches and is clean, one that matches and is rough, and two that do not match."""
    utilities = np.array([[4.0 + 2.0, 4.0 + 0.5, 0.0 + 2.0, 0.0]])
    found = with_taste(Groups(["a"], utilities), [[1.0, 0.25, 1.0, 0.0]])
    assert found.utilities.tolist() == [pytest.approx([0.0, 3.0, -4.0, 0.0])]


@pytest.fixture
def votes(tmp_path):
    file = VoteFile(tmp_path / "votes")
    yield file
    file.close()


def test_votes_of_the_annotator(votes):
    prefers_a = np.array([True, False, True, False, True, False])
    prompts = list("aabbcc")
    pairs = Dataset.from_dict({"prompt": prompts, "target": [9.0] * 6}).with_transform(lambda batch: batch)
    collect_votes(votes, prompts, [4, 1], prefers_a)
    collect_votes(votes, prompts, [3], prefers_a)
    rows, voted = voted_pairs(votes, pairs)
    assert rows == [4, 1, 3]
    assert voted[:] == {"prompt": ["c", "a", "b"], "target": [1.0, 0.0, 0.0]}


# ---- statistics ----


def curve(*accuracies):
    """The same accuracies for two seeds and three groups."""
    return np.broadcast_to(np.array(accuracies)[:, None], (2, 4, 3))


def test_an_order_that_needs_half_as_many_votes():
    found = equivalents(curve(0.6, 0.65, 0.7, 0.75), curve(0.55, 0.6, 0.65, 0.7), VOTES)
    assert [each["votes"] for each in found] == [20, 40, 80]
    # The last one is beyond the curve of the random order, and so is what it needs.
    assert [each["mean"] for each in found] == pytest.approx([40, 80, 80])
    assert found[0]["interval"] == pytest.approx([40, 40])


def test_equivalents_between_numbers_of_votes():
    """Half of the way from 20 to 40 votes, in the logarithm; and a random curve that falls by chance."""
    found = equivalents(curve(0.5, 0.65, 0.65, 0.4), curve(0.5, 0.6, 0.7, 0.69), VOTES)
    assert [each["mean"] for each in found] == pytest.approx([20 * 2**0.5, 20 * 2**0.5, 10])


def test_the_gain_leaves_out_the_first_votes():
    assert gain(curve(9.0, 0.1, 0.2, 0.3))["mean"] == pytest.approx(0.2)


def invented(offset, seed):
    """A run whose accuracy grows with the votes, plus an offset."""
    rng = np.random.default_rng(seed)
    own = rng.normal(0, 0.05, 30)
    return {
        "seconds": 1.0,
        "points": [
            {
                "votes": int(count),
                "prompts": int(count) // 2,
                "accuracy": (0.5 + 0.02 * size + offset * bool(size) + own).tolist(),
                "log_likelihood": (-0.6 + 0.01 * size + own).tolist(),
                "calibration_error": 0.1 / (size + 1),
            }
            for size, count in enumerate(VOTES)
        ],
    }


BOUNDS = {
    name: {"accuracy": [value] * 30, "log_likelihood": [-0.5] * 30}
    for name, value in (("present", 0.6), ("best", 0.8))
}


@pytest.fixture(scope="module")
def results():
    runs = {name: [invented(0.02 * (name == "entropy"), seed) for seed in range(3)] for name in VARIANTS}
    return summarize(runs, BOUNDS, {"seconds": 0.01})


def test_summary(results):
    by_name = {each["variant"]: each for each in results["orders"]}
    assert "against_random" not in by_name["random"]
    found = by_name["entropy"]["against_random"]
    assert found["accuracy"]["mean"] == pytest.approx(0.02)
    assert found["verdict"] == "held"
    assert [each["mean"] for each in found["by_size"]] == pytest.approx([0, 0.02, 0.02, 0.02])
    assert [each["mean"] for each in found["equivalents"]] == pytest.approx([40, 80, 80])
    assert by_name["coverage"]["against_random"]["verdict"] == "undecided"
    assert results["bounds"]["best"]["accuracy"]["mean"] == pytest.approx(0.8)


def test_some_orders_are_summarized_alone():
    found = summarize({"entropy": [invented(0, 0)]}, BOUNDS, {"seconds": 0.01})
    assert "against_random" not in found["orders"][0]


def test_report_is_made_from_the_results(tmp_path):
    assert_report_is_of_results("order_study", write_report, tmp_path)


def test_report_has_every_order(results, tmp_path):
    json.dumps(results, allow_nan=False)
    write_report(results, tmp_path)
    page = (tmp_path / "tables.md").read_text()
    assert all(page.count(f"| {each.title} |") >= 2 for each in VARIANTS.values())
    assert "+2.0 [+2.0, +2.0]" in page
    assert "](accuracy_by_votes.png)" in page
    assert (tmp_path / "accuracy_by_votes.png").read_bytes().startswith(b"\x89PNG")


# ---- rewards ----


def test_frozen_features_make_the_same_rewards(tmp_path):
    """Those of another head on the same backbone."""
    pipeline = StableDiffusion3Pipeline.from_pretrained(EMBEDDED_MODEL, transformer=None, dtype=torch.float32)
    pipeline.vae.requires_grad_(False)
    present, other = (DinaRewardModel.from_pretrained(EMBEDDED_MODEL).eval() for _ in range(2))
    with torch.no_grad():
        for parameter in other.head.parameters():
            parameter.mul_(0.9)
    groups = rendered_groups(tmp_path, pipeline.vae, groups=2, seed=54)

    def encode(prompts):
        return EncodedPrompts(*(each.float() for each in encode_captions(pipeline, prompts)))

    found = frozen_reader(present, encode, groups, (0.1, 0.4), 2)(other)
    expected = latent_reader(other, encode, True)(groups, (0.1, 0.4), 2, "noisy latents").combine("features", 2, 2)
    assert found.scores == pytest.approx(expected.scores, abs=1e-5)
    assert found.variance == pytest.approx(expected.variance)


# ---- the whole ----

app = Typer(pretty_exceptions_enable=False)
app.command()(study.main)


@pytest.mark.slow
def test_study_in_miniature(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "DOUBLINGS", 1)
    chosen = [word for name in ("random", "disagreement") for word in ("--variant", name)]
    ran = CliRunner().invoke(app, ["--out", str(tmp_path), "--scale", "0", "--seeds", "1", *chosen])
    assert ran.exit_code == 0, ran.output
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["kind"] == "order_study"
    assert [point["votes"] for point in results["orders"][0]["points"]] == [8, 16]
    runs = {
        name: json.loads((tmp_path / "variants" / f"{name}-0.json").read_text()) for name in ("random", "disagreement")
    }
    first, second = zip(*(run["points"] for run in runs.values()), strict=True)
    # No reward has ordered the first votes, so that they are the same; the others are not.
    assert first[0]["accuracy"] == first[1]["accuracy"]
    assert second[0]["accuracy"] != second[1]["accuracy"]
    assert results["seconds_per_pair"] > 0
    assert not list((tmp_path / "training").iterdir())
