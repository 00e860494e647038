"""Reward feedback learning: gradients of the reward through the last sampler steps.

ReFL (arXiv 2304.05977) scores the clean latents predicted by one step. PRFL (arXiv 2511.21541) scores the noisy state
after the step, which requires a reward on noisy states. DRaFT-K (arXiv 2309.17400) continues to the end of the path.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from transformers.hf_argparser import HfArg

from modeling_dina.noising_dina import NoisePath
from training.align.algorithm import Algorithm, AlgorithmArguments, Evaluations, Experience, calls_per_step
from training.align.rollout import Velocity


@dataclass
class ReFLArguments(AlgorithmArguments):
    """Arguments of reward feedback learning."""

    num_steps: int = HfArg(default=40, help="Number of sampler steps T in training.")
    guidance_scale: float = HfArg(
        default=4.5, help="Guidance scale of the steps without gradient; steps with gradient use no guidance."
    )
    first_step: int = HfArg(default=30, help="Earliest step, counted from 0, at which gradients may start.")
    last_step: int = HfArg(
        default=39, help="Latest step at which gradients may start; each sample draws one in first_step..last_step."
    )
    gradient_steps: int = HfArg(
        default=1, help="Number of steps K with gradient; DRaFT-K takes first_step = last_step = T - K."
    )
    scored: Literal["clean", "state"] = HfArg(
        default="clean",
        help="What is scored: the clean prediction of the last gradient step, or the state it leads to.",
    )
    hold_weight: float = HfArg(
        default=0.0,
        help="Weight w in the loss (L + w H) / (1 + w), where H is the squared distance to the initial "
        "generator's velocity; 0 switches it off.",
    )

    @property
    def scores_clean(self) -> bool:
        """Whether clean latents are scored: predicted ones, or the end of the path."""
        return self.scored == "clean" or self.first_step == self.num_steps - self.gradient_steps

    @property
    def needs_reference_samples(self) -> bool:
        return bool(self.hold_weight)

    def evaluations(self) -> Evaluations:
        hold = int(self.needs_reference_samples)
        return Evaluations(
            sampling=(self.first_step + self.last_step) / 2 * calls_per_step(self.guidance_scale) + hold,
            update=self.gradient_steps + hold,
            scored=1,
            noisy=not self.scores_clean,
            stored=self.gradient_steps + hold,
        )


def differentiable_steps(
    velocity: Velocity, latents: torch.Tensor, sigmas: torch.Tensor, path: NoisePath
) -> tuple[torch.Tensor, torch.Tensor]:
    """K deterministic steps with gradient.

    Args:
        velocity: velocity of the policy with its conditioning.
        latents: [B, C, H, W], the states at `sigmas[:, 0]`.
        sigmas: [B, K + 1], noise levels in descending order.
        path: noise path of the policy.

    Returns:
        The state after the steps, and the clean latents that the last step predicts, both [B, C, H, W].
    """
    clean = latents
    for sigma, sigma_next in zip(sigmas.T[:-1], sigmas.T[1:], strict=True):
        direction = velocity(latents, sigma)
        clean = path.predict_clean(latents, direction, sigma)
        latents = path.step(latents, direction, sigma, sigma_next)
    return latents, clean


def held_loss(loss: torch.Tensor, hold: torch.Tensor, weight: float) -> torch.Tensor:
    """(L + w H) / (1 + w): a convex combination, so that w does not change the scale of the loss."""
    return (loss + weight * hold) / (1 + weight)


class ReFL(Algorithm):
    """Reward feedback learning on clean predictions, on noisy states, or through the last K steps."""

    Arguments = ReFLArguments
    needs_gradient = True

    def check(self) -> None:
        arguments = self.arguments
        last = arguments.num_steps - arguments.gradient_steps
        if arguments.gradient_steps < 1 or not 0 <= arguments.first_step <= arguments.last_step <= last:
            raise ValueError(
                "first_step, last_step: expected 0 <= first_step <= last_step <= num_steps - gradient_steps = "
                f"{last}, got {arguments.first_step} and {arguments.last_step}"
            )
        if not arguments.scores_clean and arguments.last_step == last:
            raise ValueError(f"last_step: expected below {last}, where the last state is still noisy, got {last}")
        if not arguments.scores_clean and not self.reward.accepts_noise:
            raise ValueError("scored: expected rewards on noisy latents for 'state', got one on clean latents")
        if arguments.needs_reference_samples and self.reference_samples is None:
            raise ValueError("hold_weight: expected reference_samples, got none")

    def collect(self, conditioning, draws):
        arguments, policy = self.arguments, self.policy
        count = len(conditioning)
        sigmas = policy.sigmas(arguments.num_steps)
        first = torch.randint(
            arguments.first_step, arguments.last_step + 1, (count,), generator=draws.generator, device="cpu"
        )
        latents = policy.noise(count, draws.generator)
        for step in range(int(first.max())):
            rows = (first > step).nonzero().flatten().to(policy.device)
            latents[rows] = policy.sample(
                conditioning.select(rows),
                latents[rows],
                sigmas[step : step + 2],
                batch_size=self.batch_size,
                guidance_scale=arguments.guidance_scale,
            ).states[-1]
        items = {
            "prompt": torch.arange(count),
            "latents": latents,
            "sigmas": sigmas.cpu().unfold(0, arguments.gradient_steps + 1, 1)[first],
        }
        return Experience(conditioning, {name: values.to(policy.device) for name, values in items.items()})

    def loss(self, batch, seed):
        conditioning, sigmas = batch.item_conditioning, batch["sigmas"]

        def velocity(latents, sigma):
            return self.policy.velocity(latents, sigma, conditioning)

        state, clean = differentiable_steps(velocity, batch["latents"], sigmas, self.policy.path)
        if self.arguments.scores_clean:
            output = self.reward(clean if self.arguments.scored == "clean" else state, conditioning, seed=seed)
        else:
            output = self.reward(state, conditioning, sigmas[:, -1], seed=seed)
        weights = self.gate_weights(clean.detach(), conditioning, seed)
        loss = -weights * output.scores
        metrics = {"reward": output.scores, "kept": weights}
        if self.arguments.needs_reference_samples:
            metrics["hold"] = self.hold_error(len(batch), seed)
            loss = held_loss(loss, metrics["hold"], self.arguments.hold_weight)
        return loss, metrics

    def hold_error(self, count: int, seed: int) -> torch.Tensor:
        """Mean squared distance [count] of the velocity to that of the initial generator, at noised samples of this
        generator. `seed` determines the samples and their noise levels.

        For samples without guidance, its expectation equals that of the denoising error up to a constant. For samples
        with guidance, the denoising error would teach the policy the guidance.
        """
        generator, policy = torch.Generator().manual_seed(seed), self.policy
        assert self.reference_samples is not None
        latents, conditioning = self.reference_samples
        rows = torch.randint(len(latents), (count,), generator=generator, device="cpu").to(latents.device)
        sigma = policy.generator.training_levels(count, generator).to(latents.device)
        states = policy.path.add_noise(latents[rows], policy.noise(count, generator), sigma)
        conditioning = conditioning.select(rows)
        with torch.no_grad(), policy.reference():
            expected = policy.velocity(states, sigma, conditioning)
        return policy.generator.error(policy.velocity(states, sigma, conditioning), expected, sigma)
