"""Single pictures of the small world, on which autoencoder and generator are trained."""

from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset

from training.world.defects import spoil
from training.world.latents import to_pixels
from training.world.scenes import Description, arrange, draw, sample_description


@dataclass
class Pictures(Dataset):
    """Faithful pictures with their captions, each a pure function of seed and index: nothing need be stored.

    Attributes:
        seed: of the set.
        size: number of pictures.
        spoilt: share of them with a defect that the caption does not mention.
    """

    seed: int
    size: int
    spoilt: float = 0.0

    def __len__(self) -> int:
        return self.size

    def draw(self, index: int) -> tuple[Description, np.ndarray]:
        """The description and the picture, RGB uint8 [64, 64, 3]."""
        rng = np.random.default_rng((self.seed, index))
        description = sample_description(rng)
        image = draw(arrange(description, rng))
        return description, spoil(image, rng) if rng.random() < self.spoilt else image

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": to_pixels(self.draw(index)[1])}
