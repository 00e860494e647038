"""The loop of an alignment run: collect, update, evaluate, save."""

import json
import logging
import math
import os
import signal
import time
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from diffusers.utils import make_image_grid
from safetensors.torch import save_file
from torch.nn.utils import get_total_norm

from modeling_dina.files import atomic_path
from modeling_dina.noising_dina import seeded_generator
from training.align.algorithm import Algorithm, Draws, Experience
from training.align.arguments import AlignArguments
from training.align.policy import Policy
from training.align.prompts import Prompts
from training.align.rewards import Reward
from training.checkpoints import rotate_checkpoints

logger = logging.getLogger(__name__)

STATE = "state.pt"
PROGRESS = ("update", "seconds", "nonfinite", "best", "best_weights", "waited")
# What may differ when a run goes on.
FREE_ARGUMENTS = {"updates", "output_dir", "resume_from_checkpoint", "report_to", "dry_run", "max_nonfinite"}
FREE_ARGUMENTS |= {"save_every", "save_total_limit"}
METRICS = "metrics.jsonl"
GRID = 16
# A watched reward has turned when it lies below its best by this many standard errors of the paired difference.
TURNED = 2.0


class NonFiniteError(RuntimeError):
    """Too many rewards or gradients were not finite numbers."""


class AlignmentTrainer:
    """Updates a policy by an algorithm until it is done, told to stop, or a watched reward turns.

    Everything random is a function of the seed, the update and the process, so that an interrupted run goes on as if
    nothing had happened.

    Args:
        arguments: of the run.
        accelerator: with its trackers initialised.
        algorithm: with its policy.
        rewards: those measured at every evaluation, by name.
        prompts, eval_prompts: what is asked for.
    """

    def __init__(
        self,
        arguments: AlignArguments,
        accelerator: Accelerator,
        algorithm: Algorithm,
        rewards: dict[str, Reward],
        prompts: Prompts,
        eval_prompts: Prompts,
    ) -> None:
        self.arguments, self.accelerator, self.algorithm, self.rewards = arguments, accelerator, algorithm, rewards
        self.policy: Policy = algorithm.policy
        self.prompts = prompts
        each = arguments.eval_samples_per_prompt
        self.eval_conditioning = self.policy.encode(eval_prompts.batch(0, arguments.eval_samples // each, each))
        self.optimizer = torch.optim.AdamW(self.policy.parameters, lr=arguments.learning_rate, weight_decay=0.0)
        self.average = EMAModel(self.policy.parameters, decay=arguments.ema_decay)
        self.output_dir = Path(arguments.output_dir)
        self.update, self.seconds, self.nonfinite = 0, 0.0, 0
        # The first watched reward's scores where their mean was highest, the weights there, and evaluations since.
        self.best: torch.Tensor | None = None
        self.best_weights: list[torch.Tensor] | None = None
        self.waited = 0
        self.was_terminated = False

    def train(self) -> None:
        """Run to the end, or to a SIGTERM: then `was_terminated` is set and a checkpoint is there."""
        if self.update == 0 and self.accelerator.is_main_process:
            (self.output_dir / METRICS).write_text("")  # of a run that left no checkpoint
        previous = signal.signal(signal.SIGTERM, lambda *_: self.accelerator.set_trigger())
        try:
            while self.update < self.arguments.updates:
                if self.update % self.arguments.eval_every == 0 and self.evaluate():
                    logger.warning("the watched reward has turned: stopping after update %d", self.update)
                    break
                self.make_update()
                # Asked of all processes: they must stop after the same update.
                self.was_terminated = self.accelerator.check_trigger()
                if self.was_terminated or self.update % self.arguments.save_every == 0:
                    self.save()
                if self.was_terminated:
                    return
            else:
                self.save()
                self.evaluate()
        finally:
            signal.signal(signal.SIGTERM, previous)
        self.finish()

    # ---- one update ----

    def draws(self) -> Draws:
        """Of this update in this process."""
        generator = seeded_generator(self.arguments.seed, self.update, self.accelerator.process_index)
        return Draws(generator, seed=int(torch.randint(2**31, (), generator=generator, device="cpu")))

    def make_update(self) -> None:
        """Collect samples, take the optimizer steps that they are for, and log what came of it."""
        started = time.perf_counter()
        draws, arguments = self.draws(), self.arguments
        process = self.update * self.accelerator.num_processes + self.accelerator.process_index
        asked = self.prompts.batch(process * arguments.prompts_per_update, arguments.prompts_per_update)
        experience = self.algorithm.collect(self.policy.encode(asked), draws)
        means = Means(experience.metrics)
        nonfinite = int(experience.metrics.get("nonfinite", 0))
        order = torch.randperm(len(experience), generator=draws.generator)
        for rows in order.tensor_split(self.algorithm.optimizer_steps):
            nonfinite += self.optimizer_step(experience.select(rows.to(self.policy.device)), draws, means)
        self.algorithm.after_update()
        self.update += 1
        self.seconds += time.perf_counter() - started
        self.count_nonfinite(nonfinite)
        self.log({**means.values(), "seconds": self.seconds, "nonfinite": self.nonfinite}, "train")

    def optimizer_step(self, batch: Experience, draws: Draws, means: "Means") -> int:
        """One step on the mean loss of a batch's items. Returns how many of them had no finite loss and were dropped,
        plus one if the gradient was not finite and no step was taken."""
        nonfinite = 0
        for rows in torch.arange(len(batch), device=self.policy.device).split(self.arguments.batch_size):
            part, seed = batch.select(rows), draws.seed + int(rows[0])
            loss, metrics = self.algorithm.loss(part, seed)
            finite = loss.detach().isfinite()
            if not finite.all():
                # Again without them: a gradient of zero times infinity would still be no number.
                nonfinite += int((~finite).sum())
                if not finite.any():
                    continue
                loss, metrics = self.algorithm.loss(part.select(finite), seed)
            means.add({"loss": loss, **metrics})
            self.accelerator.backward(loss.sum() / len(batch))
        norm = self.gather_gradients()
        if norm.isfinite():
            torch.nn.utils.clip_grads_with_norm_(self.policy.parameters, self.arguments.max_grad_norm, norm)
            self.optimizer.step()
            self.average.step(self.policy.parameters)
            means.add({"gradient_norm": norm[None]})
        self.optimizer.zero_grad()
        return nonfinite + int(not norm.isfinite())

    def gather_gradients(self) -> torch.Tensor:
        """Average the gradients over the processes, and return their norm. The LoRA is small, and processes may come
        here by different numbers of backward passes."""
        for parameter in self.policy.parameters:
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = self.accelerator.reduce(gradient, reduction="mean")
        return get_total_norm([parameter.grad for parameter in self.policy.parameters])

    def count_nonfinite(self, count: int) -> None:
        """
        Raises:
            NonFiniteError: with these there have been too many.
        """
        counted = torch.tensor(count, device=self.policy.device)
        self.nonfinite += int(self.accelerator.reduce(counted, reduction="sum"))
        if self.nonfinite > self.arguments.max_nonfinite:
            raise NonFiniteError(
                f"rewards: expected finite numbers, got {self.nonfinite} rewards or gradients that are not, up to "
                f"update {self.update}; max_nonfinite is {self.arguments.max_nonfinite}"
            )

    # ---- evaluation ----

    @torch.no_grad()
    def evaluate(self) -> bool:
        """Sample with the averaged weights, always under the same prompts and from the same noise, and measure every
        reward. Writes scores and latents of all samples, and a picture of some.

        Returns:
            Whether the watched reward has turned, and been waited for.
        """
        every = torch.arange(self.arguments.eval_samples)
        with self.policy.weights_of(self.average), self.accelerator.split_between_processes(every, True) as own:
            measured = [self.measure(rows) for rows in own.split(self.arguments.sampling_batch_size)]
        results = {
            name: self.accelerator.gather(torch.cat([each[name] for each in measured]))[: len(every)].cpu()
            for name in measured[0]
        }
        scores = {name: results[name] for name in self.rewards}
        metrics = {name: values.mean().item() for name, values in scores.items()}
        errors = {f"{name}_error": values.std().item() / len(values) ** 0.5 for name, values in scores.items()}
        each = self.arguments.eval_samples_per_prompt
        variety = {"diversity": diversity(results["latents"], each).mean().item()} if each > 1 else {}
        self.log(metrics | errors | variety, "eval")
        if self.accelerator.is_main_process:
            self.write_evaluation(results)
        return bool(self.arguments.patience) and self.has_turned(scores[self.arguments.watched[0]])

    def measure(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        """Latents and scores of some of the evaluation's samples."""
        arguments, policy = self.arguments, self.policy
        asked = self.eval_conditioning.select(rows)
        path = policy.sample(
            asked,
            policy.noise(arguments.eval_samples, torch.Generator().manual_seed(0))[rows],
            policy.sigmas(arguments.eval_steps),
            batch_size=len(rows),
            guidance_scale=arguments.eval_guidance_scale,
        )
        latents = path.states[-1]
        return {"latents": latents, **{name: reward(latents, asked).scores for name, reward in self.rewards.items()}}

    def has_turned(self, watched: torch.Tensor) -> bool:
        """Whether patience with the watched reward ends with these scores. The weights of the best evaluation are
        kept."""
        if self.best is None or watched.mean() >= self.best.mean():
            self.best, self.waited = watched, 0
            self.best_weights = [weight.clone() for weight in self.average.shadow_params]
            return False
        difference = watched - self.best
        surely = difference.mean() < -TURNED * difference.std() / len(difference) ** 0.5
        self.waited = self.waited + 1 if surely else 0
        return self.waited >= self.arguments.patience

    def write_evaluation(self, results: dict[str, torch.Tensor]) -> None:
        """All samples to evaluations/, a grid of the first to samples/ and the trackers."""
        for folder in ("evaluations", "samples"):
            (self.output_dir / folder).mkdir(parents=True, exist_ok=True)
        save_file(results, self.output_dir / "evaluations" / f"{self.update:06d}.safetensors")
        shown = self.policy.decode(results["latents"][:GRID].to(self.policy.device)).cpu()
        columns = math.isqrt(len(shown))
        images = self.policy.pipeline.image_processor.postprocess(shown[: columns**2])
        path = self.output_dir / "samples" / f"{self.update:06d}.png"
        make_image_grid(images, columns, columns).save(path)
        for tracker in self.accelerator.trackers:
            if tracker.name == "trackio":
                import trackio

                tracker.log({"samples": trackio.Image(str(path))}, step=self.update)
            else:
                tracker.log_images({"samples": np.stack([np.asarray(image) for image in images])}, step=self.update)

    # ---- logs and checkpoints ----

    def log(self, metrics: dict[str, float], kind: str) -> None:
        """A line of `metrics.jsonl`, and the trackers; of the main process."""
        self.accelerator.log({f"{kind}/{name}": value for name, value in metrics.items()}, step=self.update)
        if self.accelerator.is_main_process:
            line = json.dumps({"kind": kind, "update": self.update, **metrics})
            print(line, flush=True)
            with (self.output_dir / METRICS).open("a") as file:
                file.write(line + "\n")

    def save(self) -> None:
        """A whole checkpoint, and none but the newest few."""
        if self.accelerator.is_main_process:
            with atomic_path(self.output_dir / f"checkpoint-{self.update}") as partial:
                partial.mkdir()
                torch.save(self.state_dict(), partial / STATE)
                with self.policy.weights_of(self.average):
                    self.policy.save_adapter(partial)
            rotate_checkpoints(self.output_dir, self.arguments.save_total_limit)
        self.accelerator.wait_for_everyone()

    def finish(self) -> None:
        """Write the averaged LoRA to adapter/; where there was a watch over it, that of the best evaluation."""
        if self.best_weights is not None:
            self.average.shadow_params = self.best_weights
        if self.accelerator.is_main_process:
            with atomic_path(self.output_dir / "adapter") as partial, self.policy.weights_of(self.average):
                self.policy.save_adapter(partial)
        self.accelerator.wait_for_everyone()

    def state_dict(self) -> dict:
        """Everything that an update depends on, and how far the metrics' file reaches."""
        return {
            "run": self.run_arguments(),
            "policy": self.policy.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict(),
            "algorithm": self.algorithm.state_dict(),
            "metrics_bytes": (self.output_dir / METRICS).stat().st_size,
            **{name: getattr(self, name) for name in PROGRESS},
        }

    def resume(self, checkpoint: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            ValueError: it is of a run with other arguments.
        """
        state = torch.load(checkpoint / STATE, map_location="cpu", weights_only=True)
        for name, value in self.run_arguments().items():
            if state["run"].get(name) != value:
                raise ValueError(
                    f"resume_from_checkpoint: expected a run with {name} {value}, got {checkpoint} of one with "
                    f"{state['run'].get(name)}"
                )
        self.policy.load_state_dict(state["policy"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average.load_state_dict(state["average"])
        self.algorithm.load_state_dict(state["algorithm"])
        self.average.to(self.policy.device)
        for name in PROGRESS:
            setattr(self, name, state[name])
        if self.accelerator.is_main_process:
            os.truncate(self.output_dir / METRICS, state["metrics_bytes"])

    def run_arguments(self) -> dict:
        """The arguments that a run cannot go on with others of."""
        every = asdict(self.arguments) | asdict(self.algorithm.arguments)
        return {name: value for name, value in every.items() if name not in FREE_ARGUMENTS}


def diversity(latents: torch.Tensor, samples_per_prompt: int) -> torch.Tensor:
    """How much samples of one prompt differ: the root mean square difference of two of them, averaged over pairs.

    Args:
        latents: [P S, C, H, W], S samples of a prompt in succession.
        samples_per_prompt: S, at least 2.

    Returns:
        [P], in units of the latents.
    """
    groups = latents.float().flatten(1).unflatten(0, (-1, samples_per_prompt))
    pairs = samples_per_prompt * (samples_per_prompt - 1)
    return torch.cdist(groups, groups).sum(dim=(1, 2)) / (pairs * groups.shape[2] ** 0.5)


class Means:
    """Running means of metrics.

    Args:
        initial: values that are means already.
    """

    def __init__(self, initial: dict[str, float]) -> None:
        self.initial = initial
        self.sums: dict[str, float] = defaultdict(float)
        self.counts: dict[str, int] = defaultdict(int)

    def add(self, metrics: dict[str, torch.Tensor]) -> None:
        """Take in values [N] by name."""
        for name, values in metrics.items():
            self.sums[name] += values.detach().sum().item()
            self.counts[name] += len(values)

    def values(self) -> dict[str, float]:
        """The means by name."""
        return self.initial | {name: total / self.counts[name] for name, total in self.sums.items()}
