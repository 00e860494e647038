"""How often a reward agrees with people.

Benchmarks are read as their public repositories hold them and measured by their official accuracy. Images are scored
once each, in batches; an interrupted run goes on where it stopped, and an image that cannot be used is reported.
"""

from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from modeling_dina.evaluation.benchmarks import Benchmark, Ties, find_benchmark
from modeling_dina.evaluation.benchmarks.preference_set import Item, Pairs, PreferenceSet
from modeling_dina.evaluation.rewards import RewardEvaluator, Rewards, WrongCountError
from modeling_dina.evaluation.statistics import (
    agreement,
    best_tie_threshold,
    brier_score,
    calibration_error,
    clustered_mean,
    negative_log_likelihood,
)
from modeling_dina.files import Journal, write_json
from modeling_dina.isolation import PROBE_PROMPT, error_text, isolate_failures, probe_image
from modeling_dina.scoring_dina import check_prompt

LIBRARIES = ("dina-lrm", "torch", "transformers", "diffusers", "numpy", "pillow")


def evaluate(
    name: str,
    preferences: PreferenceSet,
    evaluator: RewardEvaluator,
    out: Path,
    *,
    batch_size: int,
    folder: Path | None = None,
    seed: int = 0,
    strict: bool = False,
    settings: dict[str, Any] | None = None,
    command: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """
    Scores a benchmark's images, measures the agreement and writes the results.

    Args:
        name: of the benchmark.
        preferences: what its `read` returned.
        evaluator: what is evaluated.
        out: JSON file for the results; until it is written, scores are kept in a journal beside it.
        batch_size: images at a time; it changes no result.
        folder: that the benchmark was read from.
        seed: of the shuffled sides and the bootstrap.
        strict: refuse a set whose size is not the published one.
        settings: further ones to report.
        command: that the results are of, for whoever reads them.
        progress: called with the number of finished images and of all.

    Raises:
        ValueError: nothing could be scored, the size is wrong, or the journal is another run's.
    """
    benchmark = find_benchmark(name)
    test, validation = (preferences.pairs(split).shuffled_sides(seed) for split in ("test", "validation"))
    found = count(benchmark, test, validation)
    differences = {key: found[key] - size for key, size in benchmark.sizes.items() if found[key] != size}
    if strict and differences:
        raise ValueError(f"data: expected the published sizes {benchmark.sizes}, got {found}")
    if not found["used"]:
        raise ValueError(f"data: expected pairs that count, got {found}; failures: {preferences.failures[:3]}")

    settings = run_settings(evaluator, seed) | (settings or {})
    journal = Journal(Path(f"{out}.partial"), content_of(name, preferences, folder) | settings)
    samples, failed = score_items(preferences.items, evaluator, journal, batch_size, progress)
    failures = [*preferences.failures, *failed]
    ensemble = evaluator.ensemble(samples)
    if not scored(ensemble, test).any():
        journal.remove()
        raise ValueError(f"data: expected pairs that can be scored, got none; failures: {failures[:3]}")
    results = {
        "kind": "preferences",
        "command": command,
        "revision": settings["revision"],
        "benchmark": name,
        **measure(benchmark, ensemble, test, validation, seed),
        **found,
        "failures": len(failures),
        "failed_pairs": int((~scored(ensemble, test)).sum()),
        "failed": failures,
        "published_sizes": benchmark.sizes,
        "size_differences": differences,
        "levels": [
            {"sigma": sigma, **measure(benchmark, rewards, test, validation, seed)}
            for sigma, rewards in evaluator.levels(samples).items()
        ],
        "settings": {key: value for key, value in settings.items() if key != "revision"},
    }
    write_json(out, results)
    journal.remove()
    return results


def content_of(name: str, preferences: PreferenceSet, folder: Path | None) -> dict[str, Any]:
    """What distinguishes the images and labels of two runs: the benchmark's name, its rows and its folder."""
    place = None if folder is None else str(folder.resolve())
    return {"benchmark": name, "preferences": preferences.fingerprint(), "folder": place}


def run_settings(evaluator: RewardEvaluator, seed: int) -> dict[str, Any]:
    """What rewards depend on: those of the evaluator, the seed, and the libraries' versions."""
    return {**evaluator.settings, "seed": seed, "libraries": {library: version(library) for library in LIBRARIES}}


def count(benchmark: Benchmark, test: Pairs, validation: Pairs) -> dict[str, int]:
    """Sizes of a set as annotated: prompts, pairs, ties among them, and pairs that the accuracy uses."""
    ties = int((test.label == 0.5).sum())
    sizes = {
        "prompts": len(np.unique(test.cluster)),
        "pairs": len(test),
        "ties": ties,
        "used": len(test) - ties if benchmark.ties is Ties.dropped else len(test),
    }
    return sizes | ({"validation_pairs": len(validation)} if benchmark.ties is Ties.predicted else {})


def score_items(
    items: list[Item],
    evaluator: RewardEvaluator,
    journal: Journal,
    batch_size: int,
    progress: Callable[[int, int], None],
) -> tuple[np.ndarray, list[dict[str, str]]]:
    """
    Rewards of all items that the journal does not hold yet, and of those that it does.

    Returns:
        Readings [R, D, N], NaN for items that cannot be scored; and {"name", "error"} of those.
    """
    rewards = {
        index: reward
        for record in journal.records
        for index, reward in zip(record["items"], record["readings"], strict=True)
    }
    errors: dict[int, str] = {}
    # Batches are the same whether a run was interrupted or not, and so is the last digit of their scores.
    for start in range(0, len(items), batch_size):
        progress(start, len(items))
        batch = [index for index in range(start, min(start + batch_size, len(items))) if index not in rewards]
        if batch:
            scores, failures = _score_batch({index: items[index] for index in batch}, evaluator)
            journal.append({"items": list(scores), "readings": list(scores.values())})
            rewards |= scores
            errors |= failures
    progress(len(items), len(items))

    shape = np.shape(next(iter(rewards.values()), [[np.nan]]))
    samples = np.full((*shape, len(items)), np.nan)
    for index, reward in rewards.items():
        samples[..., index] = reward
    return samples, [{"name": items[index].name, "error": errors[index]} for index in sorted(errors)]


def _score_batch(items: dict[int, Item], evaluator: RewardEvaluator) -> tuple[dict[int, list], dict[int, str]]:
    """Readings [R][D] of the items that can be scored, and why the others cannot."""
    images, failures = {}, {}
    for index, item in items.items():
        try:
            check_prompt(item.prompt)
            images[index] = item.open()
        except Exception as error:
            failures[index] = error_text(error)

    def read(indices: Sequence[int]) -> list:
        rewards = evaluator.score([items[index].prompt for index in indices], [images[index] for index in indices])
        return np.moveaxis(rewards, -1, 0).tolist()

    def probe() -> None:
        evaluator.score([PROBE_PROMPT], [probe_image()])

    if not images:
        return {}, failures
    # One image's fault, NaN in half precision for instance, is not the others'.
    scores, failed = isolate_failures(read, list(images), probe, fatal=(WrongCountError,))
    return dict(scores), failures | dict(failed)


def scored(rewards: Rewards, pairs: Pairs) -> np.ndarray:
    """Which pairs [N] have both their rewards."""
    return np.isfinite(rewards.difference(pairs))


def measure(benchmark: Benchmark, rewards: Rewards, test: Pairs, validation: Pairs, seed: int) -> dict[str, Any]:
    """The official accuracy of a benchmark and what all report, on the pairs that could be scored."""
    test, validation = test[scored(rewards, test)], validation[scored(rewards, validation)]
    difference = rewards.difference(test)
    used = np.ones(len(test), bool)
    extras: dict[str, Any] = {}
    match benchmark.ties:
        case Ties.predicted:
            if not len(validation):
                raise ValueError("data: expected pairs of the validation split that can be scored, got none")
            threshold = best_tie_threshold(rewards.difference(validation), validation.label)
            outcomes = agreement(difference, test.label, ties="predicted", threshold=threshold)
            extras["tie_threshold"] = threshold
        case Ties.correct:
            outcomes = np.where(test.label == 0.5, 1.0, agreement(difference, test.label, ties="wrong"))
        case Ties.dropped:
            outcomes, used = agreement(difference, test.label, ties="wrong"), test.label != 0.5
        case Ties.half:
            outcomes = agreement(difference, test.label, ties="wrong")
    if not used.any():
        raise ValueError("data: expected pairs that are no ties and can be scored, got none")
    if "tievote" in test.category:
        # Of left, right, tie and both bad, a reward can say the first three; the last is always missed.
        matched = np.where(used, outcomes, (difference == 0) & (test.category == "tievote"))
        extras["four_way_accuracy"] = float(matched.mean())

    def accuracy(chosen: np.ndarray) -> dict[str, Any]:
        mean = clustered_mean(
            outcomes[chosen], test.cluster[chosen], equal_clusters=benchmark.equal_prompts, seed=seed
        )
        return {"accuracy": mean.pop("mean"), **mean}

    if benchmark.ties is Ties.half:
        extras["best_reachable_accuracy"] = float(np.maximum(test.label, 1 - test.label).mean())
    if benchmark.by_category:
        extras["categories"] = {
            str(category): {**accuracy(chosen), "pairs": int(chosen.sum())}
            for category in np.unique(test.category)
            if (chosen := used & (test.category == category)).any()
        }
    log_win, log_loss = rewards.log_probabilities(test[used])
    return {**accuracy(used), **likelihood(log_win, log_loss, test.target[used]), **extras}


def likelihood(log_win: np.ndarray, log_loss: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """How well the probabilities that a is preferred predict the observed ones."""
    probability = np.exp(log_win)
    return {
        "log_likelihood": -negative_log_likelihood(log_win, log_loss, target),
        "brier_score": brier_score(probability, target),
        "calibration_error": calibration_error(probability, target),
    }
