"""Noise paths: how a clean latent becomes a noisy one, which timestep the backbone is told, and where the noise comes
from. `sigma` is always a noise level in [0, 1]: 0 is the clean latent, 1 pure noise."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler


class NoisePath(ABC):
    """A path from data to noise with the discrete levels its scheduler knows.

    Attributes:
        sigmas: float32 CPU tensor [T], the levels, rising with the timestep.
    """

    sigmas: torch.Tensor

    @abstractmethod
    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """The state at level `sigma` ([B] or scalar) between `latents` and `noise`, both [B, C, H, W]."""

    @abstractmethod
    def timestep(self, sigma: torch.Tensor) -> torch.Tensor:
        """What the backbone is told for the level `sigma` (any shape): the model's timestep, in [0, 1000]."""

    def snap(self, sigma: torch.Tensor) -> torch.Tensor:
        """The scheduler's level nearest to each of `sigma` [K], float32 on the CPU.

        A backbone has been trained on its scheduler's levels only; asking for 0.2 under a shifted schedule means the
        nearest level that exists (0.1998, say), and the likelihood's variance is taken there too.
        """
        asked = sigma.detach().to("cpu", torch.float32)
        return self.sigmas[(self.sigmas - asked.unsqueeze(-1)).abs().argmin(dim=-1)]


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


class VariancePreserving(NoisePath):
    """x_sigma = sqrt(abar) x0 + sqrt(1 - abar) noise with sigma = sqrt(1 - abar) (arXiv 2006.11239, equation 4)."""

    def __init__(self, scheduler_config: dict):
        scheduler = DDPMScheduler.from_config(scheduler_config)
        self.sigmas = (1 - scheduler.alphas_cumprod).sqrt()

    def add_noise(self, latents, noise, sigma):
        sigma = _per_sample(sigma, latents)
        return (1 - sigma.square()).sqrt() * latents + sigma * noise

    def timestep(self, sigma):
        """The step whose level is nearest to `sigma`; the levels are discrete here."""
        levels = self.sigmas.to(sigma.device)
        return (levels - sigma.unsqueeze(-1)).abs().argmin(dim=-1)


def path_from_scheduler(scheduler_config: dict) -> NoisePath:
    """The path of a diffusers scheduler configuration: rectified flow for the flow-matching schedulers, variance
    preserving for those with a beta schedule.

    Raises:
        ValueError: if the configuration is of neither kind.
    """
    name = scheduler_config.get("_class_name", "")
    # The tables are data, needed with their values even while a model is being laid out on the meta device.
    with torch.device("cpu"):
        if name.startswith("FlowMatch"):
            return RectifiedFlow(scheduler_config)
        if "beta_schedule" in scheduler_config:
            return VariancePreserving(scheduler_config)
    raise ValueError(
        f"scheduler_config: expected a FlowMatch… scheduler or one with a 'beta_schedule', got _class_name={name!r}"
    )


def shared_noise(shape: Sequence[int], num_draws: int, seed: int | Sequence[int] = 0) -> torch.Tensor:
    """Standard normal noise that depends on nothing but its shape, the seed and the number of the draw.

    It comes from a CPU generator seeded by (seed, draw): the same on every device, for every batch size and order, and
    draw n is the same whether 1 or 100 draws are asked for.

    Args:
        shape: shape of one latent, (C, H, W).
        num_draws: N.
        seed: one whole number of at least 0, shared by every sample of a batch, or one for each sample: a list, array
            or tensor of B.

    Returns:
        float32 CPU tensor [N, 1, C, H, W], or [N, B, C, H, W] with a seed a sample.
    """
    seeds = check_seeds(seed)
    draws = [torch.stack([_draw(tuple(shape), each, draw) for each in seeds]) for draw in range(num_draws)]
    return torch.stack(draws)


def check_seeds(seed, batch: int | None = None) -> list[int]:
    """
    Seeds as a list of Python integers.

    Args:
        seed: a whole number of at least 0, or a list, array or tensor of them.
        batch: B, how many samples there are; None accepts any number of seeds.

    Returns:
        One seed, or B of them.

    Raises:
        ValueError: naming the argument `seed`, what was expected and what came.
    """
    values = np.asarray(seed.cpu() if isinstance(seed, torch.Tensor) else seed)
    expected = "a whole number of at least 0" + (f", or {batch} of them" if batch is not None else "")
    # Python integers beyond 64 bits, which NumPy's SeedSequence takes, arrive as objects.
    is_whole = values.dtype.kind in "iu" or (
        values.dtype == object and all(isinstance(each, int) for each in values.flat)
    )
    seeds = [int(each) for each in values.flat] if is_whole and values.ndim <= 1 else []
    if not seeds or min(seeds) < 0 or (batch is not None and len(seeds) not in (1, batch)):
        raise ValueError(f"seed: expected {expected}, got {seed!r}")
    return seeds


def seeded_generator(*key: int) -> torch.Generator:
    """A CPU generator that depends on all the numbers of `key`, each at least 0, and on their order.

    NumPy's SeedSequence mixes them into one seed, so that (seed 0, draw 1) is not (seed 1, draw 0).
    """
    mixed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)
    return torch.Generator("cpu").manual_seed(mixed)


@lru_cache(maxsize=32)
def _draw(shape: tuple[int, ...], seed: int, draw: int) -> torch.Tensor:
    # Cached: one seed serves batch after batch. Callers stack draws, so nobody writes into a cached one. Type and
    # device are explicit, because those of torch's defaults may differ from call to call.
    return torch.randn(shape, generator=seeded_generator(seed, draw), dtype=torch.float32, device="cpu")


def _per_sample(sigma: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    return sigma.to(latents.device).reshape(-1, *[1] * (latents.ndim - 1))


__all__ = [
    "NoisePath",
    "RectifiedFlow",
    "VariancePreserving",
    "check_seeds",
    "path_from_scheduler",
    "rectified_flow_state",
    "seeded_generator",
    "shared_noise",
]
