"""What an update costs: in the small world measured, at the size of Stable Diffusion 3.5 Medium counted."""

import tempfile
from collections.abc import Collection
from functools import cache
from pathlib import Path

import torch
from accelerate import Accelerator

from model_card.cost_counters import measure_peak_bytes, measure_seconds
from model_card.measure_cost import DINA, HPSV3, Preset, build_inputs, build_model, contenders, count, policy
from model_card.studies.alignment.variants import CONFIGS, VARIANTS, read_arguments
from training.align.dry_run import Cost
from training.align.run import build, load_run
from training.costs import count_flops

RESOLUTION = 1024
FULL_SIZE = {
    "DiNa-LRM, ReFL on noisy states": ("prfl", DINA),
    "DiNa-LRM, ReFL on clean predictions": ("refl", DINA),
    "HPSv3 behind the decoder, ReFL": ("refl", HPSV3),
}


def measure_updates(
    names: list[str], pipeline_dir: str, pixel_dir: Path, prompts: float, rounds: int
) -> dict[str, dict[str, float]]:
    """Measure one update of each variant: the median "seconds", with all variants in turn, the "peak_bytes" beyond the
    memory that is always in use, and the "flops"."""
    with tempfile.TemporaryDirectory() as folder:
        cases = {}
        for name in names:
            out = Path(folder) / name
            out.mkdir()
            arguments = read_arguments(VARIANTS[name], pipeline_dir, pixel_dir, prompts, output_dir=out)
            cases[name] = build(*arguments, Accelerator()).make_update
        device = "cuda" if torch.cuda.is_available() else "cpu"
        seconds = measure_seconds(cases, device, rounds)
        return {
            name: {
                "seconds": seconds[name],
                "peak_bytes": measure_peak_bytes(case, device),
                "flops": count_flops(case),
            }
            for name, case in cases.items()
        }


def count_full_size(names: Collection[str] = tuple(FULL_SIZE)) -> dict[str, dict[str, dict[str, float]]]:
    """FLOPs and bytes, by their parts, of an update on one prompt of Stable Diffusion 3.5 Medium at 1024 pixels, with
    one level of DiNa-LRM and with HPSv3; on the meta device, with fused attention and without recomputation.

    Args:
        names: of `FULL_SIZE`.
    """
    dtype = torch.bfloat16
    model = build_model(Preset.sd35_medium, "meta", dtype)
    inputs = build_inputs(model, RESOLUTION, 1)
    rewards = contenders(Preset.sd35_medium, model, inputs, dtype, compiled=False)
    counted = {reward: count(rewards[reward], inputs[0]) for reward in {FULL_SIZE[name][1] for name in names}}
    generator = count(policy(model, inputs, dtype), inputs[0])
    found = {}
    for name in names:
        config, reward = FULL_SIZE[name]
        cost, judged = full_size_run(config), counted[reward]
        found[name] = {
            "flops": {
                "sampling": cost.flops["sampling"],
                "reward": judged["gradient"]["flops"],
                "update": cost.flops["update"],
            },
            "bytes": {
                "generator": generator["weight_bytes"],
                "its activations": generator["gradient"]["kept_bytes"],
                "LoRA's gradients, moments and average": sum(
                    cost.memory[part] for part in ("gradients", "optimizer", "averaged weights")
                ),
                "reward": judged["weight_bytes"],
                "reward's activations": judged["gradient"]["kept_bytes"],
            },
        }
    return found


@cache
def full_size_run(config: str) -> Cost:
    """The cost of one of Stable Diffusion 3.5 Medium's configurations, for one prompt."""
    fields = {"resolution": RESOLUTION, "prompts_per_update": 1, "batch_size": 1, "gradient_checkpointing": False}
    return Cost(*load_run(CONFIGS / f"sd35_medium_{config}.yaml", **fields))
