"""The evaluation of an alignment run with every reward, always with the same prompts and noise."""

import math
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from diffusers.training_utils import EMAModel
from diffusers.utils import make_image_grid
from safetensors.torch import save_file

from training.align.arguments import AlignArguments
from training.align.policy import Conditioning, Policy
from training.align.prompts import Prompts
from training.align.rewards import Reward
from training.world.seeds import Seed

GRID = 16  # samples in the image grid
# A decrease is significant if it exceeds this many standard errors of the paired difference.
SIGNIFICANCE = 2.0
STATE_FIELDS = ("best", "best_weights", "waited")


class Evaluation:
    """
    Samples a policy, scores the samples, and decides on early stopping by the first watched reward.

    Args:
        arguments: arguments of the run.
        policy: policy to evaluate.
        rewards: rewards by name.

    Attributes:
        conditioning: conditioning of the samples.
        best: scores by the first watched reward at the evaluation with the highest mean.
        best_weights: averaged weights at that evaluation.
        waited: number of successive evaluations, up to the last, with a significantly lower mean.
    """

    def __init__(self, arguments: AlignArguments, policy: Policy, rewards: dict[str, Reward]) -> None:
        self.arguments, self.policy, self.rewards = arguments, policy, rewards
        each = arguments.eval_samples_per_prompt
        prompts = Prompts(arguments.eval_prompts, Seed.ALIGNMENT_EVALUATION, "eval_prompts")
        self.conditioning = policy.encode(prompts.batch(0, arguments.eval_samples // each, each))
        self.best: torch.Tensor | None = None
        self.best_weights: list[torch.Tensor] | None = None
        self.waited = 0

    @torch.no_grad()
    def measure(self, accelerator: Accelerator) -> dict[str, torch.Tensor]:
        """Sample on all processes; returns all "latents" and their scores by every reward, on the CPU."""
        every = torch.arange(self.arguments.eval_samples)
        with accelerator.split_between_processes(every, True) as own:
            measured = [self._sample(rows) for rows in own.split(self.arguments.sampling_batch_size)]
        return {
            name: accelerator.gather(torch.cat([each[name] for each in measured]))[: len(every)].cpu()
            for name in measured[0]
        }

    def _sample(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        arguments, policy = self.arguments, self.policy
        conditioning = self.conditioning.select(rows)
        path = policy.sample(
            conditioning,
            policy.noise(arguments.eval_samples, torch.Generator().manual_seed(0))[rows],
            policy.sigmas(arguments.eval_steps),
            batch_size=len(rows),
            guidance_scale=arguments.eval_guidance_scale,
        )
        latents = path.states[-1]
        return {"latents": latents, **{name: self.score(name, latents, conditioning) for name in self.rewards}}

    @torch.no_grad()
    def score(self, name: str, latents: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        """Scores [B] of clean latents [B, C, H, W] by the reward `name`."""
        rows = torch.arange(len(latents), device=latents.device).split(self.arguments.sampling_batch_size)
        return torch.cat([self.rewards[name](latents[part], conditioning.select(part)).scores for part in rows])

    def summarize(self, results: dict[str, torch.Tensor]) -> dict[str, float]:
        """Mean and standard error of each reward, and the diversity if there are several samples per prompt."""
        scores, each = {name: results[name] for name in self.rewards}, self.arguments.eval_samples_per_prompt
        metrics = {name: values.mean().item() for name, values in scores.items()}
        errors = {f"{name}_error": values.std().item() / len(values) ** 0.5 for name, values in scores.items()}
        variety = {"diversity": diversity(results["latents"], each).mean().item()} if each > 1 else {}
        return metrics | errors | variety

    def should_stop(self, results: dict[str, torch.Tensor], average: EMAModel) -> bool:
        """Compare results of the averaged weights with the best ones; returns whether `patience` is exhausted."""
        if not self.arguments.patience:
            return False
        watched = results[self.arguments.watched[0]]
        if self.best is None or watched.mean() >= self.best.mean():
            self.best, self.waited = watched, 0
            self.best_weights = [weight.clone() for weight in average.shadow_params]
            return False
        difference = watched - self.best
        surely = difference.mean() < -SIGNIFICANCE * difference.std() / len(difference) ** 0.5
        self.waited = self.waited + 1 if surely else 0
        return self.waited >= self.arguments.patience

    @torch.no_grad()
    def write(self, results: dict[str, torch.Tensor], update: int, trackers: list[GeneralTracker]) -> None:
        """Write all samples to evaluations/, and a grid of the first ones to samples/ and to the trackers."""
        paths = {
            folder: Path(self.arguments.output_dir, folder, f"{update:06d}.{kind}")
            for folder, kind in (("evaluations", "safetensors"), ("samples", "png"))
        }
        for path in paths.values():
            path.parent.mkdir(parents=True, exist_ok=True)
        save_file(results, paths["evaluations"])
        images = self.policy.decode(results["latents"][:GRID].to(self.policy.device)).cpu()
        columns = math.isqrt(len(images))
        images = self.policy.pipeline.image_processor.postprocess(images[: columns**2])
        make_image_grid(images, columns, columns).save(paths["samples"])
        for tracker in trackers:
            if tracker.name == "trackio":
                import trackio

                tracker.log({"samples": trackio.Image(str(paths["samples"]))}, step=update)
            else:
                tracker.log_images({"samples": np.stack([np.asarray(image) for image in images])}, step=update)

    def state_dict(self) -> dict:
        """State of early stopping, for a checkpoint."""
        return {name: getattr(self, name) for name in STATE_FIELDS}

    def load_state_dict(self, state: dict) -> None:
        """Restore `state_dict`; other entries of `state` are ignored."""
        for name in STATE_FIELDS:
            setattr(self, name, state[name])


def diversity(latents: torch.Tensor, samples_per_prompt: int) -> torch.Tensor:
    """Root mean square difference of two samples of a prompt, averaged over its pairs.

    Args:
        latents: [P S, C, H, W], with S consecutive samples per prompt.
        samples_per_prompt: S, at least 2.

    Returns:
        [P], in units of the latents.
    """
    groups = latents.float().flatten(1).unflatten(0, (-1, samples_per_prompt))
    pairs = samples_per_prompt * (samples_per_prompt - 1)
    return torch.cdist(groups, groups).sum(dim=(1, 2)) / (pairs * groups.shape[2] ** 0.5)
