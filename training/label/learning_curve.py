"""What the votes so far have taught, and what twice as many would bring:
`python -m training.label.learning_curve --config FILE --train_data LATENTS --output_dir DIR`.

LATENTS is a folder written by `training.encode_latents`. The prompts are divided into folds. For each fold, rewards
are trained on growing shares of the other prompts, with the configuration of `training.train_reward`, and measured on
the pairs of the fold. DIR then has `learning_curve.json` and `learning_curve.png`. An interrupted run resumes.
"""

import shutil
import sys
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import set_seed
from transformers.hf_argparser import HfArg

from modeling_dina import DinaRewardModel
from modeling_dina.evaluation.statistics import agreement, calibration_error, clustered_mean
from modeling_dina.files import atomic_path, check_settings, load_or_compute, write_json
from modeling_dina.options import check_folder, exit_on_bad_input, loading
from training.arguments import parse
from training.label.ceiling import annotator_ceiling
from training.label.curve_figure import draw_curve
from training.label.pairs import read_pairs
from training.label.power_law import forecast
from training.label.quality import preferences_by_pair
from training.label.votes import read_votes
from training.preference_data.schema import fingerprint
from training.reward.data import PairLoader
from training.reward.evaluation import score_pairs
from training.reward.trainer import RewardTrainer, RewardTrainingArguments
from training.run_control import TERMINATED
from training.train_reward import (
    DataArguments,
    ModelArguments,
    build_objective,
    card_settings,
    complete,
    load_data,
    new_trainer,
)

# Means over pairs, with the value of perfect predictions.
BEST = {"accuracy": 1.0, "log_likelihood": 0.0}


@dataclass
class CurveArguments:
    """The learning curve."""

    folds: int = HfArg(default=5, help="Number of parts of the prompts, each of which is held out once.")
    sizes: int = HfArg(
        default=4, help="Number of points: all training prompts of a fold, half of them, a quarter and so on."
    )
    votes: str | None = HfArg(
        default=None, help="Folder of training.label with the votes, for the agreement of annotators; none if unset."
    )

    def __post_init__(self):
        if self.folds < 2:
            raise ValueError(f"folds: expected at least 2, got {self.folds}")
        if self.sizes < 3:
            raise ValueError(f"sizes: expected at least 3, which determine the law of the curve, got {self.sizes}")


@dataclass(frozen=True)
class Split:
    """
    The pairs of one training.

    Attributes:
        fold: index of the fold that is held out.
        size: index of the share of the other prompts, the smallest first.
        train, held_out: rows of the pairs.
    """

    fold: int
    size: int
    train: list[int]
    held_out: list[int]


