"""Rewards for alignment, on clean or noisy latents, with their uncertainty."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Literal, NamedTuple

import torch
from diffusers import StableDiffusion3Pipeline
from torch import nn

from modeling_dina import DinaRewardModel
from modeling_dina.thurstone_dina import spread_over_draws
from training.align.policy import Conditioning
from training.world.annotators import IMPRESSION_NOISE
from training.world.latents import decode
from training.world.scenes import describe
from training.world.utility import true_utility


class RewardOutput(NamedTuple):
    """Scores of B samples and their uncertainty, each [B].

    Attributes:
        scores: rewards; NaN for samples that cannot be scored.
        spread: standard deviation over noise draws; NaN for one draw.
        variance: variance of the likelihood that the reward was trained with, in squared units of the scores.
    """

    scores: torch.Tensor
    spread: torch.Tensor
    variance: torch.Tensor


class Reward(ABC):
    """A reward on latents.

    Attributes:
        accepts_noise: whether the reward can score noisy states.
        differentiable: whether its scores have gradients with respect to the latents.
    """

    accepts_noise: bool = False
    differentiable: bool = True

    def __call__(
        self, latents: torch.Tensor, conditioning: Conditioning, sigma: torch.Tensor | None = None, seed: int = 0
    ) -> RewardOutput:
        """
        Score samples. Samples with non-finite latents get the score NaN.

        Args:
            latents: [B, C, H, W], clean, or noisy if `sigma` is given.
            conditioning: prompts and embeddings of the B samples.
            sigma: [B], noise levels of noisy latents.
            seed: seed of noise that the reward adds itself.
        """
        if sigma is not None and not self.accepts_noise:
            raise ValueError(
                f"sigma: expected None for {type(self).__name__}, which scores clean latents, got noise levels"
            )
        finite = latents.detach().isfinite().flatten(1).all(dim=1)
        if finite.all():
            return self.score(latents, conditioning, sigma, seed)
        if not finite.any():
            return RewardOutput(*latents.new_full((3, len(latents)), torch.nan).unbind())
        level = None if sigma is None else sigma[finite]
        output = self.score(latents[finite], conditioning.select(finite), level, seed)
        return RewardOutput(
            *(values.new_full((len(latents),), torch.nan).masked_scatter(finite, values) for values in output)
        )

    @abstractmethod
    def score(
        self, latents: torch.Tensor, conditioning: Conditioning, sigma: torch.Tensor | None, seed: int
    ) -> RewardOutput:
        """Like `__call__`, for finite latents."""


class DinaReward(Reward):
    """A frozen DiNa latent reward model, which shares no adapters with a policy.

    Args:
        model: reward model; it is set to evaluation mode, and its parameters are frozen.
        sigmas: noise levels at which clean latents are scored; None uses the model's defaults.
        num_draws: number of noise draws at each level; None uses the model's default.
    """

    accepts_noise = True

    def __init__(
        self, model: DinaRewardModel, sigmas: Sequence[float] | None = None, num_draws: int | None = None
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.sigmas, self.num_draws = sigmas, num_draws

    def score(self, latents, conditioning, sigma, seed):
        embeds = conditioning.embeddings
        if sigma is not None:
            output = self.model(latents, sigma, *embeds)
            return RewardOutput(output.scores, torch.full_like(output.scores, torch.nan), output.variance)
        output = self.model.reward(latents, *embeds, sigmas=self.sigmas, num_draws=self.num_draws, seed=seed)
        variance = output.variance.mean().expand_as(output.scores)
        return RewardOutput(output.scores, spread_over_draws(output.samples), variance)


class PixelReward(Reward):
    """A reward on decoded images.

    Args:
        decode: maps latents [B, C, H, W] to images [B, 3, height, width] in [-1, 1], differentiably.
        network: maps (images, prompt_embeds, pooled_prompt_embeds) to scores [B].
        variance: variance of the likelihood that the network was trained with.
    """

    def __init__(
        self, decode: Callable[[torch.Tensor], torch.Tensor], network: nn.Module, variance: float = 0.05
    ) -> None:
        self.decode, self.network, self.variance = decode, network.eval().requires_grad_(False), variance

    def score(self, latents, conditioning, sigma, seed):
        embeddings = conditioning.embeddings
        scores = self.network(self.decode(latents), embeddings.prompt_embeds, embeddings.pooled_prompt_embeds)
        return RewardOutput(scores, torch.full_like(scores, torch.nan), torch.full_like(scores, self.variance))


class UtilityReward(Reward):
    """The true utility of the small world, measured on the decoded picture, without gradient.

    Its variance is that of an annotator's estimate.

    Args:
        pipeline: pipeline whose VAE decodes latents.
    """

    differentiable = False

    def __init__(self, pipeline: StableDiffusion3Pipeline) -> None:
        self.pipeline = pipeline

    def score(self, latents, conditioning, sigma, seed):
        pictures = decode(self.pipeline, latents)
        described = map(describe, conditioning.prompts)
        utilities = [true_utility(text, picture) for text, picture in zip(described, pictures, strict=True)]
        scores = latents.new_tensor(utilities)
        return RewardOutput(scores, torch.zeros_like(scores), torch.full_like(scores, IMPRESSION_NOISE**2))


class WeightedReward(Reward):
    """A weighted sum of rewards.

    Args:
        rewards: at least one reward.
        weights: one weight per reward.
    """

    def __init__(self, rewards: Sequence[Reward], weights: Sequence[float]) -> None:
        if not rewards or len(rewards) != len(weights):
            raise ValueError(f"weights: expected one for each of {len(rewards)} rewards, got {list(weights)}")
        self.rewards, self.weights = list(rewards), list(weights)
        self.accepts_noise = all(reward.accepts_noise for reward in rewards)
        self.differentiable = all(reward.differentiable for reward in rewards)

    def score(self, latents, conditioning, sigma, seed):
        outputs = [reward(latents, conditioning, sigma, seed) for reward in self.rewards]
        weighted = list(zip(self.weights, outputs, strict=True))
        return RewardOutput(
            scores=reduce(torch.add, [weight * each.scores for weight, each in weighted]),
            spread=reduce(torch.add, [(weight * each.spread).square() for weight, each in weighted]).sqrt(),
            variance=reduce(torch.add, [weight**2 * each.variance for weight, each in weighted]),
        )


@dataclass(frozen=True)
class Gate:
    """Drops samples whose rewards vary between noise draws, or gives them less weight. If a policy exploits an error
    of the reward under one noise draw, rewards under other draws tend to differ.

    Attributes:
        reward: a reward with at least two noise draws.
        mode: "drop" samples whose spread is above `scale`, or "weigh" every sample by 1 / (1 + (spread / scale)^2).
        scale: scale of the spread, in units of the scores.
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
        """Create a gate whose scale is a quantile of the spreads of samples [B, C, H, W] of the initial generator."""
        spread = reward(latents, conditioning).spread
        if spread.isnan().any():
            raise ValueError(
                "gate: expected a reward with at least two noise draws, got one draw, which has no spread"
            )
        return cls(reward, mode, spread.quantile(quantile).item())

    @torch.no_grad()
    def __call__(self, latents: torch.Tensor, conditioning: Conditioning, seed: int = 0) -> torch.Tensor:
        """Weights [B] in [0, 1] of samples with clean latents [B, C, H, W]; 0 for samples without a score."""
        spread = self.reward(latents, conditioning, seed=seed).spread / self.scale
        weights = 1 / (1 + spread.square()) if self.mode == "weigh" else (spread <= 1).float()
        return weights.nan_to_num(0)
