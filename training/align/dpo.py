"""Diffusion-DPO (arXiv 2311.12908) on pairs of the policy's own samples, labelled by the reward."""

from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid
from transformers.hf_argparser import HfArg

from modeling_dina.thurstone_dina import win_probability
from training.align.algorithm import (
    AlgorithmArguments,
    Evaluations,
    Experience,
    GroupAlgorithm,
    calls_per_step,
    seeded_noise,
)


@dataclass
class DiffusionDPOArguments(AlgorithmArguments):
    """Arguments of Diffusion-DPO."""

    num_steps: int = HfArg(default=40, help="Number of sampler steps in training.")
    guidance_scale: float = HfArg(default=4.5, help="Guidance scale of rollouts; the loss uses no guidance.")
    group_size: int = HfArg(
        default=4, help="Number of samples per prompt, of which the best and the worst form a pair."
    )
    levels: int = HfArg(default=1, help="Number of noise levels at which each pair is trained.")
    beta: float = HfArg(
        default=5000.0, help="Regularisation strength: larger values keep the policy closer to the initial generator."
    )
    optimizer_steps: int = HfArg(
        default=1, help="Number of optimizer steps into which the samples of one update are divided."
    )

    def evaluations(self) -> Evaluations:
        """The mean cost per prompt: rollouts of the group, then both samples of a pair at each level."""
        pair = 2 * self.levels
        sampling = self.group_size * self.num_steps * calls_per_step(self.guidance_scale) + pair
        return Evaluations(sampling, pair, self.group_size, stored=2)


def dpo_loss(
    error_chosen: torch.Tensor,
    error_rejected: torch.Tensor,
    reference_chosen: torch.Tensor,
    reference_rejected: torch.Tensor,
    beta: float,
) -> torch.Tensor:
    """-log sigmoid(-beta/2 [(l_w - l_l) - (l_w_ref - l_l_ref)]), [B].

    Args:
        error_chosen, error_rejected: the policy's denoising errors l_w and l_l under the same noise, [B].
        reference_chosen, reference_rejected: the errors of the initial generator.
        beta: weight of the reference.
    """
    margin = (error_chosen - error_rejected) - (reference_chosen - reference_rejected)
    return -logsigmoid(-beta / 2 * margin)


class DiffusionDPO(GroupAlgorithm):
    """Direct preference optimisation: the policy learns to fit the better sample of a pair rather than the worse.

    Pairs are weighted by the probability that the better sample wins.
    """

    Arguments = DiffusionDPOArguments

    def check(self) -> None:
        super().check()
        if self.arguments.levels < 1:
            raise ValueError(f"levels: expected at least 1, got {self.arguments.levels}")

    def collect(self, conditioning, draws):
        arguments = self.arguments
        group = self.sample_groups(conditioning, draws)
        best, worst = _extremes(group.reward.scores, arguments.group_size)
        scores, variance = group.reward.scores, group.reward.variance
        probability = win_probability(scores[best], scores[worst], variance[best], variance[worst])
        pairs = {
            "prompt": group.prompt[best],
            "chosen": group.states[-1][best],
            "rejected": group.states[-1][worst],
            "weight": probability * group.weights[best] * group.weights[worst],
        }
        items = {name: values.repeat_interleave(arguments.levels, dim=0) for name, values in pairs.items()}
        count = len(items["prompt"])
        items["sigma"] = self.policy.generator.training_levels(count, draws.generator).to(scores.device)
        items["noise_seed"] = torch.randint(2**31, (count,), generator=draws.generator, device="cpu").to(scores.device)
        metrics = group.metrics | {"win_probability": probability.nanmean().item()}
        return Experience(conditioning, items, metrics).select(items["weight"].isfinite())

    def loss(self, batch, seed):
        errors = self._errors(batch)
        with torch.no_grad(), self.policy.reference():
            reference = self._errors(batch)
        loss = dpo_loss(*errors, *reference, self.arguments.beta)
        right = (errors[0] - errors[1] < reference[0] - reference[1]).float()
        return batch["weight"] * loss, {"implicit_accuracy": right}

    def _errors(self, batch: Experience) -> tuple[torch.Tensor, torch.Tensor]:
        """Denoising errors [B] of the chosen and of the rejected samples, under the same noise."""
        noise, policy = seeded_noise(batch["noise_seed"], batch["chosen"]), self.policy
        sigma, conditioning = batch["sigma"], batch.item_conditioning
        errors = []
        for latents in (batch["chosen"], batch["rejected"]):
            velocity = policy.velocity(policy.path.add_noise(latents, noise, sigma), sigma, conditioning)
            errors.append(policy.generator.error(velocity, policy.path.velocity(latents, noise, sigma), sigma))
        return errors[0], errors[1]


def _extremes(scores: torch.Tensor, group_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of the best and of the worst finite score of each group; they are equal if fewer than two are finite."""
    grouped = scores.unflatten(0, (-1, group_size))
    first = torch.arange(len(grouped), device=scores.device) * group_size
    missing = ~grouped.isfinite()
    return (
        first + grouped.masked_fill(missing, -torch.inf).argmax(dim=1),
        first + grouped.masked_fill(missing, torch.inf).argmin(dim=1),
    )
