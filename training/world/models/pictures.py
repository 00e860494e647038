"""Single pictures of the small world, the training data of autoencoder and generator."""

from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset

from training.world.defects import spoil
from training.world.latents import to_pixels
from training.world.scenes import Description, arrange, draw, sample_description


@dataclass
class Pictures(Dataset):
    """Pictures that match their captions. Each is a pure function of seed and index, so nothing is stored.

    Attributes:
        seed: seed of the set.
        size: number of pictures.
        defect_share: share of pictures with a defect.
    """

    seed: int
    size: int
    defect_share: float = 0.0

    def __len__(self) -> int:
        return self.size

    def draw(self, index: int) -> tuple[Description, np.ndarray]:
        """Draw a description and its picture, RGB uint8 [64, 64, 3]."""
        rng = np.random.default_rng((self.seed, index))
        description = sample_description(rng)
        image = draw(arrange(description, rng))
        return description, spoil(image, rng) if rng.random() < self.defect_share else image

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": to_pixels(self.draw(index)[1])}
