"""Base classes of the alignment algorithms, which collect samples without gradients and then compute a loss on
them."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch

from modeling_dina.noising_dina import shared_noise
from training.align.policy import Conditioning, Policy
from training.align.rewards import Gate, Reward, RewardOutput


@dataclass(frozen=True)
class Experience:
    """The data of one update of a policy.

    Attributes:
        conditioning: conditioning of P prompts.
        items: tensors by name, with N items along the first axis; "prompt" [N] is the row of an item in
            `conditioning`.
        metrics: metrics of the collected samples, to log.
    """

    conditioning: Conditioning
    items: dict[str, torch.Tensor]
    metrics: dict[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.items["prompt"])

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.items[name]

    def select(self, rows: torch.Tensor) -> "Experience":
        """Select items by a mask [N] or by indices."""
        return Experience(self.conditioning, {name: values[rows] for name, values in self.items.items()}, self.metrics)

    @property
    def item_conditioning(self) -> Conditioning:
        """The conditioning of the N items."""
        return self.conditioning.select(self["prompt"])


class Evaluations(NamedTuple):
    """The mean cost of an update per prompt, as numbers of evaluations.

    Attributes:
        sampling: evaluations of the transformer without gradient.
        update: evaluations of the transformer with gradient.
        scored: samples that the reward scores.
        noisy: whether the reward scores noisy states, at one level each.
        stored: evaluations with gradient whose activations the loss of one item stores.
    """

    sampling: float
    update: float
    scored: float
    noisy: bool = False
    stored: int = 1


class AlgorithmArguments(ABC):
    """Base class of the arguments of an algorithm."""

    @abstractmethod
    def evaluations(self) -> Evaluations:
        """The mean cost of an update per prompt."""

    @property
    def needs_reference_samples(self) -> bool:
        """Whether the algorithm needs `reference_samples`."""
        return False


class Draws(NamedTuple):
    """The random numbers of one update, which depend only on the run's seed, the update and the process.

    Attributes:
        generator: CPU generator.
        seed: seed for noise that is drawn by seed.
    """

    generator: torch.Generator
    seed: int


class Samples(NamedTuple):
    """Clean latents [B, C, H, W] with their conditioning."""

    latents: torch.Tensor
    conditioning: Conditioning


class Algorithm(ABC):
    """An algorithm that updates a policy to increase a reward.

    Args:
        policy: policy to update.
        reward: reward to increase.
        arguments: an instance of the class attribute `Arguments`.
        gate: computes weights of samples; None gives all samples the same weight.
        reference_samples: samples of the initial generator, for algorithms that need them.
        batch_size: number of samples per forward pass without gradients.
        gather: concatenates a tensor over all processes along its first axis.
    """

    Arguments: ClassVar[type[AlgorithmArguments]]
    needs_flow: ClassVar[bool] = False  # whether it is defined only for generators on a rectified flow
    needs_gradient: ClassVar[bool] = False
    averages: ClassVar[int] = 1  # averages of the policy's weights, the trainer's included

    def __init__(
        self,
        policy: Policy,
        reward: Reward,
        arguments: Any,
        *,
        gate: Gate | None = None,
        reference_samples: Samples | None = None,
        batch_size: int = 64,
        gather: Callable[[torch.Tensor], torch.Tensor] = lambda values: values,
    ) -> None:
        self.policy, self.reward, self.arguments, self.gate = policy, reward, arguments, gate
        self.reference_samples, self.batch_size, self.gather = reference_samples, batch_size, gather
        if self.needs_gradient and not reward.differentiable:
            raise ValueError(f"rewards: expected differentiable ones for {type(self).__name__}, got one that is not")
        self.check()

    @abstractmethod
    def check(self) -> None:
        """Raise a ValueError that names an argument with a wrong value."""

    @property
    def optimizer_steps(self) -> int:
        """Number of optimizer steps into which the items of one update are divided."""
        return 1

    @abstractmethod
    def collect(self, conditioning: Conditioning, draws: Draws) -> Experience:
        """Sample for P prompts, without gradients. Samples with NaN or infinite reward are dropped, and counted in the
        metric "nonfinite"."""

    @abstractmethod
    def loss(self, batch: Experience, seed: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Compute the loss [N] of N items, and metrics to log, [N] by name."""

    def after_update(self) -> None:  # noqa: B027
        """Called after the last optimizer step of an update."""

    def state_dict(self) -> dict:
        """State for a checkpoint, in addition to that of the policy."""
        return {}

    def load_state_dict(self, state: dict) -> None:  # noqa: B027
        """Load the result of `state_dict`."""

    def gate_weights(self, latents: torch.Tensor, conditioning: Conditioning, seed: int) -> torch.Tensor:
        """Weights [B] in [0, 1] of samples with clean latents [B, C, H, W]."""
        return self.gate(latents, conditioning, seed) if self.gate else latents.new_ones(len(latents))


