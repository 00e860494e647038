"""DiffusionNFT (arXiv 2509.16117): negative-aware fine-tuning on the forward process, from clean samples alone."""

from dataclasses import dataclass

import torch
from diffusers.training_utils import EMAModel
from transformers.hf_argparser import HfArg

from modeling_dina.noising_dina import NoisePath
from training.align.algorithm import (
    AlgorithmArguments,
    Evaluations,
    Experience,
    GroupAlgorithm,
    calls_per_step,
    seeded_noise,
)
from training.run_control import averaged_weights


@dataclass
class DiffusionNFTArguments(AlgorithmArguments):
    """Arguments of DiffusionNFT."""

    num_steps: int = HfArg(default=10, help="Number of sampler steps in training.")
    guidance_scale: float = HfArg(default=1.0, help="Guidance scale of rollouts; the loss uses no guidance.")
    group_size: int = HfArg(default=24, help="Number of samples per prompt, whose mean reward is the baseline.")
    levels: int = HfArg(default=10, help="Number of the sampler's noise levels at which each sample is trained.")
    beta: float = HfArg(
        default=1.0,
        help="Weight b of the trained velocity in the implicit policies b v + (1 - b) v_old and (1 + b) v_old - b v.",
    )
    advantage_clip: float = HfArg(
        default=5.0, help="Largest absolute value of an advantage; a sample at it has optimality 1."
    )
    kl_weight: float = HfArg(
        default=1e-4, help="Weight of the squared distance to the initial generator's velocity; 0 switches it off."
    )
    old_decay: float = HfArg(
        default=0.5, help="Upper limit of the decay of the moving average that serves as sampling policy."
    )
    optimizer_steps: int = HfArg(
        default=1, help="Number of optimizer steps into which the samples of one update are divided."
    )

    def evaluations(self) -> Evaluations:
        """The mean cost per prompt: rollouts, then the old policy and the initial generator at each level."""
        sampling = self.num_steps * calls_per_step(self.guidance_scale) + self.levels * (2 if self.kl_weight else 1)
        return Evaluations(self.group_size * sampling, self.group_size * self.levels, self.group_size)


def nft_loss(
    velocity: torch.Tensor,
    old_velocity: torch.Tensor,
    state: torch.Tensor,
    latents: torch.Tensor,
    sigma: torch.Tensor,
    optimality: torch.Tensor,
    beta: float,
    path: NoisePath,
) -> torch.Tensor:
    """(rho L+ + (1 - rho) L-) / b, [B], with v+ = b v + (1 - b) v_old, v- = (1 + b) v_old - b v and
    L± = mean (x0hat± - x0)^2 / stop-gradient of max(mean |x0hat± - x0|, 1e-5).

    Args:
        velocity, old_velocity: velocities [B, C, H, W] of the trained and of the sampling policy.
        state: noisy latents at which they were computed.
        latents: x0, the samples.
        sigma: [B].
        optimality: rho [B] in [0, 1], the quality of a sample relative to its group.
        path: noise path of the policy.
    """

    def error(implicit: torch.Tensor) -> torch.Tensor:
        difference = path.predict_clean(state, implicit, sigma) - latents
        scale = difference.detach().abs().mean(dim=(1, 2, 3)).clamp(min=1e-5)
        return difference.square().mean(dim=(1, 2, 3)) / scale

    positive = error(beta * velocity + (1 - beta) * old_velocity)
    negative = error((1 + beta) * old_velocity - beta * velocity)
    return (optimality * positive + (1 - optimality) * negative) / beta


class DiffusionNFT(GroupAlgorithm):
    """Negative-aware fine-tuning: towards good samples and away from bad ones, relative to the policy that generated
    them."""

    Arguments = DiffusionNFTArguments
    averages = 2  # the sampling policy is an average too

    def check(self) -> None:
        super().check()
        arguments = self.arguments
        if not 1 <= arguments.levels <= arguments.num_steps:
            raise ValueError(
                f"levels: expected 1 to num_steps = {arguments.num_steps} of the sampler's, got {arguments.levels}"
            )
        self.old = EMAModel(self.policy.parameters, decay=arguments.old_decay)

    def collect(self, conditioning, draws):
        arguments, policy = self.arguments, self.policy
        with averaged_weights(self.old, policy.parameters):
            group = self.sample_groups(conditioning, draws)
            optimality = (self.advantages(group) / (2 * arguments.advantage_clip) + 0.5).clamp(0, 1)
            shape = len(optimality), arguments.num_steps
            order = torch.rand(shape, generator=draws.generator, dtype=torch.float32, device="cpu").argsort(dim=1)[
                :, : arguments.levels
            ]
            items = {
                "prompt": group.prompt.repeat_interleave(arguments.levels),
                "latents": group.states[-1].repeat_interleave(arguments.levels, dim=0),
                "optimality": optimality.repeat_interleave(arguments.levels),
                "sigma": policy.sigmas(arguments.num_steps).cpu()[order.flatten()].to(policy.device),
                "noise_seed": torch.randint(2**31, (order.numel(),), generator=draws.generator, device="cpu").to(
                    policy.device
                ),
            }
            experience = Experience(conditioning, items, group.metrics)
            experience = experience.select(items["optimality"].isfinite())
            return Experience(
                conditioning, {**experience.items, "old_velocity": self._old_velocity(experience)}, group.metrics
            )

    @torch.no_grad()
    def _old_velocity(self, experience: Experience) -> torch.Tensor:
        parts = []
        for rows in torch.arange(len(experience)).split(self.batch_size):
            batch = experience.select(rows)
            parts.append(self.policy.velocity(self._states(batch), batch["sigma"], batch.item_conditioning))
        return torch.cat(parts) if parts else experience["latents"]

    def loss(self, batch, seed):
        arguments, states = self.arguments, self._states(batch)
        velocity = self.policy.velocity(states, batch["sigma"], batch.item_conditioning)
        loss = arguments.advantage_clip * nft_loss(
            velocity,
            batch["old_velocity"],
            states,
            batch["latents"],
            batch["sigma"],
            batch["optimality"],
            arguments.beta,
            self.policy.path,
        )
        metrics = {}
        if arguments.kl_weight:
            with torch.no_grad(), self.policy.reference():
                reference = self.policy.velocity(states, batch["sigma"], batch.item_conditioning)
            metrics["kl"] = self.policy.generator.error(velocity, reference, batch["sigma"])
            loss = loss + arguments.kl_weight * metrics["kl"]
        return loss, metrics

    def _states(self, batch: Experience) -> torch.Tensor:
        """The noisy latents at which a batch is trained."""
        latents, noise = batch["latents"], seeded_noise(batch["noise_seed"], batch["latents"])
        return self.policy.path.add_noise(latents, noise, batch["sigma"])

    def after_update(self) -> None:
        self.old.step(self.policy.parameters)

    def state_dict(self):
        return self.old.state_dict()

    def load_state_dict(self, state):
        self.old.load_state_dict(state)
