"""Orders of pairs: their properties with statistics written by hand, and those of the embedded reward on pictures."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_dina import DinaScorer
from modeling_dina.evaluation.benchmarks.preference_set import Pairs
from modeling_dina.evaluation.rewards import DinaEvaluator, Rewards
from modeling_dina.options import EMBEDDED_MODEL
from training.label.order import JOURNAL, OrderOptions, order_rows, score_pairs
from training.world.groups import draw_group
from training.world.seeds import Seed

PROMPTS = ["a", "a", "a", "b", "b", "c"]


def separate_pairs(count):
    """Pairs that share no image: 0 and 1, 2 and 3, …"""
    places = np.arange(count)
    return Pairs(places, 2 * places, 2 * places + 1, *(np.full(count, value) for value in (0.5, 0.5, "")))


def statistics_of(*differences):
    """Statistics of pairs with these differences of rewards, a list over draws for each pair."""
    samples = np.zeros((1, len(differences[0]), 2 * len(differences)))
    samples[0, :, ::2] = np.array(differences, float).T
    return Rewards(samples, np.ones(1), np.array([0.5])).statistics(separate_pairs(len(differences)))


def test_entropy_of_a_pair_by_hand():
    """The variance of the difference is 1, so that draws 1 and -1 have the probabilities Phi(1) and Phi(-1)."""
    found = statistics_of([1.0, -1.0])
    p = 0.5 * math.erfc(-1 / math.sqrt(2))
    single = -p * math.log(p) - (1 - p) * math.log(1 - p)
    assert found.win_probability.item() == pytest.approx(0.5)
    assert found.entropy.item() == pytest.approx(math.log(2))
    assert found.likelihood_entropy.item() == pytest.approx(single)
    assert found.disagreement.item() == pytest.approx(math.log(2) - single)


def test_uncertain_pairs_come_first():
    # A certain pair, a coin in every draw, two draws that contradict each other, and a fairly certain pair.
    statistics = statistics_of([3.0, 3.0], [0.1, 0.1], [2.5, -2.4], [1.0, 1.0])
    prompts = ["a"] * 4

    def order(name):
        return order_rows(name, prompts, seed=0, statistics=statistics)

    assert order("likelihood_entropy") == [1, 3, 2, 0]
    assert order("disagreement")[0] == 2
    assert order("entropy")[2:] == [3, 0]
    assert order_rows("entropy", prompts[:2], seed=0, statistics=statistics_of([3.0, 3.0], [0.0, 0.0])) == [1, 0]


def test_pairs_that_cannot_be_scored_come_last():
    statistics = statistics_of([math.nan], [2.0], [0.0])
    assert order_rows("entropy", ["a"] * 3, seed=0, statistics=statistics) == [2, 1, 0]


def test_coverage_takes_every_prompt_once_before_any_twice():
    for seed in range(5):
        rows = order_rows("coverage", PROMPTS, seed=seed)
        assert sorted(rows) == list(range(6))
        assert {PROMPTS[row] for row in rows[:3]} == {"a", "b", "c"}
        assert Counter(PROMPTS[row] for row in rows[:5]) == {"a": 2, "b": 2, "c": 1}


def test_coverage_counts_the_votes_so_far():
    rows = order_rows("coverage", PROMPTS, seed=0, voted=[0, 3, 4])
    assert [PROMPTS[row] for row in rows] == ["c", "a", "a"]


def test_random_order_has_a_seed_and_leaves_out_pairs_with_votes():
    rows = order_rows("random", PROMPTS, seed=1)
    assert sorted(rows) == list(range(6))
    assert order_rows("random", PROMPTS, seed=1) == rows
    assert any(order_rows("random", PROMPTS, seed=seed) != rows for seed in range(2, 6))
    assert order_rows("random", PROMPTS, seed=1, voted=[2, 5]) == [row for row in rows if row not in (2, 5)]


def test_equal_pairs_are_in_random_order():
    statistics = statistics_of(*[[0.0]] * 6)
    assert order_rows("entropy", PROMPTS, seed=3, statistics=statistics) == order_rows("random", PROMPTS, seed=3)


@pytest.mark.parametrize(
    ("name", "statistics", "argument", "found"),
    [
        ("newest", None, "order", "'newest'"),
        ("entropy", None, "statistics", "none"),
        ("disagreement", statistics_of([0.0]), "statistics", "1"),
    ],
)
def test_orders_that_are_refused(name, statistics, argument, found):
    with pytest.raises(ValueError, match=f"^{argument}: .*{found}$"):
        order_rows(name, PROMPTS, seed=0, statistics=statistics)


@pytest.mark.parametrize(("order", "model"), [("random", EMBEDDED_MODEL), ("entropy", None)])
def test_only_uncertainty_needs_a_model(order, model):
    with pytest.raises(ValueError, match=f"^model: .*{order}"):
        OrderOptions(order, model).check()
    OrderOptions(order, EMBEDDED_MODEL if model is None else None).check()


# ---- pictures ----


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Prompts and files of three pairs of one group, which share pictures, and of one of another prompt."""
    folder, found = tmp_path_factory.mktemp("pictures"), []
    for index, places in ((0, ((0, 1), (0, 2), (1, 2))), (1, ((0, 1),))):
        description, pictures = draw_group(Seed.EXAMPLES, index)
        files = [str(folder / f"{index}-{number}.png") for number in range(3)]
        for file, picture in zip(files, pictures, strict=False):
            Image.fromarray(picture).save(file)
        found += [(description.caption, files[a], files[b]) for a, b in places]
    return found