def calls_per_step(guidance_scale: float) -> int:
    """Number of evaluations of the transformer per sampler step: 2 with guidance, 1 without."""
    return 1 if guidance_scale == 1 else 2


class Group(NamedTuple):
    """Samples and rewards of P prompts, with G consecutive samples each; B = P G.

    Attributes:
        states: states of the rollouts, [T + 1, B, C, H, W].
        log_probabilities: log-probabilities of the steps, [T, B].
        prompt: [B], index of each sample's prompt.
        reward: rewards of the last states.
        weights: [B], weights from the gate.
        metrics: metrics of the rewards, to log.
    """

    states: torch.Tensor
    log_probabilities: torch.Tensor
    prompt: torch.Tensor
    reward: RewardOutput
    weights: torch.Tensor
    metrics: dict[str, float]


class GroupAlgorithm(Algorithm):
    """An algorithm that compares several samples of a prompt. Its arguments have `num_steps`, `guidance_scale`,
    `group_size` and `optimizer_steps`."""

    @property
    def optimizer_steps(self) -> int:
        return self.arguments.optimizer_steps

    def check(self) -> None:
        if self.arguments.group_size < 2:
            raise ValueError(f"group_size: expected at least 2 samples to compare, got {self.arguments.group_size}")

    def sample_groups(self, conditioning: Conditioning, draws: Draws, **dynamics) -> Group:
        """Sample and score G samples per prompt; `dynamics` is passed to `Policy.sample`."""
        arguments, policy = self.arguments, self.policy
        prompt = torch.arange(len(conditioning), device=policy.device).repeat_interleave(arguments.group_size)
        selected = conditioning.select(prompt)
        path = policy.sample(
            selected,
            policy.noise(len(prompt), draws.generator),
            policy.sigmas(arguments.num_steps),
            batch_size=self.batch_size,
            guidance_scale=arguments.guidance_scale,
            generator=draws.generator,
            **dynamics,
        )
        reward, weights = self._score(path.states[-1], selected, draws.seed)
        finite = reward.scores.isfinite()
        metrics = {
            "reward": reward.scores[finite].mean().item(),
            "kept": weights.mean().item(),
            "nonfinite": float((~finite).sum()),
        }
        return Group(*path, prompt, reward, weights, metrics)

    @torch.no_grad()
    def _score(self, latents, conditioning, seed) -> tuple[RewardOutput, torch.Tensor]:
        outputs, weights = [], []
        for rows in torch.arange(len(latents), device=latents.device).split(self.batch_size):
            selected = conditioning.select(rows)
            outputs.append(self.reward(latents[rows], selected, seed=seed))
            weights.append(self.gate_weights(latents[rows], selected, seed))
        return RewardOutput(*(torch.cat(values) for values in zip(*outputs, strict=True))), torch.cat(weights)

    def advantages(self, group: Group) -> torch.Tensor:
        """Advantages [B], weighted by the gate; NaN if the reward is not finite."""
        scores = group.reward.scores
        everywhere = self.gather(scores)
        advantages = group_advantages(scores, group.prompt, everywhere[everywhere.isfinite()].std())
        limit = self.arguments.advantage_clip
        return group.weights * advantages.clamp(-limit, limit)


def seeded_noise(seeds: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """Noise for latents [B, C, H, W] from one seed per sample, [B]. Storing seeds instead of noise saves memory."""
    return shared_noise(latents.shape[1:], 1, seeds.tolist())[0].to(latents.device)


def group_advantages(scores: torch.Tensor, group: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """(r - mean of its group) / (std + 1e-4), [B]; NaN scores are excluded from the means and have the advantage NaN.

    Args:
        scores: rewards [B].
        group: [B], index of each sample's group.
        std: standard deviation of the rewards of the whole batch.
    """
    finite = scores.isfinite()
    groups = int(group.max()) + 1
    sums = scores.new_zeros(groups).index_add(0, group[finite], scores[finite])
    counts = torch.bincount(group[finite], minlength=groups)
    return (scores - (sums / counts)[group]) / (std + 1e-4)
