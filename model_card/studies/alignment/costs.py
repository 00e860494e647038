"""The cost of an update of Stable Diffusion 3.5 Medium, counted without computing."""

from collections.abc import Collection
from functools import cache

import torch

from model_card.measure_cost import DINA, HPSV3, Preset, build_inputs, build_model, contenders, count, policy
from model_card.studies.alignment.variants import CONFIGS
from training.align.dry_run import Cost
from training.align.run import load_run

RESOLUTION = 1024
FULL_SIZE = {
    "DiNa-LRM, ReFL on noisy states": ("prfl", DINA),
    "DiNa-LRM, ReFL on clean predictions": ("refl", DINA),
    "HPSv3 behind the decoder, ReFL": ("refl", HPSV3),
}
TRAINING = ("gradients", "optimizer", "averaged weights")


def count_full_size(names: Collection[str] = tuple(FULL_SIZE)) -> dict[str, dict[str, dict[str, float]]]:
    """
    FLOPs and bytes, by their parts, of an update on one prompt at 1024 pixels, with one level of DiNa-LRM or with
    HPSv3; on the meta device, with fused attention and without recomputation.

    Args:
        names: names of `FULL_SIZE`.
    """
    dtype = torch.bfloat16
    model = build_model(Preset.sd35_medium, "meta", dtype)
    inputs = build_inputs(model, RESOLUTION, 1)
    rewards = contenders(Preset.sd35_medium, model, inputs, dtype, compiled=False)
    counted = {reward: count(rewards[reward], inputs[0]) for reward in {FULL_SIZE[name][1] for name in names}}
    generator = count(policy(model, inputs, dtype), inputs[0])
    found = {}
    for name in names:
        config, reward = full_size_run(FULL_SIZE[name][0]), counted[FULL_SIZE[name][1]]
        found[name] = {
            "flops": {
                "sampling": config.flops["sampling"],
                "reward": reward["gradient"]["flops"],
                "update": config.flops["update"],
            },
            "bytes": {
                "generator": generator["weight_bytes"],
                "its activations": generator["gradient"]["kept_bytes"],
                "LoRA's gradients, moments and average": sum(config.memory[part] for part in TRAINING),
                "reward": reward["weight_bytes"],
                "reward's activations": reward["gradient"]["kept_bytes"],
            },
        }
    return found


@cache
def full_size_run(config: str) -> Cost:
    """The cost of one of Stable Diffusion 3.5 Medium's configurations, for one prompt."""
    fields = {"resolution": RESOLUTION, "prompts_per_update": 1, "batch_size": 1, "gradient_checkpointing": False}
    return Cost(*load_run(CONFIGS / f"sd35_medium_{config}.yaml", **fields))
