"""Training of a part of the small world, a module that returns its loss, with transformers' Trainer."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset, default_collate
from transformers import Trainer, TrainingArguments


def train_stage(module: nn.Module, dataset: Dataset, output_dir: Path, *, batch_size: int, **arguments) -> None:
    """Train `module` for one pass over `dataset`, or resume from the last checkpoint in `output_dir`.

    Args:
        module: its forward takes a collated batch as keyword arguments and returns a dict with "loss".
        dataset: map-style data set; its length divided by `batch_size` is the number of steps.
        output_dir: folder for the last two checkpoints.
        batch_size: number of items per step.
        arguments: further TrainingArguments, such as learning_rate or bf16.
    """
    defaults: dict[str, Any] = {
        "lr_scheduler_type": "cosine",
        "warmup_steps": 200,
        "weight_decay": 0.01,
        "logging_steps": 100,
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
        data_collator=default_collate,
    )
    trainer.train(resume_from_checkpoint=_last_complete_checkpoint(output_dir))


def _last_complete_checkpoint(output_dir: Path) -> str | None:
    """The newest complete checkpoint. trainer_state.json is the last file that the Trainer writes."""
    steps = [int(path.parent.name.split("-")[1]) for path in output_dir.glob("checkpoint-*/trainer_state.json")]
    return str(output_dir / f"checkpoint-{max(steps)}") if steps else None
