"""Training of a part of the small world, a module that returns its loss, with transformers' Trainer."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

AVERAGED = "averaged.safetensors"


class Batches(Dataset):
    """
    Random batches of the rows of tensors, one per update. Batch i is a pure function of the seed and i.

    The rows are gathered on the device of the tensors, so that a GPU does not wait for a data loader.

    Args:
        tensors: tensors [N, ...] by name, all with the same number of rows.
        updates: number of batches.
        batch_size: rows per batch, drawn with replacement.
        seed: seed of the order.
    """

    def __init__(self, tensors: dict[str, torch.Tensor], *, updates: int, batch_size: int, seed: int = 0) -> None:
        self.tensors, self.updates, self.batch_size, self.seed = tensors, updates, batch_size, seed

    def __len__(self) -> int:
        return self.updates

    def __getitem__(self, update: int) -> dict[str, torch.Tensor]:
        first = next(iter(self.tensors.values()))
        rng = np.random.default_rng((self.seed, update))
        rows = torch.from_numpy(rng.integers(len(first), size=self.batch_size)).to(first.device)
        return {name: tensor[rows] for name, tensor in self.tensors.items()}


def train_stage(
    module: nn.Module, batches: Batches, output_dir: Path, *, ema_decay: float = 0.999, **arguments: Any
) -> None:
    """
    Train `module` on all batches, or resume from the last checkpoint in `output_dir`, and load the averaged weights.

    Args:
        module: its forward takes a batch as keyword arguments and returns a dict with "loss".
        batches: one batch per update.
        output_dir: folder for the last two checkpoints.
        ema_decay: decay per update of the averaged weights, after a warm-up.
        arguments: further TrainingArguments, such as learning_rate or bf16.
    """
    defaults: dict[str, Any] = {
        "lr_scheduler_type": "cosine",
        "warmup_steps": min(500, len(batches) // 10),
        "weight_decay": 0.01,
        "logging_steps": 100,
        "save_steps": 500,
        "save_total_limit": 2,
        "num_train_epochs": 1,
        "remove_unused_columns": False,
        "report_to": "none",
        "seed": 0,
        # These two would wait for the device, or copy to it, at every update.
        "logging_nan_inf_filter": False,
        "dataloader_pin_memory": False,
        "use_cpu": not torch.cuda.is_available(),
    }
    average = _Average(module, ema_decay)
    trainer = Trainer(
        module,
        TrainingArguments(str(output_dir), per_device_train_batch_size=1, **(defaults | arguments)),
        train_dataset=batches,
        data_collator=_only,
        callbacks=[average],
    )
    checkpoint = _last_complete_checkpoint(output_dir)
    average.resumed_from = checkpoint
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    average.ema.copy_to(average.weights.values())


def _only(items: list) -> Any:
    """An item of the data set is already a batch."""
    (item,) = items
    return item


class _Average(TrainerCallback):
    """Keeps the averaged weights of a module, and saves them with each checkpoint."""

    ema: EMAModel
    resumed_from: Path | None = None

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.weights = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
        self.decay = decay

    def on_train_begin(self, args, state, control, **kwargs):
        self.ema = EMAModel(self.weights.values(), decay=self.decay, foreach=True)
        if self.resumed_from is not None:
            self.ema.optimization_step = state.global_step
            averaged = load_file(self.resumed_from / AVERAGED)
            for shadow, name in zip(self.ema.shadow_params, self.weights, strict=True):
                shadow.copy_(averaged[name])

    def on_step_end(self, args, state, control, **kwargs):
        self.ema.step(self.weights.values())

    def on_save(self, args, state, control, **kwargs):
        averaged = dict(zip(self.weights, self.ema.shadow_params, strict=True))
        save_file(averaged, Path(args.output_dir, f"checkpoint-{state.global_step}", AVERAGED))


def _last_complete_checkpoint(output_dir: Path) -> Path | None:
    """The newest complete checkpoint. The averaged weights are the last file that is written."""
    complete = [path.parent for path in output_dir.glob(f"checkpoint-*/{AVERAGED}")]
    return max(complete, key=lambda path: int(path.name.split("-")[1]), default=None)
