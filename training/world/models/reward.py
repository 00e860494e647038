"""Stage four: train a DiNa reward model on the generator's first blocks with the package's trainer."""

import json
from concurrent.futures import Executor
from pathlib import Path

import torch

from training.arguments import load_config
from training.encode_world import write_pairs
from training.reward.trainer import RewardTrainingArguments
from training.run_control import last_checkpoint
from training.train_reward import DataArguments, ModelArguments, complete, prepare
from training.world.groups import Groups, pairwise_accuracy
from training.world.models.settings import Settings

CONFIG = Path(__file__).parents[2] / "configs" / "small_world.yaml"


def train_reward(
    directory: Path, groups: dict[str, Groups], validation: Groups, settings: Settings, pool: Executor | None = None
) -> Path | None:
    """
    Train with `configs/small_world.yaml` on the generator under `pipeline/`.

    Args:
        directory: folder of the build. Pairs are written to `pairs/`, checkpoints to `reward_training/`, and the
            validation accuracies to `learning_curve.jsonl`.
        groups: training groups by name.
        validation: groups that are evaluated during training.
        settings: number of updates and pairs, and precision.
        pool: processes that write the pairs, if there are any; see `drawing_pool`.

    Returns:
        The folder of the reward model, or None after a SIGTERM.
    """
    pairs = directory / "pairs"
    for name, members in {**groups, "validation": validation}.items():
        write_pairs(members, pairs / name, pool)
    # Small batches need a smaller step; large ones need data from several processes.
    large = settings.reward_batch > 64
    arguments = load_config(
        CONFIG,
        ModelArguments,
        DataArguments,
        RewardTrainingArguments,
        base_model=directory / "pipeline",
        train_data=[pairs / name for name in groups],
        validation_data=[pairs / "validation"],
        output_dir=directory / "reward_training",
        max_steps=settings.reward_updates,
        per_device_train_batch_size=settings.reward_batch,
        learning_rate=6e-4 if large else 5e-4,
        eval_steps=max(1, settings.reward_updates // 5),
        dataloader_num_workers=8 if large else 0,
        bf16=settings.bf16,
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
    )
    folder = complete(prepare(*arguments))
    if folder is not None:
        curve = learning_curve(directory / "reward_training", validation, sigmas=arguments[2].eval_sigmas)
        (directory / "learning_curve.jsonl").write_text("".join(json.dumps(point) + "\n" for point in curve))
    return folder


def learning_curve(training_dir: Path, validation: Groups, sigmas: list[float]) -> list[dict]:
    """
    Agreement of the ensemble with the validation votes, at each evaluation of a training.

    "best" is the expected agreement of the true utilities; `sigmas` are the noise levels of the ensemble.
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
