"""Noise levels and noise of training pairs. They are seeded by pair, so that they depend neither on the number of
processes nor on interruptions."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy.special import betaincinv

# The parameters of each density with their default values.
DENSITIES: dict[str, dict[str, float]] = {
    "uniform": {},
    "logit_normal": {"mean": 0.0, "std": 1.0},
    "mode": {"scale": 1.29},
    "beta": {"a": 1.0, "b": 2.0},
    "power": {"exponent": 1.5},
    "constant": {"sigma": 0.5},
}


class NoiseLevels:
    """
    A density of noise levels on [0, 1], given by its quantile function: `levels(u)` maps uniform numbers to samples.

    - uniform: u
    - logit_normal: sigmoid(mean + std * probit(u)) (arXiv 2403.03206, section 3.1)
    - mode: 1 - u - scale * (cos(pi u / 2)^2 - 1 + u) (ibid.)
    - beta: the quantile of Beta(a, b)
    - power: u^exponent; for exponents above 1, small noise levels are more likely
    - constant: sigma

    Args:
        density: one of `DENSITIES`.
        parameters: parameters in the order of `DENSITIES[density]`; missing ones take the default values.

    Raises:
        ValueError: the density is unknown, there are too many parameters, or one is out of range.
    """

    def __init__(self, density: str, parameters: Sequence[float] = ()) -> None:
        if density not in DENSITIES:
            raise ValueError(f"sigma_density: expected one of {sorted(DENSITIES)}, got {density!r}")
        names = list(DENSITIES[density])
        if len(parameters) > len(names):
            raise ValueError(f"sigma_parameters: expected {names} of {density}, got {list(parameters)}")
        self.density = density
        self.parameters = DENSITIES[density] | dict(zip(names, parameters, strict=False))
        low, high = self(torch.linspace(0.001, 0.999, 999)).aminmax()
        positive = [value for name, value in self.parameters.items() if name in ("std", "a", "b", "exponent")]
        if not (low >= 0 and high <= 1 and all(value > 0 for value in positive)):
            raise ValueError(f"sigma_parameters: expected levels in [0, 1], got {self.parameters} of {density}")

    def __call__(self, u: torch.Tensor) -> torch.Tensor:
        """Levels at the quantiles `u` in (0, 1), of any shape."""
        value = self.parameters
        match self.density:
            case "uniform":
                return u
            case "logit_normal":
                return torch.sigmoid(value["mean"] + value["std"] * torch.special.ndtri(u))
            case "mode":
                return 1 - u - value["scale"] * (torch.cos(math.pi * u / 2) ** 2 - 1 + u)
            case "beta":
                return torch.as_tensor(betaincinv(value["a"], value["b"], u.double().numpy()), dtype=u.dtype)
            case "power":
                return u ** value["exponent"]
            case _:
                return torch.full_like(u, value["sigma"])


def seeded_draws(
    seed: int, step: int, indices: Sequence[int], shape: Sequence[int], device: torch.device | str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Draw a uniform number and normal noise for each of B samples, which depend only on (seed, step, index).

    Args:
        seed: seed of the run.
        step: index of the update.
        indices: row indices of the B samples.
        shape: shape of one sample's noise.
        device: device of the noise. The noise differs between types of devices.

    Returns:
        u [B], in (0, 1), on the CPU; noise [B, *shape] on `device`.
    """
    uniform, noise = [], torch.empty(len(indices), *shape, dtype=torch.float32, device=device)
    generator = torch.Generator(device)
    for row, index in enumerate(indices):
        first, second = np.random.SeedSequence([seed, step, index]).generate_state(2, np.uint64).tolist()
        # Offset by half a step, as quantiles of 0 and 1 may be infinite. 2^-24 is the spacing of float32 below 1.
        uniform.append(((first >> 41) + 0.5) * 2**-23)
        torch.randn(
            shape, generator=generator.manual_seed(second >> 1), dtype=torch.float32, device=device, out=noise[row]
        )
    return torch.tensor(uniform, dtype=torch.float32, device="cpu"), noise
