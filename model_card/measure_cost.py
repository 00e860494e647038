"""What a reward costs: `python -m model_card.measure_cost --preset small|sd35-medium --device cpu|cuda|meta`.

Parameters and FLOPs come from the meta device at any size, without weights. Seconds and peak memory come from a real
device: all cases take turns within one run, so that their ratios hold on a machine that others use too.
"""

import gc
import json
import platform
import statistics
import time
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from modeling_dina import DinaConfig, DinaRewardModel

EMBEDDED = Path(__file__).parent.parent / "modeling_dina" / "tiny"
ROUNDS = 50
TEXT_TOKENS_OF_CLIP = 77


class Preset(str, Enum):
    """The embedded default, or DiNa-LRM on Stable Diffusion 3.5 Medium with random weights."""

    small = "small"
    sd35_medium = "sd35-medium"


class Device(str, Enum):
    """Where to measure; "meta" counts without computing."""

    cpu = "cpu"
    cuda = "cuda"
    meta = "meta"


def build_model(preset: Preset, device: str, dtype: torch.dtype) -> DinaRewardModel:
    """A reward model of the preset's size with random weights: cost does not depend on their values."""
    config = DinaConfig.from_pretrained(EMBEDDED) if preset is Preset.small else DinaConfig()
    with torch.device(device):
        model = DinaRewardModel(config)
    model.backbone.to(dtype)
    return model.eval().requires_grad_(False)


def build_inputs(model: DinaRewardModel, resolution: int, batch_size: int) -> tuple[torch.Tensor, ...]:
    """Latents, prompt embeddings and pooled embeddings of pictures of `resolution` x `resolution` pixels."""
    transformer, side = model.config.transformer_config, resolution // 8
    clip_tokens = min(TEXT_TOKENS_OF_CLIP, model.config.max_sequence_length)
    options = {"device": model.device, "dtype": model.dtype}
    tokens = clip_tokens + model.config.max_sequence_length
    return (
        torch.randn(batch_size, transformer["in_channels"], side, side, **options),
        torch.randn(batch_size, tokens, transformer["joint_attention_dim"], **options),
        torch.randn(batch_size, transformer["pooled_projection_dim"], **options),
    )


def cases(model: DinaRewardModel, inputs: tuple[torch.Tensor, ...]) -> dict[str, Callable[[], object]]:
    """What is measured, by name."""
    latents, prompt_embeds, pooled = inputs
    sigma = torch.full((len(latents),), 0.5, device=latents.device)

    def backbone():
        return model.backbone(latents, model.noise_path.timestep(sigma), prompt_embeds, pooled)

    features = backbone()

    def reward(levels: list[float], draws: int):
        return model.reward(*inputs, sigmas=levels, num_draws=draws)

    return {
        "backbone": backbone,
        "head": lambda: model.head([features]),
        "backbone + head": lambda: model.head([backbone()]),
        "reward, 1 level": lambda: reward([0.5], 1),
        "reward, 3 levels": lambda: reward([0.2, 0.5, 0.7], 1),
        "reward, 3 levels x 4 draws": lambda: reward([0.2, 0.5, 0.7], 4),
    }


def count_flops(case: Callable[[], object]) -> int:
    """Floating-point operations of one call, by torch's counter; a multiplication and an addition are two."""
    with FlopCounterMode(display=False) as counter:
        case()
    return counter.get_total_flops()


def measure_seconds(runs: dict[str, Callable[[], object]], synchronize: Callable[[], None]) -> dict[str, float]:
    """Median seconds of each case over rounds in which all take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(ROUNDS + 2):
        for name, case in runs.items():
            synchronize()
            start = time.perf_counter()
            case()
            synchronize()
            if turn >= 2:  # the first turns warm caches up
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def measure_peak_bytes(case: Callable[[], object], device: str) -> int:
    """Most memory that one call holds beyond what was held before it: the allocator's on CUDA, resident on Linux."""
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        case()
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark, see proc(5)
    before = _resident("VmRSS")
    case()
    return max(0, _resident("VmHWM") - before)


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


