"""The cost of a training run, computed without weights, data or network."""

import math
import os
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from diffusers import DDIMScheduler

from modeling_dina import DinaConfig, DinaRewardModel
from modeling_dina.backbone_dina import backbone_class, read_backbone_type, read_transformer_config
from modeling_dina.presets_dina import PRESETS
from training import costs
from training.reward.objective import PreferenceObjective
from training.reward.trainer import RewardTrainingArguments
from training.world.groups import FIRST

ADAM_8BIT_BYTES = 2


def offline_fields(source: str, given: dict[str, Any] | None = None, *, name: str = "base_model") -> dict[str, Any]:
    """
    The family and the configurations of a diffusion model, without access to the Hub: "backbone_type",
    "transformer_config", "scheduler_config" if there is one and, of a published model, further fields of `DinaConfig`.

    Args:
        source: folder or Hub id.
        given: fields of `DinaConfig`, which override those of `source`.
        name: name of the argument in errors.

    Raises:
        ValueError: `source` is neither a folder nor the Hub id of a preset, and `given` has no transformer_config.
    """
    given = given or {}
    if "transformer_config" in given:
        return {"backbone_type": "sd3", **given}
    if os.path.isdir(source):
        family = given.get("backbone_type") or read_backbone_type(source)
        read = {"backbone_type": family, "transformer_config": read_transformer_config(family, source)[0]}
        if (Path(source) / "scheduler").is_dir():
            read["scheduler_config"] = DDIMScheduler.load_config(source, subfolder="scheduler")  # of any scheduler
        return {**read, **given}
    presets = {preset["conditioning_source"]: preset for preset in PRESETS.values()}
    if source not in presets:
        raise ValueError(f"{name}: expected a folder or one of {sorted(presets)} for a dry run, got {source}")
    return {**presets[source], **given}


def offline_config(base_model: str, fields: dict[str, Any]) -> DinaConfig:
    """
    Create the config of the model to train like `DinaRewardModel.from_backbone`, without access to the Hub; arguments
    and errors are as in `offline_fields`.
    """
    read = offline_fields(base_model, fields)
    defaults = backbone_class(read["backbone_type"]).default_fields(read["transformer_config"])
    return DinaConfig(**{"base_model": base_model, **defaults, **read})


def count_pairs(source: str) -> int | None:
    """Number of pairs in one source of `train_data`; None if the folder does not exist yet."""
    if source.startswith("world:"):
        return int(source.split(":")[1]) * len(FIRST)
    paths = list((Path(source) / "data").glob("train-*.parquet"))
    return sum(pq.read_metadata(path).num_rows for path in paths) if paths else None


def pair_inputs(model: DinaRewardModel) -> dict[str, torch.Tensor]:
    """Arguments of `PreferenceObjective` for one pair of the backbone's training size, on the meta device."""
    inputs = costs.input_shapes(model.config.dimensions, model.config.max_sequence_length)
    latents = inputs.pop("latents")
    shapes = {"latents": (2, 1, *latents), "noise": (1, *latents), "sigma": (1,), "target": (1,)}
    shapes |= {name: (1, *shape) for name, shape in inputs.items()}
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def activation_bytes(model: DinaRewardModel, checkpointing: bool, half: bool) -> int:
    """Bytes that one pair stores for the backward pass."""
    config, dtype = model.config, torch.bfloat16 if half else torch.float32
    model.backbone.to(dtype)
    latent, *texts = costs.input_shapes(config.dimensions, config.max_sequence_length).values()
    latents, timestep = torch.empty(2, *latent, device="meta", requires_grad=True), torch.empty(2, device="meta")
    conditioning = [torch.empty(2, *shape, device="meta", dtype=dtype) for shape in texts]
    outputs = []
    backbone = costs.kept_bytes(model, lambda: outputs.append(model.backbone(latents, timestep, *conditioning)))
    head = costs.kept_bytes(model, lambda: model.head(outputs))
    if checkpointing and config.num_layers:
        tokens = outputs[0].visual[0].nbytes + outputs[0].text[0].nbytes
        backbone = costs.recomputed_bytes(backbone, config.num_layers, tokens)
    return backbone + head


def print_dry_run(
    title: str, objective: PreferenceObjective, train_data: list[str], args: RewardTrainingArguments
) -> None:
    """
    Print parameters, FLOPs, memory and steps of a run.

    Args:
        title: title of the table.
        objective: objective on the meta device, in which the weights that are not trained are frozen.
        train_data: training data of the run.
        args: arguments of the run.
    """
    parameters, trainable = costs.count_parameters(objective)
    batch, checkpointing = args.per_device_train_batch_size, bool(args.activation_checkpointing)
    step_pairs = batch * args.gradient_accumulation_steps * args.world_size
    optimizer_bytes = ADAM_8BIT_BYTES if "8bit" in str(args.optim) else costs.ADAM_BYTES
    memory = {
        "weights": costs.weight_bytes(objective),
        **costs.training_bytes(trainable, averages=int(bool(args.ema_decay)), optimizer_bytes=optimizer_bytes),
        "activations": batch * activation_bytes(objective.model, checkpointing, args.bf16),
    }
    if checkpointing:
        objective.gradient_checkpointing_enable()
    flops = costs.count_flops(lambda: objective(**pair_inputs(objective.model)).sum().backward())
    counts = [count_pairs(source) for source in train_data]
    pairs = None if None in counts else sum(filter(None, counts))
    rows = {
        "parameters": f"{parameters / 1e6:,.1f} M",
        "trainable parameters": f"{trainable / 1e6:,.1f} M",
        "pairs per step": f"{step_pairs} = {batch} x {args.gradient_accumulation_steps} x {args.world_size} processes",
        "FLOPs per step": f"{flops * step_pairs / 1e12:,.2f} T",
        **costs.memory_rows(memory, "per process, without text encoders"),
        "pairs": "unknown: train_data does not exist yet" if pairs is None else f"{pairs:,}",
        "steps per epoch": "unknown" if pairs is None else f"{math.ceil(pairs / step_pairs):,}",
    }
    costs.print_rows(title, rows)
