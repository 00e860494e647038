"""What a run would cost, told without weights, data or network: counted on the meta device."""

import math
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import torch
from rich.console import Console
from rich.table import Table
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode
from transformers import TrainingArguments

from modeling_dina import DinaConfig, DinaRewardModel
from modeling_dina.backbone_dina import read_transformer_config
from training.world.groups import FIRST

# The one Hub id whose transformer is known by heart: it is the default of `DinaConfig`.
KNOWN_BASE = "stabilityai/stable-diffusion-3.5-medium"
CLIP_TOKENS = 77
ADAM_BYTES = 8  # two moments in float32
ADAM_8BIT_BYTES = 2


def offline_config(base_model: str, fields: dict) -> DinaConfig:
    """
    The config that training would have, without asking the Hub.

    Raises:
        ValueError: `base_model` is neither a folder nor `KNOWN_BASE`, and `fields` has no transformer_config.
    """
    fields = {"base_model": base_model, **fields}
    if "transformer_config" not in fields and os.path.isdir(base_model):
        fields["transformer_config"], _ = read_transformer_config(fields.get("backbone_type", "sd3"), base_model)
    elif "transformer_config" not in fields and base_model != KNOWN_BASE:
        raise ValueError(
            f"base_model: expected a folder, {KNOWN_BASE}, or a transformer_config in reward_config, got {base_model}"
        )
    return DinaConfig(**fields)


def count_pairs(source: str) -> int | None:
    """Pairs of one of `train_data`; None where it is not here yet."""
    if source.startswith("world:"):
        return int(source.split(":")[1]) * len(FIRST)
    paths = list((Path(source) / "data").glob("train-*.parquet"))
    return sum(pq.read_metadata(path).num_rows for path in paths) if paths else None


def pair_inputs(config: DinaConfig, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """A pair of the size that the backbone was trained at, on the meta device, as `PreferenceObjective` takes it."""
    transformer = config.transformer_config
    latent = (transformer["in_channels"], transformer["sample_size"], transformer["sample_size"])
    tokens = min(CLIP_TOKENS, config.max_sequence_length) + config.max_sequence_length
    shapes = {
        "latents": (2, 1, *latent),
        "noise": (1, *latent),
        "sigma": (1,),
        "prompt_embeds": (1, tokens, transformer["joint_attention_dim"]),
        "pooled_prompt_embeds": (1, transformer["pooled_projection_dim"]),
        "target": (1,),
    }
    embeds = ("prompt_embeds", "pooled_prompt_embeds")
    return {
        name: torch.empty(shape, device="meta", dtype=dtype if name in embeds else torch.float32)
        for name, shape in shapes.items()
    }


def saved_bytes(module: torch.nn.Module, run: Callable[[], torch.Tensor | tuple]) -> int:
    """Bytes that `run` keeps for the backward pass, beyond the weights of `module`."""
    weights = {weight.untyped_storage()._cdata for weight in module.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    del result
    return sum(storage.nbytes() for storage in kept.values())


def activation_bytes(model: DinaRewardModel, config: DinaConfig, checkpointing: bool, half: bool) -> int:
    """Bytes that one pair keeps for the backward pass."""
    dtype = torch.bfloat16 if half else torch.float32
    model.backbone.to(dtype)
    inputs = pair_inputs(config, dtype)
    latents = inputs["latents"].flatten(0, 1).requires_grad_()
    conditioning = [
        inputs[name].repeat(2, *[1] * (inputs[name].ndim - 1)) for name in ("prompt_embeds", "pooled_prompt_embeds")
    ]
    timestep = torch.empty(2, device="meta")
    outputs = []

    def run_backbone():
        outputs.append(model.backbone(latents, timestep, *conditioning))
        return outputs[-1]

    backbone = saved_bytes(model, run_backbone)
    head = saved_bytes(model, lambda: model.head(outputs))
    if checkpointing and config.num_layers:
        # Blocks keep their inputs, and what lies within one of them at a time.
        tokens = outputs[0].visual[0].nbytes + outputs[0].text[0].nbytes
        backbone = backbone // config.num_layers + tokens * config.num_layers
    return backbone + head


def print_dry_run(
    title: str,
    config: DinaConfig,
    build: Callable[[DinaRewardModel], torch.nn.Module],
    train_data: list[str],
    args: TrainingArguments,
    ema: bool,
) -> None:
    """
    Print parameters, FLOPs, memory and steps of a run.

    Args:
        title: of the table.
        config: from `offline_config`.
        build: makes the objective of a model, with everything frozen that is not to be trained.
        train_data: as in the run.
        args: of the run.
        ema: whether averaged weights are kept.
    """
    with torch.device("meta"):
        objective = build(DinaRewardModel(config))
    parameters = list(objective.parameters())
    trainable = sum(weight.numel() for weight in parameters if weight.requires_grad)
    batch, checkpointing = args.per_device_train_batch_size, bool(args.activation_checkpointing)
    pairs_a_step = batch * args.gradient_accumulation_steps * args.world_size
    memory = {
        "weights": sum(weight.nbytes for weight in parameters),
        "gradients": 4 * trainable,
        "optimizer": trainable * (ADAM_8BIT_BYTES if "8bit" in str(args.optim) else ADAM_BYTES),
        "averaged weights": 4 * trainable * ema,
        "activations": batch * activation_bytes(objective.model, config, checkpointing, args.bf16),
    }
    if checkpointing:
        objective.gradient_checkpointing_enable()
    with FlopCounterMode(display=False) as counter:
        objective(**pair_inputs(config, torch.float32)).sum().backward()
    counts = [count_pairs(source) for source in train_data]
    known = None not in counts
    steps = math.ceil(sum(counts) / pairs_a_step) if known else None

    table = Table("", "", title=title)
    table.add_row("parameters", f"{sum(weight.numel() for weight in parameters) / 1e6:,.1f} M")
    table.add_row("trainable parameters", f"{trainable / 1e6:,.1f} M")
    table.add_row(
        "pairs a step", f"{pairs_a_step} = {batch} x {args.gradient_accumulation_steps} x {args.world_size} processes"
    )
    table.add_row("FLOPs a step", f"{counter.get_total_flops() * pairs_a_step / 1e12:,.2f} T")
    for name, size in memory.items():
        table.add_row(f"memory: {name}", f"{size / 1e9:,.2f} GB")
    table.add_row("memory a process, without text encoders", f"{sum(memory.values()) / 1e9:,.2f} GB")
    table.add_row("pairs", f"{sum(counts):,}" if known else "unknown: train_data is not here yet")
    table.add_row("steps an epoch", f"{steps:,}" if known else "unknown")
    Console().print(table)
