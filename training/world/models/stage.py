"""One way to train every part of the small world: a module that returns its loss, under transformers' Trainer."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset, default_collate
from transformers import Trainer, TrainerCallback, TrainingArguments


class MinuteLog(TrainerCallback):
    """One log line a minute, however fast the machine is."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def on_step_end(self, args, state, control, **kwargs):
        if time.monotonic() - self._last >= 60:
            self._last = time.monotonic()
            control.should_log = True
        return control


def train_stage(
    module: nn.Module,
    dataset: Dataset,
    output_dir: Path,
    *,
    batch_size: int,
    callbacks: Sequence[TrainerCallback] = (),
    **arguments,
) -> None:
    """Train `module` once over `dataset`, or go on from the last checkpoint in `output_dir`.

    Args:
        module: its forward takes a collated batch as keywords and returns a dict with "loss".
        dataset: map-style; its length over `batch_size` is the number of steps.
        output_dir: checkpoints go there, the last two are kept.
        callbacks: further ones of transformers.
        arguments: further TrainingArguments, such as learning_rate or bf16.
    """
    defaults: dict[str, Any] = {
        "lr_scheduler_type": "cosine",
        "warmup_steps": 200,
        "weight_decay": 0.01,
        "logging_strategy": "no",
        "save_steps": 500,
        "save_total_limit": 2,
        "dataloader_num_workers": 1,
        "dataloader_drop_last": True,
        "num_train_epochs": 1,
        "remove_unused_columns": False,
        "report_to": "none",
        "seed": 0,
        "use_cpu": not torch.cuda.is_available(),
    }
    trainer = Trainer(
        module,
        TrainingArguments(str(output_dir), per_device_train_batch_size=batch_size, **(defaults | arguments)),
        train_dataset=dataset,
        callbacks=[MinuteLog(), *callbacks],
        data_collator=default_collate,
    )
    trainer.train(resume_from_checkpoint=_last_complete_checkpoint(output_dir))


def _last_complete_checkpoint(output_dir: Path) -> str | None:
    """The newest checkpoint that was written to its end: its state is the last file to be written."""
    steps = [int(path.parent.name.split("-")[1]) for path in output_dir.glob("checkpoint-*/trainer_state.json")]
    return str(output_dir / f"checkpoint-{max(steps)}") if steps else None
