"""Data of the small world: every item is a pure function of a seed and an index, so nothing need be stored."""

from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset

from training.world.defects import spoil
from training.world.scenes import Description, arrange, draw, edit, sample_description


def to_tensor(image: np.ndarray) -> torch.Tensor:
    """RGB uint8 [H, W, 3] to float32 [3, H, W] in [-1, 1], as diffusers' image processor gives it."""
    return torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32) / 127.5 - 1)


@dataclass
class Pictures(Dataset):
    """Faithful pictures with their captions; the share `spoilt` of them has a defect that the caption ignores."""

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
        return {"pixel_values": to_tensor(self.draw(index)[1])}


def candidates(description: Description, count: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Pictures of very different worth under one description, as a generator's attempts would be.

    Most differ from what is asked in one respect or none, some in two, a few show something else; two in five have a
    defect. In half of all calls the candidates share place, tint and background as far as what they show allows.
    """
    shared = int(rng.integers(2**32)) if rng.random() < 0.5 else None
    images = []
    for _ in range(count):
        shown = description
        for _ in range(rng.choice(3, p=(0.35, 0.5, 0.15))):
            shown = edit(shown, rng)
        if rng.random() < 0.07:
            shown = sample_description(rng)
        image = draw(arrange(shown, rng if shared is None else np.random.default_rng(shared)))
        images.append(spoil(image, rng) if rng.random() < 0.4 else image)
    return images
