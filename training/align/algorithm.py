"""What the alignment algorithms have in common: they collect samples without gradients, then take a loss of them."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch

from training.align.policy import Conditioning, Policy
from training.align.rewards import Gate, Judgement, Reward


@dataclass(frozen=True)
class Experience:
    """What a policy is updated on.

    Attributes:
        conditioning: of P prompts.
        items: tensors by name, of N items each along the first axis; "prompt" [N] is an item's row of `conditioning`.
        metrics: what is worth logging of the collection.
    """

    conditioning: Conditioning
    items: dict[str, torch.Tensor]
    metrics: dict[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.items["prompt"])

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.items[name]

    def select(self, rows: torch.Tensor) -> "Experience":
        """Some items: a mask [N] or indices."""
        return Experience(self.conditioning, {name: values[rows] for name, values in self.items.items()}, self.metrics)

    @property
    def asked(self) -> Conditioning:
        """The conditioning of the N items."""
        return self.conditioning.select(self["prompt"])


class Evaluations(NamedTuple):
    """What one prompt of an update takes, on average.

    Attributes:
        sampling: evaluations of the transformer without gradient.
        update: those with it.
        judged: samples that the reward judges.
        noisy: whether it judges noisy states, at their one level.
        kept: evaluations with gradient that the loss of one item keeps activations of.
    """

    sampling: float
    update: float
    judged: float
    noisy: bool = False
    kept: int = 1


class AlgorithmArguments(ABC):
    """Settings of an algorithm, and what follows from them."""

    @abstractmethod
    def evaluations(self) -> Evaluations:
        """What one prompt takes."""

    @property
    def needs_reference_samples(self) -> bool:
        """Whether the algorithm needs `reference_samples`."""
        return False


class Draws(NamedTuple):
    """Everything random in one update, a function of the run's seed, the update and the process alone.

    Attributes:
        generator: a CPU generator.
        seed: of noise that is drawn by seed.
    """

    generator: torch.Generator
    seed: int


class Samples(NamedTuple):
    """Clean latents [B, C, H, W] with their conditioning."""

    latents: torch.Tensor
    conditioning: Conditioning


class Algorithm(ABC):
    """One way to update a policy by a reward.

    Args:
        policy: what is updated.
        reward: what for.
        arguments: an `Arguments` of the class.
        gate: weights of samples; None weighs all the same.
        reference_samples: of the generator as it began, for an algorithm that holds on to them.
        batch_size: samples that go through the networks at a time.
        gather: joins a tensor over all processes along its first axis.
    """

    Arguments: ClassVar[type[AlgorithmArguments]]
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
            raise ValueError(f"rewards: {type(self).__name__} needs differentiable ones, got one that is not")
        self.check()

    @abstractmethod
    def check(self) -> None:
        """Raise a ValueError that names an argument of a wrong value."""

    @property
    def optimizer_steps(self) -> int:
        """Into how many optimizer steps the items of one collection are divided."""
        return 1

    @abstractmethod
    def collect(self, conditioning: Conditioning, draws: Draws) -> Experience:
        """Sample under P prompts, without gradients. Samples whose reward is not finite become no items; the metric
        "nonfinite" counts them."""

    @abstractmethod
    def loss(self, batch: Experience, seed: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss [N] of N items, and what is worth logging of each, [N] by name."""

    def after_update(self) -> None:  # noqa: B027
        """Whatever follows the last optimizer step of an update."""

    def state_dict(self) -> dict:
        """State beyond the policy's, for a checkpoint."""
        return {}

    def load_state_dict(self, state: dict) -> None:  # noqa: B027
        """Take up `state_dict`."""

    def gate_weights(self, latents: torch.Tensor, conditioning: Conditioning, seed: int) -> torch.Tensor:
        """What samples with clean latents [B, C, H, W] count for, [B] in [0, 1]."""
        return self.gate(latents, conditioning, seed) if self.gate else latents.new_ones(len(latents))


def guided(guidance_scale: float) -> int:
    """Evaluations of the transformer for one velocity."""
    return 1 if guidance_scale == 1 else 2


class Group(NamedTuple):
    """Samples under P prompts, G of each in succession, and their rewards; B = P G.

    Attributes:
        states: [T + 1, B, C, H, W].
        log_probabilities: [T, B].
        prompt: [B], rows of the prompts.
        judgement: of the last states.
        weights: [B], the gate's.
        metrics: of the rewards.
    """

    states: torch.Tensor
    log_probabilities: torch.Tensor
    prompt: torch.Tensor
    judgement: Judgement
    weights: torch.Tensor
    metrics: dict[str, float]


class GroupAlgorithm(Algorithm):
    """An algorithm that compares several samples of one prompt. Its arguments have `num_steps`, `guidance_scale`,
    `group_size` and `optimizer_steps`."""

    @property
    def optimizer_steps(self) -> int:
        return self.arguments.optimizer_steps

    def check(self) -> None:
        if self.arguments.group_size < 2:
            raise ValueError(f"group_size: expected at least 2 samples to compare, got {self.arguments.group_size}")

    def sample_groups(self, conditioning: Conditioning, draws: Draws, **dynamics) -> Group:
        """Rollouts and rewards of G samples a prompt; `dynamics` goes to `Policy.sample`."""
        arguments, policy = self.arguments, self.policy
        prompt = torch.arange(len(conditioning), device=policy.device).repeat_interleave(arguments.group_size)
        asked = conditioning.select(prompt)
        path = policy.sample(
            asked,
            policy.noise(len(prompt), draws.generator),
            policy.sigmas(arguments.num_steps),
            batch_size=self.batch_size,
            guidance_scale=arguments.guidance_scale,
            generator=draws.generator,
            **dynamics,
        )
        judgement, weights = self._judge(path.states[-1], asked, draws.seed)
        finite = judgement.scores.isfinite()
        metrics = {
            "reward": judgement.scores[finite].mean().item(),
            "kept": weights.mean().item(),
            "nonfinite": float((~finite).sum()),
        }
        return Group(*path, prompt, judgement, weights, metrics)

    @torch.no_grad()
    def _judge(self, latents, conditioning, seed) -> tuple[Judgement, torch.Tensor]:
        judged, weights = [], []
        for rows in torch.arange(len(latents), device=latents.device).split(self.batch_size):
            asked = conditioning.select(rows)
            judged.append(self.reward(latents[rows], asked, seed=seed))
            weights.append(self.gate_weights(latents[rows], asked, seed))
        return Judgement(*(torch.cat(values) for values in zip(*judged, strict=True))), torch.cat(weights)

    def advantages(self, group: Group) -> torch.Tensor:
        """Advantages [B], weighed by the gate; NaN where the reward is not finite."""
        scores = group.judgement.scores
        everywhere = self.gather(scores)
        advantages = group_advantages(scores, group.prompt, everywhere[everywhere.isfinite()].std())
        limit = self.arguments.advantage_clip
        return group.weights * advantages.clamp(-limit, limit)


def group_advantages(scores: torch.Tensor, group: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """(r - mean of its group) / (std + 1e-4), [B]; NaN scores have no part in the means and no advantage.

    Args:
        scores: rewards [B].
        group: [B], the number of each sample's group.
        std: standard deviation of the rewards of the whole batch.
    """
    finite = scores.isfinite()
    groups = int(group.max()) + 1
    sums = scores.new_zeros(groups).index_add(0, group[finite], scores[finite])
    counts = torch.bincount(group[finite], minlength=groups)
    return (scores - (sums / counts)[group]) / (std + 1e-4)
