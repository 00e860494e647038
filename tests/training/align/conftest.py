"""A run of the tiny generator that takes seconds."""

from pathlib import Path

import pytest

TINY = str(Path(__file__).parents[3] / "modeling_dina" / "tiny")
BASE = {
    "policy": TINY,
    "reward_model": TINY,
    "dtype": "float32",
    "lora_rank": 8,
    "lora_alpha": 16,
    "learning_rate": 1e-3,
    "reward_sigmas": [0.1],
    "reward_draws": 1,
    "ema_decay": 0.0,
    "updates": 3,
    "prompts_per_update": 8,
    "eval_every": 100,
    "eval_samples": 32,
    "eval_steps": 5,
    "eval_guidance_scale": 1.0,
    "report_to": "none",
}
SETTINGS = {
    "refl": {"num_steps": 5, "guidance_scale": 1.0, "first_step": 2, "last_step": 4},
    "flow_grpo": {
        "num_steps": 5,
        "guidance_scale": 1.0,
        "group_size": 32,
        "window": 2,
        "window_end": 2,
        "kl_weight": 1e-3,
        "clip_range": 0.1,
    },
    "diffusion_nft": {"num_steps": 5, "group_size": 24, "levels": 3},
    "diffusion_dpo": {
        "num_steps": 5,
        "guidance_scale": 1.0,
        "group_size": 4,
        "levels": 4,
        "beta": 200.0,
        "optimizer_steps": 2,
    },
}


@pytest.fixture(scope="session")
def tiny_folder():
    """The embedded default: generator and reward model."""
    return TINY


@pytest.fixture
def settings(tmp_path):
    """Arguments of a run of an algorithm: fields of `AlignArguments` by name, and of its own in `own`. There is one
    prompt only, so that progress shows after few updates."""
    from training.align.arguments import AlignArguments
    from training.align.run import ALGORITHMS

    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a large red circle\n")
    places = {"output_dir": str(tmp_path / "run"), "prompts": str(prompts), "eval_prompts": str(prompts)}

    def make(algorithm: str, own: dict | None = None, **fields):
        arguments = AlignArguments(**(BASE | places | {"algorithm": algorithm} | fields))
        return arguments, ALGORITHMS[algorithm].Arguments(**(SETTINGS[algorithm] | (own or {})))

    return make


@pytest.fixture
def gain():
    """By how much a run raised the mean of a reward, and the standard error of that."""
    from safetensors.torch import load_file

    def measure(arguments, name: str = "dina") -> tuple[float, float]:
        folder = Path(arguments.output_dir) / "evaluations"
        first, last = (load_file(path)[name] for path in (min(folder.iterdir()), max(folder.iterdir())))
        difference = last - first
        return difference.mean().item(), difference.std().item() / len(difference) ** 0.5

    return measure
