"""The training loop of an alignment run, with evaluation, logs and checkpoints."""

import json
import logging
import os
import time
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch.nn.utils import get_total_norm

from modeling_dina.files import atomic_path
from modeling_dina.noising_dina import seeded_generator
from training.align.algorithm import Algorithm, Draws, Experience
from training.align.arguments import AlignArguments
from training.align.evaluation import Evaluation
from training.align.policy import Policy
from training.align.prompts import Prompts
from training.run_control import NonFiniteError, averaged_weights, new_checkpoint, sigterm_sets_trigger

logger = logging.getLogger(__name__)

STATE = "state.pt"
PROGRESS = ("update", "seconds", "nonfinite")
# Arguments that may change when a run is resumed.
FREE_ARGUMENTS = {"updates", "output_dir", "resume_from_checkpoint", "report_to", "dry_run", "max_nonfinite"}
FREE_ARGUMENTS |= {"save_every", "save_total_limit"}
METRICS = "metrics.jsonl"


class AlignmentTrainer:
    """Updates a policy with an algorithm until the last update, a SIGTERM, or early stopping by a watched reward.

    Random numbers depend only on the seed, the update and the process, so that a resumed run gives the same results as
    an uninterrupted one.

    Args:
        arguments: arguments of the run.
        accelerator: accelerator of the processes.
        algorithm: algorithm with the policy to update.
        prompts: training prompts.
        evaluation: evaluation that is run every `eval_every` updates.
    """

    def __init__(
        self,
        arguments: AlignArguments,
        accelerator: Accelerator,
        algorithm: Algorithm,
        prompts: Prompts,
        evaluation: Evaluation,
    ) -> None:
        self.arguments, self.accelerator, self.algorithm = arguments, accelerator, algorithm
        self.policy: Policy = algorithm.policy
        self.prompts, self.evaluation = prompts, evaluation
        self.optimizer = torch.optim.AdamW(self.policy.parameters, lr=arguments.learning_rate, weight_decay=0.0)
        self.average = EMAModel(self.policy.parameters, decay=arguments.ema_decay)
        self.output_dir = Path(arguments.output_dir)
        self.update, self.seconds, self.nonfinite = 0, 0.0, 0
        self.was_terminated = False

    def train(self) -> None:
        """Train until the end, or until a SIGTERM, which saves a checkpoint and sets `was_terminated`."""
        if self.update == 0 and self.accelerator.is_main_process:
            (self.output_dir / METRICS).write_text("")  # metrics of an earlier run without a checkpoint
        with sigterm_sets_trigger(self.accelerator):
            while self.update < self.arguments.updates:
                if self.update % self.arguments.eval_every == 0 and self.evaluate():
                    logger.warning(
                        "the watched reward is significantly below its best: stopping after update %d", self.update
                    )
                    break
                self.make_update()
                self.was_terminated = self.accelerator.check_trigger()
                if self.was_terminated or self.update % self.arguments.save_every == 0:
                    self.save()
                if self.was_terminated:
                    return
            else:
                self.save()
                self.evaluate()
        self.finish()

    # ---- one update ----

    def draws(self) -> Draws:
        """Random numbers of this update in this process."""
        generator = seeded_generator(self.arguments.seed, self.update, self.accelerator.process_index)
        return Draws(generator, seed=int(torch.randint(2**31, (), generator=generator, device="cpu")))

    def make_update(self) -> None:
        """Collect samples, take optimizer steps on them, and log the metrics."""
        started = time.perf_counter()
        draws, arguments = self.draws(), self.arguments
        process = self.update * self.accelerator.num_processes + self.accelerator.process_index
        prompts = self.prompts.batch(process * arguments.prompts_per_update, arguments.prompts_per_update)
        experience = self.algorithm.collect(self.policy.encode(prompts), draws)
        measured: dict[str, list[torch.Tensor]] = defaultdict(list)
        nonfinite = int(experience.metrics.get("nonfinite", 0))
        order = torch.randperm(len(experience), generator=draws.generator)
        for rows in order.tensor_split(self.algorithm.optimizer_steps):
            nonfinite += self.optimizer_step(experience.select(rows.to(self.policy.device)), draws, measured)
        self.algorithm.after_update()
        self.update += 1
        self.seconds += time.perf_counter() - started
        self.count_nonfinite(nonfinite)
        means = {name: torch.cat(values).mean().item() for name, values in measured.items()}
        self.log({**experience.metrics, **means, "seconds": self.seconds, "nonfinite": self.nonfinite}, "train")

    def optimizer_step(self, batch: Experience, draws: Draws, measured: dict[str, list]) -> int:
        """Take one step on the mean loss of a batch. Returns the number of items that were dropped because their
        loss is not finite, plus one if the step was skipped because the gradient is not finite. Loss and metrics are
        appended to `measured`."""
        nonfinite = 0
        for rows in torch.arange(len(batch), device=self.policy.device).split(self.arguments.batch_size):
            part, seed = batch.select(rows), draws.seed + int(rows[0])
            loss, metrics = self.algorithm.loss(part, seed)
            finite = loss.detach().isfinite()
            if not finite.all():
                # Computed again without them, because a zero weight times an infinite gradient is NaN.
                nonfinite += int((~finite).sum())
                if not finite.any():
                    continue
                loss, metrics = self.algorithm.loss(part.select(finite), seed)
            for name, values in {"loss": loss, **metrics}.items():
                measured[name].append(values.detach())
            self.accelerator.backward(loss.sum() / len(batch))
        norm = self.gather_gradients()
        if norm.isfinite():
            torch.nn.utils.clip_grads_with_norm_(self.policy.parameters, self.arguments.max_grad_norm, norm)
            self.optimizer.step()
            self.average.step(self.policy.parameters)
            measured["gradient_norm"].append(norm[None])
        self.optimizer.zero_grad()
        return nonfinite + int(not norm.isfinite())

    def gather_gradients(self) -> torch.Tensor:
        """Average the gradients over the processes, and return their norm. This is done once per step, not in the
        backward passes, because their number may differ between processes."""
        for parameter in self.policy.parameters:
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = self.accelerator.reduce(gradient, reduction="mean")
        return get_total_norm([parameter.grad for parameter in self.policy.parameters])

    def count_nonfinite(self, count: int) -> None:
        """
        Add to the total over all processes.

        Raises:
            NonFiniteError: the total is above `max_nonfinite`.
        """
        counted = torch.tensor(count, device=self.policy.device)
        self.nonfinite += int(self.accelerator.reduce(counted, reduction="sum"))
        if self.nonfinite > self.arguments.max_nonfinite:
            raise NonFiniteError(
                f"rewards: expected finite numbers, got {self.nonfinite} rewards or gradients that are not, up to "
                f"update {self.update}; max_nonfinite is {self.arguments.max_nonfinite}"
            )

    def evaluate(self) -> bool:
        """Evaluate the averaged weights, and log and write the results. Returns whether to stop early."""
        with averaged_weights(self.average, self.policy.parameters):
            results = self.evaluation.measure(self.accelerator)
        self.log(self.evaluation.summarize(results), "eval")
        if self.accelerator.is_main_process:
            self.evaluation.write(results, self.update, self.accelerator.trackers)
        return self.evaluation.should_stop(results, self.average)

    # ---- logs and checkpoints ----

    def log(self, metrics: dict[str, float], kind: str) -> None:
        """Log to the trackers and, in the main process, to `metrics.jsonl` and stdout."""
        self.accelerator.log({f"{kind}/{name}": value for name, value in metrics.items()}, step=self.update)
        if self.accelerator.is_main_process:
            line = json.dumps({"kind": kind, "update": self.update, **metrics})
            print(line, flush=True)
            with (self.output_dir / METRICS).open("a") as file:
                file.write(line + "\n")

    def save(self) -> None:
        """Write a checkpoint, and delete the oldest ones above `save_total_limit`."""
        accelerator, keep = self.accelerator, self.arguments.save_total_limit
        with new_checkpoint(
            accelerator, self.output_dir, self.update, keep=keep, writes=accelerator.is_main_process
        ) as partial:
            if accelerator.is_main_process:
                torch.save(self.state_dict(), partial / STATE)
                self.save_average(partial)

    def save_average(self, folder: Path) -> None:
        """Write the averaged LoRA."""
        with averaged_weights(self.average, self.policy.parameters):
            self.policy.save_adapter(folder)

    def finish(self) -> None:
        """Write the averaged LoRA to adapter/; with `patience`, that of the best evaluation."""
        if self.evaluation.best_weights is not None:
            self.average.shadow_params = self.evaluation.best_weights
        if self.accelerator.is_main_process:
            with atomic_path(self.output_dir / "adapter") as partial:
                self.save_average(partial)
        self.accelerator.wait_for_everyone()

    def state_dict(self) -> dict:
        """The training state, and the length of the metrics file."""
        return {
            "run": self.run_arguments(),
            "policy": self.policy.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict(),
            "algorithm": self.algorithm.state_dict(),
            "metrics_bytes": (self.output_dir / METRICS).stat().st_size,
            **{name: getattr(self, name) for name in PROGRESS},
            **self.evaluation.state_dict(),
        }

    def resume(self, checkpoint: Path) -> None:
        """Resume from a checkpoint.

        Raises:
            ValueError: the checkpoint is from a run with other arguments.
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
        self.evaluation.load_state_dict(state)
        for name in PROGRESS:
            setattr(self, name, state[name])
        if self.accelerator.is_main_process:
            os.truncate(self.output_dir / METRICS, state["metrics_bytes"])

    def run_arguments(self) -> dict:
        """The arguments that may not change when a run is resumed."""
        every = asdict(self.arguments) | asdict(self.algorithm.arguments)
        return {name: value for name, value in every.items() if name not in FREE_ARGUMENTS}
