"""Stage four: a DiNa reward model on the generator's first blocks, by the package's own trainer."""

import json
from pathlib import Path

from training.arguments import load_config
from training.encode_world import write_pairs
from training.reward.trainer import RewardTrainingArguments
from training.run_control import last_checkpoint
from training.train_reward import DataArguments, ModelArguments, complete, prepare
from training.world.groups import Groups, pairwise_accuracy

CONFIG = Path(__file__).parents[2] / "configs" / "small_world.yaml"


def train_reward(directory: Path, groups: dict[str, Groups], validation: Groups) -> Path | None:
    """
    Train as `configs/small_world.yaml` says, on the generator under `pipeline/`.

    Args:
        directory: of the build; pairs go to `pairs/`, checkpoints to `reward_training/`, what the validation says at
            each step to `learning_curve.jsonl`.
        groups: to train on, by name.
        validation: groups that are measured while training goes on.

    Returns:
        The folder of the reward model; None if a SIGTERM came first.
    """
    pairs = directory / "pairs"
    for name, members in {**groups, "validation": validation}.items():
        write_pairs(members, pairs / name)
    arguments = load_config(
        CONFIG,
        ModelArguments,
        DataArguments,
        RewardTrainingArguments,
        base_model=directory / "pipeline",
        train_data=[pairs / name for name in groups],
        validation_data=[pairs / "validation"],
        output_dir=directory / "reward_training",
        report_to="none",
    )
    folder = complete(prepare(*arguments))
    if folder is not None:
        curve = learning_curve(directory / "reward_training", validation, sigmas=arguments[2].eval_sigmas)
        (directory / "learning_curve.jsonl").write_text("".join(json.dumps(point) + "\n" for point in curve))
    return folder


def learning_curve(training_dir: Path, validation: Groups, sigmas: list[float]) -> list[dict]:
    """
    The ensemble's agreement with the validation pairs' votes at each evaluation of a training.

    "best" is what the order of the true utilities would reach in expectation; `sigmas` are the ensemble's levels.
    """
    checkpoint = last_checkpoint(training_dir)
    assert checkpoint is not None
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    best = pairwise_accuracy(validation.utilities, validation.utilities)["best"]
    measured = [logged for logged in state["log_history"] if "eval_agreement_ensemble" in logged]
    return [
        {"step": logged["step"], "sigmas": sigmas, "accuracy": logged["eval_agreement_ensemble"], "best": best}
        for logged in measured
    ]
