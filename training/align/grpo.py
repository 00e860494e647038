"""Flow-GRPO (arXiv 2505.05470): a clipped policy gradient on the stochastic steps of groups of rollouts."""

from dataclasses import dataclass
from typing import Literal

import torch
from transformers.hf_argparser import HfArg

from training.align.algorithm import AlgorithmArguments, Evaluations, Experience, GroupAlgorithm, calls_per_step
from training.align.rollout import DYNAMICS, Transition


@dataclass
class FlowGRPOArguments(AlgorithmArguments):
    """Arguments of Flow-GRPO."""

    num_steps: int = HfArg(default=10, help="Number of sampler steps in training.")
    guidance_scale: float = HfArg(default=4.5, help="Guidance scale of rollouts and loss; 1 is no guidance.")
    group_size: int = HfArg(default=24, help="Number of samples per prompt, whose mean reward is the baseline.")
    dynamics: Literal["sde", "cps"] = HfArg(
        default="sde", help="Stochastic sampler step: sde (Flow-GRPO) or cps (coefficients-preserving sampling)."
    )
    eta: float = HfArg(
        default=0.7, help="Noise scale of a stochastic step, above 0; 0 would be the deterministic step."
    )
    window: int = HfArg(
        default=9, help="Number of successive stochastic steps that are trained on; other steps are deterministic."
    )
    window_end: int = HfArg(default=9, help="The window is placed at random within this many first steps.")
    clip_range: float = HfArg(
        default=1e-4, help="The loss clips probability ratios to the interval [1 - clip_range, 1 + clip_range]."
    )
    advantage_clip: float = HfArg(default=5.0, help="Largest absolute value of an advantage.")
    kl_weight: float = HfArg(
        default=0.04, help="Weight of the KL divergence from the initial generator; 0 switches it off."
    )
    optimizer_steps: int = HfArg(
        default=2, help="Number of optimizer steps into which the samples of one update are divided."
    )

    def evaluations(self) -> Evaluations:
        calls = calls_per_step(self.guidance_scale)
        velocities = self.group_size * calls
        reference = self.window if self.kl_weight else 0
        return Evaluations(
            velocities * (self.num_steps + reference), velocities * self.window, self.group_size, stored=calls
        )


def clipped_objective(
    log_probability: torch.Tensor, old_log_probability: torch.Tensor, advantage: torch.Tensor, clip_range: float
) -> torch.Tensor:
    """max(-A rho, -A clip(rho, 1 - e, 1 + e)) with rho = p / p_old; all [B]."""
    ratio = (log_probability - old_log_probability).exp()
    return torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip_range, 1 + clip_range))


def transition_distance(transition: Transition, reference: Transition) -> torch.Tensor:
    """mean (mu - mu_ref)^2 / (2 s^2) over C, H and W, [B]: the Kullback-Leibler divergence of two steps with the same
    noise; for the SDE step, multiplied by the step length."""
    distance = (transition.mean - reference.mean).square() / (2 * transition.scale.square())
    return distance.mean(dim=(1, 2, 3))


class FlowGRPO(GroupAlgorithm):
    """Group-relative policy optimisation of a flow's stochastic steps."""

    Arguments = FlowGRPOArguments
    needs_flow = True

    def check(self) -> None:
        super().check()
        arguments = self.arguments
        self.dynamics = DYNAMICS[arguments.dynamics](arguments.eta)
        if not arguments.eta > 0:
            raise ValueError(
                f"eta: expected a positive number, without which no two rollouts differ, got {arguments.eta}"
            )
        if not 1 <= arguments.window <= arguments.window_end < arguments.num_steps:
            raise ValueError(
                f"window, window_end: expected 1 <= window <= window_end < num_steps = {arguments.num_steps} (the "
                f"last step is deterministic), got {arguments.window} and {arguments.window_end}"
            )

    def collect(self, conditioning, draws):
        arguments = self.arguments
        latest = arguments.window_end - arguments.window
        start = int(torch.randint(latest + 1, (), generator=draws.generator, device="cpu"))
        window = range(start, start + arguments.window)
        group = self.sample_groups(conditioning, draws, dynamics=self.dynamics, stochastic=window)
        sigmas = self.policy.sigmas(arguments.num_steps).to(group.prompt.device)
        advantages = self.advantages(group)
        transitions = [
            {
                "prompt": group.prompt,
                "advantage": advantages,
                "latents": group.states[step],
                "outcome": group.states[step + 1],
                "sigma": sigmas[step].expand_as(advantages),
                "sigma_next": sigmas[step + 1].expand_as(advantages),
                "log_probability": group.log_probabilities[step],
            }
            for step in window
        ]
        items = {name: torch.cat([each[name] for each in transitions]) for name in transitions[0]}
        return Experience(conditioning, items, group.metrics).select(items["advantage"].isfinite())

    def loss(self, batch, seed):
        arguments = self.arguments
        transition = self._transition(batch)
        log_probability = self.dynamics.log_probability(batch["outcome"], transition)
        loss = clipped_objective(log_probability, batch["log_probability"], batch["advantage"], arguments.clip_range)
        ratio = (log_probability - batch["log_probability"]).detach().exp()
        metrics = {"clipped": ((ratio - 1).abs() > arguments.clip_range).float()}
        if arguments.kl_weight:
            with torch.no_grad(), self.policy.reference():
                reference = self._transition(batch)
            metrics["kl"] = transition_distance(transition, reference)
            loss = loss + arguments.kl_weight * metrics["kl"]
        return loss, metrics

    def _transition(self, batch: Experience) -> Transition:
        velocity = self.policy.velocity(
            batch["latents"], batch["sigma"], batch.item_conditioning, self.arguments.guidance_scale
        )
        return self.dynamics.transition(batch["latents"], velocity, batch["sigma"], batch["sigma_next"])