def split_prompts(prompts: Sequence[str], *, folds: int, sizes: int, seed: int) -> list[Split]:
    """
    The trainings of a learning curve. A smaller size has a part of the prompts of a larger one.

    Args:
        prompts: [N], prompt of every pair.
        folds, sizes: as in `CurveArguments`.
        seed: seed of the division.

    Raises:
        ValueError: there are too few prompts.
    """
    names, members = np.unique(np.asarray(prompts, dtype=object), return_inverse=True)
    shuffled = np.random.default_rng(seed).permutation(len(names))
    parts = np.array_split(shuffled, folds)
    if len(names) < folds or len(names) - len(parts[0]) < 2 ** (sizes - 1):
        raise ValueError(
            f"train_data: expected pairs of more prompts for {folds} folds and {sizes} sizes, got {len(names)}"
        )
    splits = []
    for fold, part in enumerate(parts):
        others = shuffled[~np.isin(shuffled, part)]
        for size in range(sizes):
            chosen = others[: len(others) // 2 ** (sizes - 1 - size)]
            train, held_out = (np.flatnonzero(np.isin(members, each)).tolist() for each in (chosen, part))
            splits.append(Split(fold, size, train, held_out))
    return splits


def count_votes(pairs: Dataset) -> float:
    """The total weight of pairs, which is the number of votes if `training.label.export` wrote them."""
    return float(np.sum(pairs.select_columns("weight").with_format("numpy")["weight"][:]))


def measure_split(
    split: Split, pairs: Dataset, model_arguments: ModelArguments, args: RewardTrainingArguments
) -> dict[str, Any]:
    """
    Train on the pairs of a split, and measure the finished reward on those that are held out. A SIGTERM raises a
    SystemExit.

    Returns:
        "votes", the number of votes that it was trained on; "row" of each held-out pair; and what `measure_model`
        returns.
    """
    folder = Path(str(args.output_dir)) / "training" / f"{split.fold}-{split.size}"
    shutil.rmtree(folder, ignore_errors=True)
    own = copy(args)
    own.output_dir, own.eval_strategy, own.push_to_hub = str(folder), "no", False
    own.save_steps = sys.maxsize  # only at the end
    train = pairs.select(split.train)
    set_seed(own.seed)
    trainer = new_trainer(build_objective(model_arguments), model_arguments, own, train)
    finished = complete(trainer)
    if finished is None:
        raise SystemExit(TERMINATED)
    model = DinaRewardModel.from_pretrained(finished).to(own.device).eval()
    measured = measure_model(trainer, model, pairs.select(split.held_out))
    shutil.rmtree(folder)
    return {"votes": count_votes(train), "row": split.held_out, **measured}


def measure_model(trainer: RewardTrainer, model: DinaRewardModel, pairs: Dataset) -> dict[str, list[float]]:
    """
    Measure a reward on pairs.

    Returns:
        For each pair, in order of the rows: the "probability" of one side, drawn at random; its "target"; and what the
        pair contributes to each measure of `BEST`.
    """
    area = trainer.args.per_device_train_batch_size * model.config.dimensions.training_side**2
    loader = PairLoader(pairs, max_area=area, num_replicas=1, rank=0, seed=0, num_workers=0)
    rewards, found = score_pairs(model.reward, loader, trainer.encode_prompts)
    found = found.shuffled_sides(0)
    log_win, log_loss = rewards.log_probabilities(found)
    measured = {
        "probability": np.exp(log_win),
        "target": found.target,
        "accuracy": agreement(rewards.difference(found), found.target, ties="half"),
        "log_likelihood": found.target * log_win + (1 - found.target) * log_loss,
    }
    return {name: values.tolist() for name, values in measured.items()}


def summarize(
    measured: Sequence[Sequence[dict[str, Any]]], prompts: Sequence[str], votes: float, best_accuracy: float = 1.0
) -> dict[str, Any]:
    """
    The learning curve.

    Args:
        measured: what `measure_split` returned, by size and fold.
        prompts: prompt of every pair.
        votes: number of all votes.
        best_accuracy: accuracy that no reward can surpass.

    Returns:
        "points" by number of votes, with `clustered_mean` of each measure of `BEST`, and the "calibration_error"; and
        "forecast", the result of `power_law.forecast` for each measure of `BEST`, as values in place of losses.
    """

    def join(by_fold: Sequence[dict[str, Any]], name: str) -> np.ndarray:
        return np.concatenate([fold[name] for fold in by_fold])

    folds = np.concatenate([np.full(len(fold["row"]), index) for index, fold in enumerate(measured[0])])
    held_out = np.asarray(prompts, dtype=object)[join(measured[0], "row")]
    clusters = np.unique(held_out, return_inverse=True)[1]
    counts = np.array([np.mean([fold["votes"] for fold in by_fold]) for by_fold in measured])
    points = [
        {
            "votes": float(count),
            **{name: clustered_mean(join(by_fold, name), clusters) for name in BEST},
            "calibration_error": calibration_error(join(by_fold, "probability"), join(by_fold, "target")),
        }
        for count, by_fold in zip(counts, measured, strict=True)
    ]

    def extrapolate(name: str) -> dict[str, Any]:
        best = BEST[name]
        losses = best - np.stack([join(by_fold, name) for by_fold in measured])
        lowest = 1 - best_accuracy if name == "accuracy" else 0.0
        found = forecast(counts, losses, clusters, folds, votes=votes, lowest_floor=lowest)
        interval = [best - bound for bound in reversed(found["doubled_interval"])]
        return found | {"now": best - found["now"], "doubled": best - found["doubled"], "doubled_interval": interval}

    return {"points": points, "forecast": {name: extrapolate(name) for name in BEST}}


def describe(results: dict[str, Any]) -> str:
    """The curve, the ceiling and the forecast, as text."""

    def interval(name: str, bounds: Sequence[float], sign: str = "") -> str:
        low, high = bounds
        return f"{name} [{low:{sign}.3f}, {high:{sign}.3f}]"

    lines = []
    for point in results["points"]:
        accuracy = interval(f"accuracy {point['accuracy']['mean']:.3f}", point["accuracy"]["interval"])
        likelihood, error = point["log_likelihood"]["mean"], point["calibration_error"]
        lines.append(
            f"{point['votes']:.0f} votes: {accuracy}, log-likelihood {likelihood:.3f}, calibration error {error:.3f}"
        )
    ceiling, found = results["ceiling"], results["forecast"]["accuracy"]
    if ceiling is not None:
        lines.append(
            f"annotators reach an accuracy of {ceiling['mean']:.3f} against one another; no reward reaches more than "
            f"{ceiling['best_reachable']:.3f}"
        )
    gain = interval(f"{found['gain']:+.3f}", found["gain_interval"], "+")
    lines.append(f"{2 * results['votes']:.0f} votes in place of {results['votes']:.0f}: {gain} accuracy")
    return "\n".join(lines)


def read_ceiling(folder: Path) -> dict[str, Any] | None:
    """`annotator_ceiling` of the votes in a folder of `training.label`."""
    with loading("votes", folder):
        pairs, votes = read_pairs(folder), read_votes(folder)
    return annotator_ceiling(preferences_by_pair(votes), {key: pair.prompt for key, pair in pairs.items()})


def main(argv: Sequence[str] | None = None) -> None:
    """Train and measure the learning curve."""
    with exit_on_bad_input():
        model_arguments, data_arguments, args, curve = parse(
            ModelArguments, DataArguments, RewardTrainingArguments, CurveArguments, argv=argv
        )
        out = Path(args.output_dir)
        check_folder("output_dir", out)
        ceiling = None if curve.votes is None else read_ceiling(Path(curve.votes))
        pairs = load_data("train_data", data_arguments.train_data, model_arguments.base_model, args)
        prompts = pairs.select_columns("prompt").with_format(None)["prompt"][:]
        splits = split_prompts(prompts, folds=curve.folds, sizes=curve.sizes, seed=args.seed)
        settings = {
            "base_model": model_arguments.base_model,
            "reward_config": model_arguments.reward_fields,
            "steps": args.max_steps,
            "epochs": args.num_train_epochs,
            **card_settings(model_arguments, data_arguments, args),
            "labels": fingerprint(pairs),
            "folds": curve.folds,
            "sizes": curve.sizes,
        }
        check_settings(out / "settings.json", settings)
    measured: list[list[dict]] = [[] for _ in range(curve.sizes)]
    for number, split in enumerate(splits, start=1):
        print(f"{number} of {len(splits)}: {len(split.train)} pairs, without fold {split.fold}", file=sys.stderr)
        measure = partial(measure_split, split, pairs, model_arguments, args)
        measured[split.size].append(load_or_compute(out / "points" / f"{split.fold}-{split.size}.json", measure))
    votes = count_votes(pairs)
    best_accuracy = 1.0 if ceiling is None else ceiling["best_reachable"]
    results = {
        "kind": "learning_curve",
        "votes": votes,
        "pairs": len(pairs),
        "prompts": len(set(prompts)),
        "ceiling": ceiling,
        **summarize(measured, prompts, votes, best_accuracy),
        "settings": settings,
    }
    write_json(out / "learning_curve.json", results)
    with atomic_path(out / "learning_curve.png") as partial_path:
        draw_curve(results).savefig(partial_path, facecolor="white")
    print(describe(results))


if __name__ == "__main__":
    main()