@pytest.fixture(scope="module")
def evaluator():
    scorer = DinaScorer.from_pretrained(EMBEDDED_MODEL)
    return DinaEvaluator(scorer, EMBEDDED_MODEL, sigmas=[0.2], num_draws=2)


def test_statistics_are_those_of_a_comparison(evaluator, pairs, tmp_path):
    progress = []
    found, failures = score_pairs(
        evaluator, pairs, tmp_path, batch_size=8, progress=lambda done, total: progress.append((done, total))
    )
    assert failures == []
    assert progress[-1] == (5, 5)  # every picture once
    for row, (prompt, *images) in enumerate(pairs):
        expected = evaluator.scorer.compare(prompt=prompt, images=images, sigmas=[0.2], num_draws=2)
        for name in ("win_probability", "likelihood_entropy", "disagreement", "entropy"):
            assert getattr(found, name)[row].item() == pytest.approx(getattr(expected, name), abs=1e-5)


def test_a_picture_that_is_missing_makes_its_pairs_last(evaluator, pairs, tmp_path):
    (prompt, image, _), missing = pairs[3], str(tmp_path / "missing.png")
    found, failures = score_pairs(evaluator, [(prompt, image, missing), *pairs[:2]], tmp_path, batch_size=8)
    assert [failure["name"] for failure in failures] == [missing]
    assert torch.isnan(found.entropy).tolist() == [True, False, False]
    rows = order_rows("entropy", [prompt] * 3, seed=0, statistics=found)
    assert rows[-1] == 0


def test_interrupted_scoring_resumes(evaluator, pairs, tmp_path):
    class Stop(Exception):  # noqa: N818
        pass

    def stop(done, total):
        if done:
            raise Stop

    with pytest.raises(Stop):
        score_pairs(evaluator, pairs, tmp_path, batch_size=2, progress=stop)
    assert (tmp_path / JOURNAL).read_text().count("\n") == 2  # the settings and one batch
    found, _ = score_pairs(evaluator, pairs, tmp_path, batch_size=2)
    again, _ = score_pairs(evaluator, pairs, tmp_path, batch_size=2)
    assert torch.equal(found.entropy, again.entropy)
    assert not (tmp_path / JOURNAL).exists()


def test_options_order_pictures(pairs, tmp_path):
    rows, failures = OrderOptions("entropy", EMBEDDED_MODEL).rows(pairs, tmp_path, seed=0, voted=[1])
    assert sorted(rows) == [0, 2, 3]
    assert failures == []
