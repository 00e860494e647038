"""Evaluation of a reward on a preference benchmark with its official accuracy.

Each image is scored once, in batches. An interrupted run resumes, and unusable images are reported.
"""

from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from modeling_dina.evaluation import statistics
from modeling_dina.evaluation.benchmarks import Benchmark, Ties, find_benchmark
from modeling_dina.evaluation.benchmarks.preference_set import Item, Pairs, PreferenceSet
from modeling_dina.evaluation.rewards import RewardEvaluator, Rewards, WrongCountError
from modeling_dina.files import Journal, write_json
from modeling_dina.isolation import score_images

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
    Score the images of a benchmark, compute the agreement, and write the results.

    Args:
        name: name of the benchmark.
        preferences: preferences from its `read`.
        evaluator: evaluator of the reward.
        out: JSON file for the results. During the run, scores are stored in the journal `<out>.partial`.
        batch_size: number of images scored at a time; it does not affect results.
        folder: folder that the benchmark was read from.
        seed: seed of the shuffled sides and of the bootstrap.
        strict: whether to raise an error if the size differs from the published one.
        settings: further settings to report.
        command: command to report.
        progress: called with the numbers of finished and of all images.

    Raises:
        ValueError: no pair could be scored, the size is wrong, or the journal is from a run with other settings.
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
    """Identify the images and labels of a run, by the benchmark's name, rows and folder."""
    place = None if folder is None else str(folder.resolve())
    return {"benchmark": name, "preferences": preferences.fingerprint(), "folder": place}


def run_settings(evaluator: RewardEvaluator, seed: int) -> dict[str, Any]:
    """Everything that rewards depend on: settings of the evaluator, seed, and versions of libraries."""
    return {**evaluator.settings, "seed": seed, "libraries": {library: version(library) for library in LIBRARIES}}


def count(benchmark: Benchmark, test: Pairs, validation: Pairs) -> dict[str, int]:
    """Numbers of prompts, pairs, ties, and pairs used for the accuracy, before scoring."""
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
    Score all items that are not in the journal, and add those that are.

    Returns:
        Samples [R, D, N] of all items as in `RewardEvaluator.score`, with NaN for items that cannot be scored, and
        {"name", "error"} for these items.
    """
    rewards = {
        index: reward
        for record in journal.records
        for index, reward in zip(record["items"], record["readings"], strict=True)
    }
    errors: dict[int, str] = {}

    def score(prompts: Sequence[str], images: Sequence[Image.Image]) -> list:
        return np.moveaxis(evaluator.score(prompts, images), -1, 0).tolist()

    # Batches do not depend on interruptions, and so rounding does not either.
    for start in range(0, len(items), batch_size):
        progress(start, len(items))
        batch = [index for index in range(start, min(start + batch_size, len(items))) if index not in rewards]
        if batch:
            inputs = {index: (items[index].prompt, items[index].open) for index in batch}
            # One image can make a batch fail, for example by NaN in half precision.
            scores, failures = score_images(score, inputs, fatal=(WrongCountError,))
            journal.append({"items": list(scores), "readings": list(scores.values())})
            rewards |= scores
            errors |= failures
    progress(len(items), len(items))

    shape = np.shape(next(iter(rewards.values()), [[np.nan]]))
    samples = np.full((*shape, len(items)), np.nan)
    for index, reward in rewards.items():
        samples[..., index] = reward
    return samples, [{"name": items[index].name, "error": errors[index]} for index in sorted(errors)]


def scored(rewards: Rewards, pairs: Pairs) -> np.ndarray:
    """Mask [N] of the pairs with rewards for both images."""
    return np.isfinite(rewards.difference(pairs))


def measure(benchmark: Benchmark, rewards: Rewards, test: Pairs, validation: Pairs, seed: int) -> dict[str, Any]:
    """The official accuracy of a benchmark and the common metrics, on the pairs that could be scored."""
    test, validation = test[scored(rewards, test)], validation[scored(rewards, validation)]
    difference = rewards.difference(test)
    used = np.ones(len(test), bool)
    extras: dict[str, Any] = {}
    match benchmark.ties:
        case Ties.predicted:
            if not len(validation):
                raise ValueError("data: expected pairs of the validation split that can be scored, got none")
            threshold = statistics.best_tie_threshold(rewards.difference(validation), validation.label)
            outcomes = statistics.agreement(difference, test.label, ties="predicted", threshold=threshold)
            extras["tie_threshold"] = threshold
        case Ties.correct:
            outcomes = np.where(test.label == 0.5, 1.0, statistics.agreement(difference, test.label, ties="wrong"))
        case Ties.dropped:
            outcomes, used = statistics.agreement(difference, test.label, ties="wrong"), test.label != 0.5
        case Ties.half:
            outcomes = statistics.agreement(difference, test.label, ties="wrong")
    if not used.any():
        raise ValueError("data: expected pairs without ties that can be scored, got none")
    if "tievote" in test.category:
        # A reward can predict left, right and tie, but never the fourth vote, "both bad".
        matched = np.where(used, outcomes, (difference == 0) & (test.category == "tievote"))
        extras["four_way_accuracy"] = float(matched.mean())

    def accuracy(chosen: np.ndarray) -> dict[str, Any]:
        mean = statistics.clustered_mean(
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
    """Metrics of predicted probabilities against targets."""
    probability = np.exp(log_win)
    return {
        "log_likelihood": -statistics.negative_log_likelihood(log_win, log_loss, target),
        "brier_score": statistics.brier_score(probability, target),
        "calibration_error": statistics.calibration_error(probability, target),
    }
