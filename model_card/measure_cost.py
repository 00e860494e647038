"""Measure the cost of a reward: `python -m model_card.measure_cost --preset NAME --device cpu|cuda|meta`.

A preset is the embedded model (small), or a published base model with a reward model of random weights on it.
Parameters, FLOPs and the bytes saved for a gradient are counted on the meta device at any size, without weights.
Seconds and peak memory are measured on a real device, where all cases take turns, so that their ratios are valid on a
shared machine too. `--others` adds other common rewards, forward and with the gradient to the latent, and compares the
numbers with the published claims.
"""

import platform
from collections.abc import Callable
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import typer
from diffusers import SD3Transformer2DModel
from rich.console import Console
from rich.table import Table
from torch import nn

from model_card.cost_counters import ROUNDS, measure_peak_bytes, measure_seconds
from model_card.other_rewards import (
    MINIATURE,
    BlipReward,
    ClipReward,
    DecodedReward,
    QwenReward,
    Sizes,
    build_decoder,
)
from model_card.pipeline_parts import build_pipeline_parts, largest_layer_bytes
from modeling_dina import DinaConfig, DinaRewardModel
from modeling_dina.files import write_json
from modeling_dina.options import EMBEDDED_MODEL, check_output, exit_on_bad_input
from modeling_dina.presets_dina import PRESETS, SD35_MEDIUM
from training.align.generators import SD3Generator
from training.costs import count_flops, count_parameters, input_shapes, kept_bytes, weight_bytes

SMALL = "small"  # the embedded default
NAMES = (SMALL, *PRESETS)
COMPARED = (SMALL, SD35_MEDIUM)  # presets with other rewards and a generator of their size
LEVELS = {"1 level": [0.5], "3 levels": [0.2, 0.5, 0.7]}
DINA, HPSV3, DECODER = "DiNa-LRM, 1 level", "HPSv3", "decoding alone"
POLICY_RANK = 32  # the default of training.align
COMPILED = ", compiled"
LIBRARIES = ("torch", "transformers", "diffusers")


class Device(StrEnum):
    """Device to measure on; "meta" counts without computing."""

    cpu = "cpu"
    cuda = "cuda"
    meta = "meta"


class Contender(NamedTuple):
    """A function of latents [B, C, H, W] and the module whose weights it needs."""

    module: nn.Module
    run: Callable[[torch.Tensor], torch.Tensor]


class Inputs(NamedTuple):
    """Inputs of a reward: latents [B, C, H, W], and embeddings of the prompts [B, L, D] and, for families that have
    them, [B, P]."""

    latents: torch.Tensor
    prompt_embeds: torch.Tensor
    pooled_prompt_embeds: torch.Tensor | None = None


def build_model(preset: str, device: str, dtype: torch.dtype) -> DinaRewardModel:
    """A reward model of the preset's size with random weights: cost does not depend on their values."""
    config = DinaConfig.from_pretrained(EMBEDDED_MODEL) if preset == SMALL else DinaConfig.preset(preset)
    with torch.device(device):
        model = DinaRewardModel(config)
    model.backbone.to(dtype)
    return model.eval().requires_grad_(False)


