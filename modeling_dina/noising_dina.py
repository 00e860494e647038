"""Noise paths: how noise is added to clean latents, which timestep the backbone receives, and how noise is drawn.
`sigma` is always a noise level in [0, 1]: 0 is the clean latent, 1 is pure noise. It is the factor of the noise, so
that the same number means more noise on a rectified flow than on a variance-preserving path. `NoisePath.from_flow`
translates levels of a rectified flow."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler


class NoisePath(ABC):
    """A path from data to noise, with the discrete noise levels of its scheduler.

    Attributes:
        sigmas: noise levels, a float32 CPU tensor [T] in the ascending order of timesteps.
    """

    sigmas: torch.Tensor

    @abstractmethod
    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """The state at level `sigma` ([B] or scalar) between `latents` and `noise`, both [B, C, H, W]."""

    @abstractmethod
    def timestep(self, sigma: torch.Tensor) -> torch.Tensor:
        """The backbone's timestep, in [0, 1000], at noise level `sigma` of any shape."""

    @staticmethod
    @abstractmethod
    def velocity(latents: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """The direction of the path from `latents` to `noise`, both [B, C, H, W], at level `sigma` ([B] or scalar)."""

    @staticmethod
    @abstractmethod
    def predict_clean(state: torch.Tensor, velocity: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """The clean latents of the path through `state` in the direction `velocity`, both [B, C, H, W]."""

    @staticmethod
    @abstractmethod
    def step(
        state: torch.Tensor, velocity: torch.Tensor, sigma: torch.Tensor, sigma_next: torch.Tensor
    ) -> torch.Tensor:
        """The state at level `sigma_next` ([B]) of the path through `state` at `sigma` ([B]) in the direction
        `velocity`: one deterministic sampler step."""

    @staticmethod
    @abstractmethod
    def from_flow(level: torch.Tensor) -> torch.Tensor:
        """The sigma of this path, of any shape, at which latents have the same signal-to-noise ratio as at `level` of
        a rectified flow.

        ```python
        >>> model.reward(latents, prompt_embeds, sigmas=model.noise_path.from_flow(torch.tensor([0.2, 0.5, 0.7])))
        ```
        """

    def snap(self, sigma: torch.Tensor) -> torch.Tensor:
        """Round each of `sigma` [K] to the scheduler's nearest noise level; float32 on the CPU.

        A backbone was trained only on its scheduler's levels. Under a shifted schedule, 0.2 becomes the nearest
        existing level (such as 0.1998), at which the variance of the likelihood is computed too.
        """
        requested = sigma.detach().to("cpu", torch.float32)
        return self.sigmas[(self.sigmas - requested.unsqueeze(-1)).abs().argmin(dim=-1)]


def rectified_flow_state(latents: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """The state (1 - sigma) x0 + sigma noise, for latents and noise [B, C, H, W] and `sigma` [B] or scalar."""
    sigma = _per_sample(sigma, latents)
    return (1 - sigma) * latents + sigma * noise


class RectifiedFlow(NoisePath):
    """x_sigma = (1 - sigma) x0 + sigma noise, timestep = 1000 sigma (arXiv 2403.03206, section 3)."""

    def __init__(self, scheduler_config: dict):
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(scheduler_config)
        self.sigmas = scheduler.sigmas.flip(0)
        self.num_timesteps = scheduler.config.num_train_timesteps

    def add_noise(self, latents, noise, sigma):
        return rectified_flow_state(latents, noise, sigma)

    def timestep(self, sigma):
        return self.num_timesteps * sigma

    @staticmethod
    def velocity(latents, noise, sigma):
        """v = noise - x0."""
        return noise - latents

    @staticmethod
    def predict_clean(state, velocity, sigma):
        """x0 = x - sigma v."""
        return state - _per_sample(sigma, state) * velocity

    @staticmethod
    def step(state, velocity, sigma, sigma_next):
        """The Euler step x' = x + (sigma' - sigma) v."""
        return state + _per_sample(sigma_next - sigma, state) * velocity

    @staticmethod
    def from_flow(level):
        return level


class VariancePreserving(NoisePath):
    """x_sigma = sqrt(abar) x0 + sqrt(1 - abar) noise with sigma = sqrt(1 - abar) (arXiv 2006.11239, equation 4)."""

    def __init__(self, scheduler_config: dict):
        scheduler = DDPMScheduler.from_config(scheduler_config)
        self.sigmas = (1 - scheduler.alphas_cumprod).sqrt()

    def add_noise(self, latents, noise, sigma):
        sigma = _per_sample(sigma, latents)
        return (1 - sigma.square()).sqrt() * latents + sigma * noise

    @staticmethod
    def velocity(latents, noise, sigma):
        """v = sqrt(abar) noise - sigma x0 (arXiv 2202.00512, appendix D)."""
        sigma = _per_sample(sigma, latents)
        return (1 - sigma.square()).sqrt() * noise - sigma * latents

    @staticmethod
    def predict_clean(state, velocity, sigma):
        """x0 = sqrt(abar) x - sigma v."""
        sigma = _per_sample(sigma, state)
        return (1 - sigma.square()).sqrt() * state - sigma * velocity

    @staticmethod
    def step(state, velocity, sigma, sigma_next):
        """The DDIM step without noise, x' = sqrt(abar') x0 + sigma' noise (arXiv 2010.02502, equation 12)."""
        clean = VariancePreserving.predict_clean(state, velocity, sigma)
        sigma, sigma_next = _per_sample(sigma, state), _per_sample(sigma_next, state)
        noise = sigma * state + (1 - sigma.square()).sqrt() * velocity
        return (1 - sigma_next.square()).sqrt() * clean + sigma_next * noise

    def timestep(self, sigma):
        """The discrete step whose noise level is nearest to `sigma`."""
        levels = self.sigmas.to(sigma.device)
        return (levels - sigma.unsqueeze(-1)).abs().argmin(dim=-1)

    @staticmethod
    def from_flow(level):
        # Signal to noise is (1 - level) / level on the flow, and sqrt(1 - sigma^2) / sigma here.
        return level / torch.hypot(level, 1 - level)


DEFAULT_LEVELS = (0.2, 0.5, 0.7)  # of a rectified flow (arXiv 2602.11146)
VARIANCE_PRESERVING_LEVELS = tuple(VariancePreserving.from_flow(torch.tensor(DEFAULT_LEVELS, device="cpu")).tolist())


def path_from_scheduler(scheduler_config: dict) -> NoisePath:
    """Create the noise path of a diffusers scheduler configuration: rectified flow for flow-matching schedulers,
    variance preserving for schedulers with a beta schedule.

    Raises:
        ValueError: the configuration is of neither kind.
    """
    name = scheduler_config.get("_class_name", "")
    # The tables of levels need real values even when the model is built on the meta device.
    with torch.device("cpu"):
        if name.startswith("FlowMatch"):
            return RectifiedFlow(scheduler_config)
        if "beta_schedule" in scheduler_config:
            return VariancePreserving(scheduler_config)
    raise ValueError(
        f"scheduler_config: expected a FlowMatch… scheduler or one with a 'beta_schedule', got _class_name={name!r}"
    )


def shared_noise(shape: Sequence[int], num_draws: int, seed: int | Sequence[int] = 0) -> torch.Tensor:
    """Standard normal noise that depends only on its shape, the seed and the index of the draw.

    It comes from a CPU generator seeded by (seed, draw). It is therefore the same on every device, for every batch
    size and order, and for every number of draws.

    Args:
        shape: shape of one latent, (C, H, W).
        num_draws: number N of draws.
        seed: a non-negative integer that all samples of the batch share, or one per sample: a list, array or tensor of
            length B.

    Returns:
        float32 CPU tensor [N, 1, C, H, W], or [N, B, C, H, W] with one seed per sample.
    """
    seeds = check_seeds(seed)
    draws = [torch.stack([_draw(tuple(shape), each, draw) for each in seeds]) for draw in range(num_draws)]
    return torch.stack(draws)


def check_seeds(seed, batch: int | None = None) -> list[int]:
    """
    Convert seeds to a list of Python integers.

    Args:
        seed: a non-negative integer, or a list, array or tensor of them.
        batch: number B of samples; None accepts any number of seeds.

    Returns:
        One seed, or B of them.

    Raises:
        ValueError: `seed` has a wrong type, value or length.
    """
    values = np.asarray(seed.cpu() if isinstance(seed, torch.Tensor) else seed)
    expected = "a whole number of at least 0" + (f", or {batch} of them" if batch is not None else "")
    # Python integers beyond 64 bits, which NumPy's SeedSequence accepts, have dtype object.
    is_whole = values.dtype.kind in "iu" or (
        values.dtype == object and all(isinstance(each, int) for each in values.flat)
    )
    seeds = [int(each) for each in values.flat] if is_whole and values.ndim <= 1 else []
    if not seeds or min(seeds) < 0 or (batch is not None and len(seeds) not in (1, batch)):
        raise ValueError(f"seed: expected {expected}, got {seed!r}")
    return seeds


def seeded_generator(*key: int) -> torch.Generator:
    """Create a CPU generator seeded by all numbers of `key`, each at least 0, in their order.

    NumPy's SeedSequence mixes them into one seed, so that (seed 0, draw 1) differs from (seed 1, draw 0).
    """
    mixed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]) >> 1
    return torch.Generator("cpu").manual_seed(mixed)


@lru_cache(maxsize=32)
def _draw(shape: tuple[int, ...], seed: int, draw: int) -> torch.Tensor:
    # Cached, because successive batches share a seed. Callers stack draws, so no cached tensor is modified. Dtype and
    # device are explicit, because torch's defaults may change between calls.
    return torch.randn(shape, generator=seeded_generator(seed, draw), dtype=torch.float32, device="cpu")


def _per_sample(sigma: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    return sigma.to(latents.device).reshape(-1, *[1] * (latents.ndim - 1))


__all__ = [
    "DEFAULT_LEVELS",
    "VARIANCE_PRESERVING_LEVELS",
    "NoisePath",
    "RectifiedFlow",
    "VariancePreserving",
    "check_seeds",
    "path_from_scheduler",
    "rectified_flow_state",
    "seeded_generator",
    "shared_noise",
]
