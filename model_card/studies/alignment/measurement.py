"""Measurements of samples: every reward, whichever was optimised, and the diversity of samples."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from training.align.evaluation import Evaluation, diversity

CANDIDATES = (4, 16)


def measure(evaluation: Evaluation, latents: torch.Tensor) -> dict[str, list[float]]:
    """Means over each prompt's samples of every reward and of diversity, of an evaluation's latents [B, C, H, W]."""
    latents, each = latents.to(evaluation.policy.device), evaluation.arguments.eval_samples_per_prompt
    scores = {name: evaluation.score(name, latents, evaluation.conditioning) for name in evaluation.rewards}
    means = {name: values.view(-1, each).mean(dim=1) for name, values in scores.items()}
    means["diversity"] = diversity(latents, each)
    return {name: [round(value, 4) for value in values.tolist()] for name, values in means.items()}


def measure_run(evaluation: Evaluation, folder: Path) -> list[dict[str, Any]]:
    """What `measure` returns of every evaluation of the run in `folder`, with its "update"."""
    return [
        {"update": int(path.stem), **measure(evaluation, load_file(path)["latents"])}
        for path in sorted((folder / "evaluations").glob("*.safetensors"))
    ]


@torch.no_grad()
def best_of_n(evaluation: Evaluation) -> list[dict[str, Any]]:
    """What `measure` returns of the best of N "candidates" of the initial generator by each "reward"."""
    arguments, policy, most = evaluation.arguments, evaluation.policy, max(CANDIDATES)
    first = most * torch.arange(len(evaluation.conditioning), device=policy.device)
    conditioning = evaluation.conditioning.select((first // most).repeat_interleave(most))
    candidates = policy.sample(
        conditioning,
        policy.noise(len(conditioning), torch.Generator().manual_seed(1)),
        policy.sigmas(arguments.eval_steps),
        batch_size=arguments.sampling_batch_size,
        guidance_scale=arguments.eval_guidance_scale,
    ).states[-1]
    scores = {name: evaluation.score(name, candidates, conditioning).view(-1, most) for name in ("dina", "pixel")}
    return [
        {"reward": reward, "candidates": count}
        | measure(evaluation, candidates[first + values[:, :count].argmax(dim=1)])
        for reward, values in scores.items()
        for count in CANDIDATES
    ]
