"""The learning curve of votes: its ceiling and splits by hand, its summary, and a run in miniature."""

import json

import numpy as np
import pytest

from modeling_dina.options import EMBEDDED_MODEL
from training.label.ceiling import annotator_ceiling, best_reachable
from training.label.curve_figure import draw_curve
from training.label.learning_curve import describe, main, read_ceiling, split_prompts, summarize
from training.label.pairs import Pair, record_pairs
from training.label.votes import Vote, VoteFile


def test_ceiling_of_two_annotators_by_hand():
    preferences = {
        "agree": {"ann": [1.0], "bob": [1.0]},
        "differ": {"ann": [1.0], "bob": [0.0]},
        "one tie": {"ann": [0.5], "bob": [1.0]},
        "two ties": {"ann": [0.5], "bob": [0.5]},
        "a repeat": {"ann": [1.0, 0.0], "bob": [0.0]},
        "one annotator": {"ann": [1.0]},
    }
    found = annotator_ceiling(preferences, {pair: pair for pair in preferences})
    assert found["mean"] == pytest.approx((1 + 0 + 0.5 + 0.5 + 0.5) / 5)
    assert found["pairs"] == 5
    low, high = found["interval"]
    assert low < found["mean"] < high
    assert found["best_reachable"] == best_reachable(high)


def test_ceiling_of_three_annotators_counts_all_couples():
    found = annotator_ceiling({"pair": {"ann": [1.0], "bob": [1.0], "cy": [0.0]}}, {"pair": "prompt"})
    assert found["mean"] == pytest.approx(1 / 3)
    assert found["interval"] is None


def test_no_ceiling_of_one_annotator():
    assert annotator_ceiling({"pair": {"ann": [1.0, 1.0]}}, {"pair": "prompt"}) is None


def test_best_reachable_is_the_majority_if_all_pairs_are_alike():
    for p in (0.5, 0.6, 0.75, 1.0):
        assert best_reachable(p**2 + (1 - p) ** 2) == pytest.approx(max(p, 1 - p))
    # Half of the pairs are certain, half are coins: the best is 0.75 like the annotators, and the bound is above.
    assert best_reachable(0.75) > 0.75


PROMPTS = [f"prompt {number // 3}" for number in range(60)]  # 20 prompts with three pairs each


def test_splits_by_prompt():
    splits = split_prompts(PROMPTS, folds=5, sizes=4, seed=0)
    assert len(splits) == 20
    held_out = [row for split in splits if split.size == 3 for row in split.held_out]
    assert sorted(held_out) == list(range(60))  # every pair once
    for split in splits:
        train, other = ({PROMPTS[row] for row in rows} for rows in (split.train, split.held_out))
        assert not train & other
        assert len(train) == {0: 2, 1: 4, 2: 8, 3: 16}[split.size]
        assert len(split.train) == 3 * len(train)
    smaller, larger = (next(each for each in splits if (each.fold, each.size) == (2, size)) for size in (1, 2))
    assert set(smaller.train) < set(larger.train)
    assert smaller.held_out == larger.held_out


def test_too_few_prompts_are_refused():
    with pytest.raises(ValueError, match=r"^train_data: .*got 9$"):
        split_prompts(PROMPTS[:27], folds=5, sizes=4, seed=0)
    assert len(split_prompts(PROMPTS[:30], folds=5, sizes=4, seed=0)) == 20


def invented(accuracies):
    """Measurements of 5 folds whose accuracy is as given by size: the first pairs of every fold are right."""
    splits = split_prompts(PROMPTS, folds=5, sizes=len(accuracies), seed=0)
    measured = [[] for _ in accuracies]
    for split in splits:
        right = np.arange(12) < round(12 * accuracies[split.size])
        measured[split.size].append(
            {
                "votes": 2.0 * len(split.train),
                "row": split.held_out,
                "probability": np.where(right, 0.8, 0.2).tolist(),
                "target": [1.0] * 12,
                "accuracy": right.astype(float).tolist(),
                "log_likelihood": np.log(np.where(right, 0.8, 0.2)).tolist(),
            }
        )
    return measured


@pytest.fixture(scope="module")
def results():
    ceiling = {"mean": 0.8, "standard_error": 0.01, "interval": [0.78, 0.82], "pairs": 30, "best_reachable": 0.9}
    found = summarize(invented([0.5, 7 / 12, 8 / 12, 9 / 12]), PROMPTS, votes=120, best_accuracy=0.9)
    return {"votes": 120.0, "ceiling": ceiling, **found}


