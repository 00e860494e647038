"""The cost of an update of Stable Diffusion 3.5 Medium, counted without computing."""

import json
from pathlib import Path

import model_card
from model_card.measure_cost import DINA, HPSV3
from model_card.studies.alignment.variants import CONFIGS
from training.align.dry_run import Cost
from training.align.run import load_run

RESOLUTION = 1024
COUNTED = Path(model_card.__file__).parent / "results" / f"cost_sd35_medium_{RESOLUTION}.json"
FULL_SIZE = {
    "DiNa-LRM, ReFL on noisy states": ("prfl", DINA),
    "DiNa-LRM, ReFL on clean predictions": ("refl", DINA),
    "HPSv3 behind the decoder, ReFL": ("refl", HPSV3),
}


def count_full_size() -> dict[str, dict[str, dict[str, float]]]:
    """FLOPs and bytes, by their parts, of an update on one prompt at 1024 pixels, with one level of DiNa-LRM or with
    HPSv3: the counts of rewards and generator in `COUNTED`, and the cost of training a LoRA."""
    counted = json.loads(COUNTED.read_text("utf-8"))
    generator, rewards = counted["generator"], counted["rewards"]
    fields = {"resolution": RESOLUTION, "prompts_per_update": 1, "batch_size": 1, "gradient_checkpointing": False}
    runs = {config: load_run(CONFIGS / f"sd35_medium_{config}.yaml", **fields) for config in ("prfl", "refl")}
    training = Cost(*runs["refl"])  # ReFL on noisy states trains the same LoRA
    lora = sum(training.memory[part] for part in ("gradients", "optimizer", "averaged weights"))
    return {
        name: {
            "flops": {
                "sampling": runs[config][1].evaluations().sampling * generator["forward"]["flops"],
                "reward": rewards[reward]["gradient"]["flops"],
                "update": training.flops["update"],
            },
            "bytes": {
                "generator": generator["weight_bytes"],
                "its activations": generator["gradient"]["kept_bytes"],
                "LoRA's gradients, moments and average": lora,
                "reward": rewards[reward]["weight_bytes"],
                "reward's activations": rewards[reward]["gradient"]["kept_bytes"],
            },
        }
        for name, (config, reward) in FULL_SIZE.items()
    }
