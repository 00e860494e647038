"""Rollouts of a policy: deterministic steps on its noise path, and two stochastic steps of a rectified flow,
x_s = (1 - s) x0 + s eps with velocity v ~ eps - x0, with log-probabilities for policy gradients."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from modeling_dina.noising_dina import NoisePath

# Maps noisy latents [B, C, H, W] and sigma [B] to velocities [B, C, H, W]; includes the conditioning.
Velocity = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def per_sample(values: torch.Tensor) -> torch.Tensor:
    """Reshape [B] to [B, 1, 1, 1], for products with latents."""
    return values.reshape(-1, 1, 1, 1)


class Transition(NamedTuple):
    """Normal distribution of the next state after a stochastic step.

    Attributes:
        mean: [B, C, H, W].
        std: [B, 1, 1, 1].
        scale: [B, 1, 1, 1], noise scale s that is the unit for the distance of two means.
    """

    mean: torch.Tensor
    std: torch.Tensor
    scale: torch.Tensor


@dataclass(frozen=True)
class Dynamics(ABC):
    """A stochastic step whose states contain as much signal and noise as those of the ODE.

    Attributes:
        eta: noise scale; 0 gives the ODE.
    """

    eta: float

    @abstractmethod
    def transition(
        self, latents: torch.Tensor, velocity: torch.Tensor, sigma: torch.Tensor, sigma_next: torch.Tensor
    ) -> Transition:
        """Distribution of the next state, in float32. Latents and velocity [B, C, H, W], sigmas [B]."""

    @abstractmethod
    def log_probability(self, outcome: torch.Tensor, transition: Transition) -> torch.Tensor:
        """Log-probability [B] of a next state [B, C, H, W], averaged over C, H and W to be independent of the size."""


class SDE(Dynamics):
    """Flow-GRPO's reverse-time SDE (arXiv 2505.05470, equation 9), with D = s' - s < 0:

    scale = eta sqrt(s / (1 - s)), with 1 - s' in place of 1 - s at s = 1;
    mean = x (1 + scale^2 D / (2 s)) + v (1 + scale^2 (1 - s) / (2 s)) D, std = scale sqrt(-D).
    """

    def transition(self, latents, velocity, sigma, sigma_next):
        latents, velocity = latents.float(), velocity.float()
        sigma, sigma_next = per_sample(sigma.float()), per_sample(sigma_next.float())
        step = sigma_next - sigma
        scale = self.eta * (sigma / (1 - torch.where(sigma == 1, sigma_next, sigma))).sqrt()
        drift = scale.square() / (2 * sigma)
        mean = latents * (1 + drift * step) + velocity * (1 + drift * (1 - sigma)) * step
        return Transition(mean, scale * (-step).sqrt(), scale)

    def log_probability(self, outcome, transition):
        error = (outcome.detach().float() - transition.mean) / transition.std
        log_density = -error.square() / 2 - transition.std.log() - math.log(2 * math.pi) / 2
        return log_density.mean(dim=(1, 2, 3))


class CPS(Dynamics):
    """The coefficients-preserving step (arXiv 2509.05952), which replaces a part of the state's noise.

    std = scale = s' sin(eta pi / 2), mean = (1 - s') x0hat + sqrt(s'^2 - std^2) (x + (1 - s) v).

    If x0hat is exact, the state stays on the path for steps of any size. While x0hat is uncertain, each replacement
    reduces the diversity of the samples.
    """

    def transition(self, latents, velocity, sigma, sigma_next):
        latents, velocity = latents.float(), velocity.float()
        sigma, sigma_next = per_sample(sigma.float()), per_sample(sigma_next.float())
        std = sigma_next * math.sin(self.eta * math.pi / 2)
        clean, noise = latents - sigma * velocity, latents + (1 - sigma) * velocity
        mean = (1 - sigma_next) * clean + sigma_next * math.cos(self.eta * math.pi / 2) * noise
        return Transition(mean, std, std)

    def log_probability(self, outcome, transition):
        """-mean (x' - mean)^2: the normal log-density without its constant and its scale factor, which diverges
        towards the end of the path, where the noise vanishes."""
        return -(outcome.detach().float() - transition.mean).square().mean(dim=(1, 2, 3))


DYNAMICS: dict[str, type[Dynamics]] = {"sde": SDE, "cps": CPS}


class Rollout(NamedTuple):
    """States along the paths of B samples.

    Attributes:
        states: [T + 1, B, C, H, W], from the initial noise to the last state.
        log_probabilities: [T, B]; 0 for deterministic steps.
    """

    states: torch.Tensor
    log_probabilities: torch.Tensor


@torch.no_grad()
def rollout(
    velocity: Velocity,
    noise: torch.Tensor,
    sigmas: torch.Tensor,
    path: NoisePath,
    dynamics: Dynamics | None = None,
    stochastic: Sequence[int] = (),
    generator: torch.Generator | None = None,
) -> Rollout:
    """Integrate the velocity over descending noise levels.

    Args:
        velocity: velocity of the policy with its conditioning.
        noise: [B, C, H, W], the state at `sigmas[0]`.
        sigmas: T + 1 noise levels in descending order.
        path: noise path of the policy.
        dynamics: dynamics of the stochastic steps; all others are deterministic.
        stochastic: indices of the stochastic steps, counted from 0.
        generator: CPU generator of the noise, so that rollouts are equal on every device.
    """
    states = [noise]
    log_probabilities = noise.new_zeros(len(sigmas) - 1, len(noise), dtype=torch.float32)
    for step in range(len(sigmas) - 1):
        sigma, sigma_next = (sigmas[index].expand(len(noise)).to(noise.device) for index in (step, step + 1))
        direction = velocity(states[-1], sigma)
        if dynamics is None or step not in stochastic:
            states.append(path.step(states[-1], direction, sigma, sigma_next))
            continue
        transition = dynamics.transition(states[-1], direction, sigma, sigma_next)
        draw = torch.randn(noise.shape, generator=generator, dtype=torch.float32, device="cpu").to(noise.device)
        states.append((transition.mean + transition.std * draw).to(noise.dtype))
        log_probabilities[step] = dynamics.log_probability(states[-1], transition)
    return Rollout(torch.stack(states), log_probabilities)