def test_summary_by_hand(results):
    json.dumps(results, allow_nan=False)
    assert [point["votes"] for point in results["points"]] == [12, 24, 48, 96]
    assert [point["accuracy"]["mean"] for point in results["points"]] == pytest.approx(
        [6 / 12, 7 / 12, 8 / 12, 9 / 12]
    )
    last = results["points"][-1]
    assert last["log_likelihood"]["mean"] == pytest.approx(0.75 * np.log(0.8) + 0.25 * np.log(0.2))
    # Nine of twelve have the probability 0.8 and three 0.2, and all have the target 1.
    assert last["calibration_error"] == pytest.approx(0.75 * 0.2 + 0.25 * 0.8)
    found = results["forecast"]["accuracy"]
    assert 0.74 < found["now"] < found["doubled"] <= 0.9
    assert found["gain"] == pytest.approx(found["doubled"] - found["now"])
    assert found["doubled_interval"][0] <= found["doubled"] <= found["doubled_interval"][1] <= 0.9
    assert results["forecast"]["log_likelihood"]["doubled"] < 0


def test_summary_in_words_and_in_a_figure(results, tmp_path):
    text = describe(results)
    assert "96 votes: accuracy 0.750" in text
    assert "240 votes in place of 120" in text
    draw_curve(results).savefig(tmp_path / "curve.png")
    draw_curve(results | {"ceiling": None}).savefig(tmp_path / "without.png")


def test_ceiling_of_a_folder_of_votes(tmp_path):
    record_pairs(tmp_path, [Pair("x", "a dog", "1.png", "2.png"), Pair("y", "a cat", "3.png", "4.png")])
    votes = VoteFile(tmp_path)
    for annotator, left in (("ann", "a"), ("bob", "b")):
        votes.vote(Vote(annotator, 0, "x", left, "left"))  # different pictures
        votes.vote(Vote(annotator, 1, "y", left, "left" if left == "a" else "right"))  # the same picture
    votes.close()
    found = read_ceiling(tmp_path)
    assert (found["mean"], found["pairs"]) == (0.5, 2)


@pytest.fixture
def output_dir(tmp_path):
    return tmp_path / "curve"


@pytest.fixture
def arguments(tmp_path, output_dir):
    """Flags of trainings of one update on one block of the embedded generator, on 96 pairs of the small world."""
    config = tmp_path / "config.yaml"
    config.write_text(
        f"""
base_model: {EMBEDDED_MODEL}
reward_config: {{num_layers: 1, visual_layers: [1], text_layers: [1], head_width: 16, max_sequence_length: 14}}
backbone: frozen
train_data: ["world:16:1"]
output_dir: {output_dir}
use_cpu: true
max_steps: 1
per_device_train_batch_size: 16
ema_decay: 0
report_to: none
disable_tqdm: true
"""
    )
    return ["--config", str(config)]


@pytest.mark.slow
def test_a_run_resumes(arguments, output_dir, capsys):
    flags = [*arguments, "--folds", "2", "--sizes", "3"]
    main(flags)
    results = json.loads((output_dir / "learning_curve.json").read_text())
    counts = [point["votes"] for point in results["points"]]
    assert counts == sorted(counts)
    assert (counts[-1], results["votes"]) == (48, 96)
    assert 0 < results["points"][0]["accuracy"]["mean"] < 1
    assert (output_dir / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    assert not list((output_dir / "training").iterdir())

    point = output_dir / "points" / "1-2.json"
    before = json.loads(point.read_text())
    point.unlink()
    main(flags)
    again = json.loads(point.read_text())
    assert again["row"] == before["row"]
    assert again["probability"] == pytest.approx(before["probability"], abs=1e-4)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main([*flags, "--learning_rate", "0.1"])
    assert "optimizer: expected" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("folds", "1", "folds: expected at least 2"),
        ("sizes", "2", "sizes: expected at least 3"),
        ("votes", "nowhere", "votes: cannot load nowhere"),
        ("output_dir", "README.md", "output_dir: expected a folder"),
    ],
)
def test_settings_that_are_refused(arguments, output_dir, flag, value, message, capsys):
    with pytest.raises(SystemExit):
        main([*arguments, f"--{flag}", value])
    assert f"Error: {message}" in capsys.readouterr().err
    assert not output_dir.exists()