@torch.no_grad()
def measure(preset: Preset, device: Device, resolution: int, batch_size: int, dtype: torch.dtype) -> dict:
    """All numbers of one setting, ready for JSON."""
    counted = build_model(preset, "meta", dtype)
    result = {
        "preset": preset.value,
        "resolution": resolution,
        "batch_size": batch_size,
        "dtype": str(dtype).removeprefix("torch."),
        "parameters": {
            "backbone": sum(p.numel() for p in counted.backbone.parameters()),
            "head": sum(p.numel() for p in counted.head.parameters()),
        },
        "device": {"cuda": torch.cuda.get_device_name}.get(device.value, lambda: platform.machine())()
        if device is not Device.meta
        else "meta",
        "torch": torch.__version__,
        "flops": {
            name: count_flops(case)
            for name, case in cases(counted, build_inputs(counted, resolution, batch_size)).items()
        },
    }
    if device is not Device.meta:
        model = build_model(preset, device.value, dtype)
        runs = cases(model, build_inputs(model, resolution, batch_size))
        synchronize = torch.cuda.synchronize if device is Device.cuda else lambda: None
        result["seconds"] = measure_seconds(runs, synchronize)
        result["peak_bytes"] = {name: measure_peak_bytes(case, device.value) for name, case in runs.items()}
    for unit in ("flops", "seconds"):
        if unit in result:
            values = result[unit]
            result[f"{unit}_ratios"] = {
                "1 level / (backbone + head)": values["reward, 1 level"] / values["backbone + head"],
                "3 levels / 1 level": values["reward, 3 levels"] / values["reward, 1 level"],
            }
    return result


def print_result(result: dict, console: Console) -> None:
    """The numbers as a table."""
    parameters = ", ".join(f"{name} {count / 1e6:.1f} M" for name, count in result["parameters"].items())
    setting = f"{result['preset']}, {result['resolution']} px, batch {result['batch_size']}, {result['dtype']}"
    console.print(f"{setting}: {parameters}", highlight=False)
    table = Table("", "GFLOPs", "ms", "peak MB")
    for name, flops in result["flops"].items():
        seconds, peak = (result.get(unit, {}).get(name) for unit in ("seconds", "peak_bytes"))
        table.add_row(
            name,
            f"{flops / 1e9:,.2f}",
            "" if seconds is None else f"{seconds * 1e3:,.1f}",
            "" if peak is None else f"{peak / 1e6:,.1f}",
        )
    console.print(table)
    for unit in ("flops", "seconds"):
        for name, ratio in result.get(f"{unit}_ratios", {}).items():
            console.print(f"{name}, {unit}: {ratio:.3f}", highlight=False)


def main(
    preset: Annotated[Preset, typer.Option()] = Preset.small,
    device: Annotated[Device, typer.Option()] = Device.meta,
    resolution: Annotated[int | None, typer.Option(help="Pixels a side. Default: 64 for small, else 1024.")] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 1,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    out: Annotated[Path | None, typer.Option(help="Also write the numbers here, as JSON.")] = None,
) -> None:
    """Measure what a reward costs."""
    if dtype not in ("float32", "bfloat16", "float16"):
        raise typer.BadParameter(f"dtype: expected float32, bfloat16 or float16, got {dtype!r}")
    if device is Device.cuda and not torch.cuda.is_available():
        raise typer.BadParameter("device: expected one that torch can use here, got 'cuda'")
    side = resolution or (64 if preset is Preset.small else 1024)
    if side % 16 or side < 16:
        raise typer.BadParameter(f"resolution: expected a multiple of 16 pixels, got {side}")
    result = measure(preset, device, side, batch_size, getattr(torch, dtype))
    print_result(result, Console())
    if out:
        out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