def build_inputs(model: DinaRewardModel, resolution: int, batch_size: int) -> Inputs:
    """Random inputs for images of `resolution` x `resolution` pixels and texts of the maximum length."""
    shapes = input_shapes(model.config.dimensions, model.config.max_sequence_length, resolution // 8)
    return Inputs(
        **{
            name: torch.randn(batch_size, *shape, device=model.device, dtype=model.dtype)
            for name, shape in shapes.items()
        }
    )


def parts(model: DinaRewardModel, inputs: Inputs) -> dict[str, Callable[[], object]]:
    """Calls of the parts of a reward model and of its ensembles, by name."""
    latents, prompt_embeds, pooled = inputs
    sigma = torch.full((len(latents),), 0.5, device=latents.device)

    def backbone():
        return model.backbone(latents, model.noise_path.timestep(sigma), prompt_embeds, pooled)

    features = backbone()
    return {
        "backbone": backbone,
        "head": lambda: model.head([features]),
        "backbone + head": lambda: model.head([backbone()]),
        "reward, 1 level": lambda: model.reward(*inputs, sigmas=LEVELS["1 level"], num_draws=1),
        "reward, 3 levels": lambda: model.reward(*inputs, sigmas=LEVELS["3 levels"], num_draws=1),
        "reward, 3 levels x 4 draws": lambda: model.reward(*inputs, sigmas=LEVELS["3 levels"], num_draws=4),
    }


def own_rewards(model: DinaRewardModel, inputs: Inputs) -> dict[str, Contender]:
    """The rewards of a DiNa model with one and with three levels, by name."""
    _, prompt_embeds, pooled = inputs

    def with_levels(sigmas: list[float]) -> Contender:
        def score(latents: torch.Tensor) -> torch.Tensor:
            return model.reward(latents, prompt_embeds, pooled, sigmas=sigmas, num_draws=1).scores

        return Contender(model, score)

    return {f"DiNa-LRM, {levels}": with_levels(sigmas) for levels, sigmas in LEVELS.items()}


def contenders(
    preset: str, model: DinaRewardModel, inputs: Inputs, dtype: torch.dtype, compiled: bool
) -> dict[str, Contender]:
    """
    The rewards to compare, by name: DiNa-LRM; published rewards (miniatures of them for `small`) behind the decoder;
    and the decoder alone.

    Args:
        model: model of the preset; it shares the generator's embeddings of the prompt.
        inputs: inputs from `build_inputs`.
        dtype: dtype of all networks.
        compiled: whether to add a copy of the model whose backbone and head are compiled.
    """
    found = own_rewards(model, inputs)
    if compiled:
        other = build_model(preset, model.device.type, dtype)
        other.backbone.compile()
        other.head.compile()
        found |= {f"{name}{COMPILED}": reward for name, reward in own_rewards(other, inputs).items()}
    sizes = MINIATURE if preset == SMALL else Sizes()
    with torch.device(model.device):
        decoder = build_decoder(sizes, dtype)
        others = {
            "PickScore, HPSv2": ClipReward(sizes, dtype),
            "ImageReward": BlipReward(sizes, dtype),
            HPSV3: QwenReward(sizes, dtype),
            DECODER: _Mean(),
        }
    for name, reward in others.items():
        decoded = DecodedReward(decoder, reward).eval().requires_grad_(False)
        found[name] = Contender(decoded, decoded)
    return found


class _Mean(nn.Module):
    """A reward whose cost is negligible."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.mean(dim=(1, 2, 3))


def policy(model: DinaRewardModel, inputs: Inputs, dtype: torch.dtype) -> Contender:
    """The generator that is aligned: one step of the whole transformer, of which only a LoRA is trained."""
    _, prompt_embeds, pooled = inputs
    with torch.device(model.device):
        transformer = SD3Transformer2DModel.from_config(model.config.transformer_config).requires_grad_(False)
        nn.Module.to(transformer, dtype)  # as in `build_decoder`
        SD3Generator(transformer, model.config.scheduler_config).add_adapter(POLICY_RANK, 2 * POLICY_RANK)

    def step(latents):
        timestep = torch.full((len(latents),), 500.0, device=latents.device)
        return transformer(latents, prompt_embeds, pooled, timestep).sample

    return Contender(transformer, step)


def gradient(contender: Contender, latents: torch.Tensor) -> torch.Tensor:
    """Gradient of the rewards with respect to the latents [B, C, H, W]."""
    with torch.enable_grad():
        latents = latents.detach().requires_grad_()
        # Not autograd.grad, which torch's FLOP counter does not support.
        contender.run(latents).sum().backward()
        assert latents.grad is not None
        return latents.grad


def count(contender: Contender, latents: torch.Tensor) -> dict:
    """Count the parameters, FLOPs and bytes of a contender on the meta device."""
    return {
        "parameters": count_parameters(contender.module)[0],
        "weight_bytes": weight_bytes(contender.module),
        "forward": {"flops": count_flops(lambda: contender.run(latents))},
        "gradient": {
            "flops": count_flops(lambda: gradient(contender, latents)),
            "kept_bytes": kept_bytes(contender.module, lambda: contender.run(latents.detach().requires_grad_())),
        },
    }


def measure_rewards(found: dict[str, Contender], latents: torch.Tensor, rounds: int) -> dict[str, dict]:
    """Measure the seconds, images per second and peak memory beyond the weights of contenders that take turns, forward
    and with the gradient to the latents."""
    device = latents.device.type
    cases = {
        (name, kind): case
        for name, contender in found.items()
        for kind, case in {
            "forward": lambda contender=contender: contender.run(latents),
            "gradient": lambda contender=contender: gradient(contender, latents),
        }.items()
    }
    seconds = measure_seconds(cases, device, rounds)
    measured: dict[str, dict] = {name: {} for name in found}
    for (name, kind), case in cases.items():
        measured[name][kind] = {
            "seconds": seconds[name, kind],
            "images_per_second": len(latents) / seconds[name, kind],
            "peak_bytes": measure_peak_bytes(case, device),
        }
    return measured


def claims(rewards: dict[str, dict], generator: dict) -> list[dict]:
    """The published savings over HPSv3 at 1024 pixels and batch size 1, and the counted ones."""

    def saved(cost: Callable[[dict], int]) -> float:
        return 1 - cost(rewards[DINA]) / cost(rewards[HPSV3])

    def memory(counted: dict) -> int:
        return counted["weight_bytes"] + counted["gradient"]["kept_bytes"]

    return [
        {
            "claim": "FLOPs of a reward saved over HPSv3",
            "published": 0.711,
            "found": {"with decoding": saved(lambda counted: counted["forward"]["flops"])},
        },
        {
            "claim": "peak memory of alignment saved over HPSv3",
            "published": 0.514,
            "found": {
                "reward alone": saved(memory),
                "reward and generator": saved(lambda counted: memory(counted) + memory(generator)),
            },
        },
    ]


@torch.no_grad()
def measure(
    preset: str,
    device: Device,
    resolution: int,
    batch_size: int,
    dtype: torch.dtype,
    others: bool = False,
    rounds: int = ROUNDS,
    out: Path | None = None,
) -> dict:
    """Measure one setting; returns what JSON can represent, for the file `out`."""
    settings = {
        "preset": preset,
        "device": device.value,
        "resolution": resolution,
        "batch_size": batch_size,
        "dtype": str(dtype).removeprefix("torch."),
    }
    options = [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    command = ["python -m model_card.measure_cost", *options, *["--others"] * others]
    if rounds != ROUNDS:
        command.append(f"--rounds {rounds}")
    result = {
        "kind": "cost",
        "command": " ".join([*command, *([f"--out {out}"] if out else [])]),
        "revision": None,  # a cost does not depend on weights
        "settings": {
            **settings,
            "device_name": device_name(device.value),
            "libraries": {library: version(library) for library in LIBRARIES},
        },
        **count_all(preset, resolution, batch_size, dtype, others),
    }
    if device is not Device.meta:
        measure_all(result, preset, device, resolution, batch_size, dtype, others, rounds)
    for unit in ("flops", "seconds"):
        if unit in result:
            values = result[unit]
            result[f"{unit}_ratios"] = {
                "1 level / (backbone + head)": values["reward, 1 level"] / values["backbone + head"],
                "3 levels / 1 level": values["reward, 3 levels"] / values["reward, 1 level"],
            }
    return result


def device_name(device: str) -> str:
    """What results call a device."""
    if device == "cpu":
        return f"{platform.machine()}, {torch.get_num_threads()} threads"
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def count_all(preset: str, resolution: int, batch_size: int, dtype: torch.dtype, others: bool) -> dict:
    """The counts of the meta device, which are the same on every machine."""
    model = build_model(preset, "meta", dtype)
    inputs = build_inputs(model, resolution, batch_size)
    result: dict = {
        "parameters": {
            "backbone": count_parameters(model.backbone)[0],
            "head": count_parameters(model.head)[0],
        },
        "flops": {name: count_flops(case) for name, case in parts(model, inputs).items()},
    }
    found = contenders(preset, model, inputs, dtype, compiled=False) if others else own_rewards(model, inputs)
    result["rewards"] = {name: count(contender, inputs.latents) for name, contender in found.items()}
    if preset == SD35_MEDIUM:
        result["pipeline"] = {
            name: {"weight_bytes": weight_bytes(part), "largest_layer_bytes": largest_layer_bytes(part)}
            for name, part in build_pipeline_parts(dtype).items()
        }
    if others:
        result["generator"] = count(policy(model, inputs, dtype), inputs.latents)
        if (preset, resolution, batch_size) == (SD35_MEDIUM, 1024, 1):
            result["claims"] = claims(result["rewards"], result["generator"])
    return result


def measure_all(
    result: dict,
    preset: str,
    device: Device,
    resolution: int,
    batch_size: int,
    dtype: torch.dtype,
    others: bool,
    rounds: int,
) -> None:
    """Add the measurements of a real device to the counts."""
    model = build_model(preset, device.value, dtype)
    inputs = build_inputs(model, resolution, batch_size)
    runs = parts(model, inputs)
    result["seconds"] = measure_seconds(runs, device.value, rounds)
    result["peak_bytes"] = {name: measure_peak_bytes(case, device.value) for name, case in runs.items()}
    if not others:
        return
    found = contenders(preset, model, inputs, dtype, compiled=device is Device.cuda)
    for name, measured in measure_rewards(found, inputs.latents, rounds).items():
        # A compiled contender has the counts of the uncompiled one.
        counted = result["rewards"].get(name) or result["rewards"][name.removesuffix(COMPILED)]
        result["rewards"][name] = counted | {kind: counted[kind] | numbers for kind, numbers in measured.items()}


def print_result(result: dict, console: Console) -> None:
    """Print the numbers as tables."""
    parameters = ", ".join(f"{name} {count / 1e6:.1f} M" for name, count in result["parameters"].items())
    setting = "{preset}, {resolution} px, batch {batch_size}, {dtype}".format(**result["settings"])
    console.print(f"{setting}: {parameters}", highlight=False)
    table = Table("", "GFLOPs", "ms", "peak MB")
    for name, flops in result["flops"].items():
        seconds, peak = (result.get(unit, {}).get(name) for unit in ("seconds", "peak_bytes"))
        table.add_row(name, _shown(flops, 1e9, 2), _shown(seconds, 1e-3), _shown(peak, 1e6))
    console.print(table)
    for unit in ("flops", "seconds"):
        for name, ratio in result.get(f"{unit}_ratios", {}).items():
            console.print(f"{name}, {unit}: {ratio:.3f}", highlight=False)
    if "rewards" in result:
        print_rewards(result, console)


def print_rewards(result: dict, console: Console) -> None:
    """Print the comparison with other rewards, and the claims."""
    for kind, title in {"forward": "reward of a latent", "gradient": "with its gradient to the latent"}.items():
        table = Table(title=title)
        table.add_column(no_wrap=True)
        units = {"weight_bytes": ("GB weights", 1e9, 2), "kept_bytes": ("GB saved", 1e9, 2)}
        units |= {"flops": ("TFLOPs", 1e12, 3), "seconds": ("ms", 1e-3, 1)}
        units |= {"images_per_second": ("images/s", 1, 1), "peak_bytes": ("peak GB", 1e9, 2)}
        rows = {name: reward | reward[kind] for name, reward in result["rewards"].items()}
        units = {key: unit for key, unit in units.items() if any(key in row for row in rows.values())}
        for label, _, _ in units.values():
            table.add_column(label)
        for name, row in rows.items():
            table.add_row(name, *(_shown(row.get(key), unit, digits) for key, (_, unit, digits) in units.items()))
        console.print(table)
    for claim in result.get("claims", []):
        found = ", ".join(f"{share:.1%} ({name})" for name, share in claim["found"].items())
        console.print(f"{claim['claim']}: published {claim['published']:.1%}, counted {found}", highlight=False)


def _shown(value: float | None, unit: float, digits: int = 1) -> str:
    return "" if value is None else f"{value / unit:,.{digits}f}"


def main(
    preset: Annotated[
        str,
        typer.Option(
            help="Model to measure: the embedded one (small), or one of DinaConfig.preset, such as flux1-dev."
        ),
    ] = SMALL,
    device: Annotated[
        Device, typer.Option(help="Device to measure on; meta counts FLOPs and bytes without computing.")
    ] = Device.meta,
    resolution: Annotated[
        int | None, typer.Option(help="Side of the images in pixels. Default: 64 for small, else 1024.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Number of images per batch.")] = 1,
    dtype: Annotated[str, typer.Option(help="Floating-point type: float32, bfloat16 or float16.")] = "float32",
    others: Annotated[
        bool,
        typer.Option(
            "--others",
            help="Also measure other common rewards, with preset sd3.5-medium, or miniatures of them, with small.",
        ),
    ] = False,
    rounds: Annotated[
        int, typer.Option(min=1, help="Number of timings of each case, of which the median is reported.")
    ] = ROUNDS,
    out: Annotated[Path | None, typer.Option(help="Also write the results to this JSON file.")] = None,
) -> None:
    """Measure the cost of a reward."""
    side = resolution or (64 if preset == SMALL else 1024)
    with exit_on_bad_input():
        if preset not in NAMES:
            raise ValueError(f"preset: expected one of {', '.join(NAMES)}, got {preset}")
        if others and preset not in COMPARED:
            raise ValueError(f"others: expected a preset of {', '.join(COMPARED)}, got {preset}")
        if dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"dtype: expected float32, bfloat16 or float16, got {dtype!r}")
        if device is Device.cuda and not torch.cuda.is_available():
            raise ValueError("device: expected one that torch can use here, got 'cuda'")
        if side % 16 or side < 16:
            raise ValueError(f"resolution: expected a multiple of 16 pixels, got {side}")
        if out:
            check_output("out", out, (".json",))
    result = measure(preset, device, side, batch_size, getattr(torch, dtype), others, rounds, out)
    print_result(result, Console())
    if out:
        write_json(out, result)


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
