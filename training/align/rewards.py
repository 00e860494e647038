"""What a policy is optimised for: rewards on latents, clean or noisy, with what they know of their own uncertainty."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Literal, NamedTuple

import torch
from torch import nn

from modeling_dina import DinaRewardModel
from modeling_dina.thurstone_dina import spread_over_draws
from training.align.policy import Conditioning


class Judgement(NamedTuple):
    """Scores of B samples and their uncertainty, each [B].

    Attributes:
        scores: rewards; NaN where a sample has none.
        spread: standard deviation over noise draws: what the reward disagrees with itself about. NaN for one draw.
        variance: of the likelihood that the reward was trained with, in squared units of the scores.
    """

    scores: torch.Tensor
    spread: torch.Tensor
    variance: torch.Tensor


class Reward(ABC):
    """A reward on latents.

    Attributes:
        reads_noise: whether it can judge a noisy state.
        differentiable: whether gradients flow from its scores to the latents.
    """

    reads_noise: bool = False
    differentiable: bool = True

    def __call__(
        self, latents: torch.Tensor, conditioning: Conditioning, sigma: torch.Tensor | None = None, seed: int = 0
    ) -> Judgement:
        """
        Judge samples. One whose latents are not finite gets the score NaN.

        Args:
            latents: [B, C, H, W], clean, or noisy if `sigma` is given.
            conditioning: prompts and embeddings of the B samples.
            sigma: [B], noise levels.
            seed: of whatever noise the reward itself adds.
        """
        if sigma is not None and not self.reads_noise:
            raise ValueError(f"sigma: {type(self).__name__} judges clean latents only, got noise levels")
        finite = latents.detach().isfinite().flatten(1).all(dim=1)
        if finite.all():
            return self.judge(latents, conditioning, sigma, seed)
        if not finite.any():
            return Judgement(*latents.new_full((3, len(latents)), torch.nan).unbind())
        level = None if sigma is None else sigma[finite]
        judged = self.judge(latents[finite], conditioning.select(finite), level, seed)
        return Judgement(
            *(values.new_full((len(latents),), torch.nan).masked_scatter(finite, values) for values in judged)
        )

    @abstractmethod
    def judge(
        self, latents: torch.Tensor, conditioning: Conditioning, sigma: torch.Tensor | None, seed: int
    ) -> Judgement:
        """As `__call__`, of finite latents."""


class DinaReward(Reward):
    """A DiNa latent reward model, frozen. It is a model of its own: a policy's weights and adapters are not its.

    Args:
        model: put into evaluation mode, its parameters frozen.
        sigmas: noise levels at which clean latents are judged; None takes the model's defaults.
        num_draws: noise draws at each level; None takes the model's default.
    """

    reads_noise = True

    def __init__(
        self, model: DinaRewardModel, sigmas: Sequence[float] | None = None, num_draws: int | None = None
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.sigmas, self.num_draws = sigmas, num_draws

    def judge(self, latents, conditioning, sigma, seed):
        embeds = conditioning.prompt_embeds, conditioning.pooled_prompt_embeds
        if sigma is not None:
            output = self.model(latents, sigma, *embeds)
            return Judgement(output.scores, torch.full_like(output.scores, torch.nan), output.variance)
        output = self.model.reward(latents, *embeds, sigmas=self.sigmas, num_draws=self.num_draws, seed=seed)
        variance = output.variance.mean().expand_as(output.scores)
        return Judgement(output.scores, spread_over_draws(output.samples), variance)


class PixelReward(Reward):
    """A reward on pictures, behind the decoder.

    Args:
        decode: latents [B, C, H, W] to pictures [B, 3, height, width] in [-1, 1], differentiable.
        network: (pictures, prompt_embeds, pooled_prompt_embeds) to scores [B].
        variance: of the likelihood that the network was trained with.
    """

    def __init__(
        self, decode: Callable[[torch.Tensor], torch.Tensor], network: nn.Module, variance: float = 0.05
    ) -> None:
        self.decode, self.network, self.variance = decode, network.eval().requires_grad_(False), variance

    def judge(self, latents, conditioning, sigma, seed):
        scores = self.network(self.decode(latents), conditioning.prompt_embeds, conditioning.pooled_prompt_embeds)
        return Judgement(scores, torch.full_like(scores, torch.nan), torch.full_like(scores, self.variance))


class WeightedReward(Reward):
    """A weighted sum of rewards.

    Args:
        rewards: at least one.
        weights: as many.
    """

    def __init__(self, rewards: Sequence[Reward], weights: Sequence[float]) -> None:
        if not rewards or len(rewards) != len(weights):
            raise ValueError(f"weights: expected one for each of {len(rewards)} rewards, got {list(weights)}")
        self.rewards, self.weights = list(rewards), list(weights)
        self.reads_noise = all(reward.reads_noise for reward in rewards)
        self.differentiable = all(reward.differentiable for reward in rewards)

    def judge(self, latents, conditioning, sigma, seed):
        judged = [reward(latents, conditioning, sigma, seed) for reward in self.rewards]
        weighted = list(zip(self.weights, judged, strict=True))
        return Judgement(
            scores=reduce(torch.add, [weight * each.scores for weight, each in weighted]),
            spread=reduce(torch.add, [(weight * each.spread).square() for weight, each in weighted]).sqrt(),
            variance=reduce(torch.add, [weight**2 * each.variance for weight, each in weighted]),
        )


@dataclass(frozen=True)
class Gate:
    """Drops samples on which a reward's noise draws disagree, or lets them count for less: where a policy has found
    what one reading of the reward overrates, readings under other noise tend to say otherwise.

    Attributes:
        reward: an ensemble of at least two draws.
        mode: "drop" samples whose spread is above `scale`, or "weigh" every sample by 1 / (1 + (spread / scale)^2).
        scale: a spread, in units of the scores.
    """

    reward: DinaReward
    mode: Literal["drop", "weigh"]
    scale: float

    @classmethod
    def calibrated(
        cls,
        reward: DinaReward,
        mode: Literal["drop", "weigh"],
        latents: torch.Tensor,
        conditioning: Conditioning,
        quantile: float,
    ) -> "Gate":
        """A gate whose scale is a quantile of the spreads over samples [B, C, H, W] of the generator as it began."""
        spread = reward(latents, conditioning).spread
        if spread.isnan().any():
            raise ValueError(
                "gate: expected a reward with at least two noise draws, got one draw, which has no spread"
            )
        return cls(reward, mode, spread.quantile(quantile).item())

    @torch.no_grad()
    def __call__(self, latents: torch.Tensor, conditioning: Conditioning, seed: int = 0) -> torch.Tensor:
        """Weights [B] in [0, 1] of samples with these clean latents [B, C, H, W]; 0 where there is no score."""
        spread = self.reward(latents, conditioning, seed=seed).spread / self.scale
        weights = 1 / (1 + spread.square()) if self.mode == "weigh" else (spread <= 1).float()
        return weights.nan_to_num(0)
