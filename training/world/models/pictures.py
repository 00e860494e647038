"""Single pictures of the small world, the training data of autoencoder and generator."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from training.world.defects import spoil
from training.world.scenes import Description, arrange, draw, sample_description


class Drawn(NamedTuple):
    """N pictures, RGB uint8 [N, 64, 64, 3], and their captions."""

    pictures: np.ndarray
    captions: list[str]

    @classmethod
    def join(cls, parts: "list[Drawn]") -> "Drawn":
        """Concatenate pictures."""
        captions = [caption for part in parts for caption in part.captions]
        return cls(np.concatenate([part.pictures for part in parts]), captions)


@dataclass(frozen=True)
class Pictures:
    """Pictures that match their captions. Each is a pure function of seed and index.

    Attributes:
        seed: seed of the set.
        defect_share: share of pictures with a defect.
    """

    seed: int
    defect_share: float = 0.0

    def draw(self, index: int) -> tuple[Description, np.ndarray]:
        """Draw a description and its picture, RGB uint8 [64, 64, 3]."""
        rng = np.random.default_rng((self.seed, index))
        description = sample_description(rng)
        image = draw(arrange(description, rng))
        return description, spoil(image, rng) if rng.random() < self.defect_share else image

    def draw_many(self, indices: range) -> Drawn:
        """Draw the pictures with the given indices."""
        drawn = [self.draw(index) for index in indices]
        return Drawn(np.stack([picture for _, picture in drawn]), [description.caption for description, _ in drawn])
