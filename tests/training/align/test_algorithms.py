"""Each algorithm aligns the tiny generator for a few updates, and what it optimises rises."""

import pytest
import torch
from accelerate import Accelerator

from training.align.run import build, run

FAST = {"learning_rate": 2e-3}
CASES = {
    "ReFL": ("refl", {}, {}),
    "ReFL, held and gated": ("refl", {"hold_weight": 0.3}, {"gate": "weigh", "reference_samples": 8}),
    "PRFL": ("refl", {"first_step": 1, "last_step": 3, "scored": "state"}, {}),
    "DRaFT-2": ("refl", {"first_step": 3, "last_step": 3, "gradient_steps": 2, "scored": "state"}, {}),
    "Flow-GRPO with SDE steps": ("flow_grpo", {"eta": 0.7}, FAST | {"prompts_per_update": 1, "updates": 8}),
    "Flow-GRPO with CPS steps": (
        "flow_grpo",
        {"dynamics": "cps", "eta": 0.8, "clip_range": 0.01},
        FAST | {"prompts_per_update": 1, "updates": 6},
    ),
    "DiffusionNFT": ("diffusion_nft", {}, FAST | {"prompts_per_update": 1, "updates": 5}),
    "Diffusion-DPO": ("diffusion_dpo", {}, FAST | {"updates": 5}),
}


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[] if CASES[case][0] == "refl" else pytest.mark.slow) for case in CASES]
)
def test_the_optimised_reward_rises(settings, gain, case):
    algorithm, own, fields = CASES[case]
    arguments, algorithm_arguments = settings(algorithm, own, **fields)
    run(arguments, algorithm_arguments)
    mean, error = gain(arguments)
    assert mean > 2 * error


@pytest.mark.slow
def test_the_hold_pulls_back_to_the_beginning(settings):
    arguments, own = settings("refl", {"hold_weight": 1.0}, reference_samples=4)
    algorithm = build(arguments, own, Accelerator()).algorithm
    parameters = algorithm.policy.parameters
    assert algorithm.hold_error(3, seed=0).max() < 1e-10
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in parameters:
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    before = algorithm.hold_error(64, seed=0)
    assert torch.equal(before, algorithm.hold_error(64, seed=0))
    before.mean().backward()
    with torch.no_grad():
        for parameter in parameters:
            parameter -= 0.01 * parameter.grad / parameter.grad.norm().clamp_min(1e-12)
    assert 0 < algorithm.hold_error(64, seed=0).mean() < before.mean()
