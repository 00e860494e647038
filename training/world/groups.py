"""Groups of pictures, with one caption per group and known utilities, on which rewards are trained and tested."""

from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from training.world.annotators import ANNOTATORS, expected_agreement, true_preference, vote
from training.world.defects import DEFECTS, spoil
from training.world.scenes import RESPECTS, Description, arrange, draw, edit, edit_once, sample_description
from training.world.seeds import Seed
from training.world.utility import true_utility

GROUP_SIZE = 4
DEFECTS_BY_NAME = {defect.__name__.replace("_", " "): defect for defect in DEFECTS}
# Respects in which a picture does not show its caption, and defects.
FLAWS = (*RESPECTS, *DEFECTS_BY_NAME)
# Indices of the first and of the second picture of every pair in a group.
FIRST, SECOND = (index.tolist() for index in np.triu_indices(GROUP_SIZE, 1))


def draw_description(*key: int) -> Description:
    """The random description with index `key[-1]` in the set with the seed `key[:-1]`."""
    return sample_description(np.random.default_rng(key))


def draw_group(seed: int, index: int, held_out: bool = False) -> tuple[Description, np.ndarray]:
    """
    Draw one group of the set of rendered groups with a seed.

    Args:
        seed: seed of the set.
        index: index of the group in the set.
        held_out: whether the caption names a combination of colour and shape that is held out from training.

    Returns:
        The description, and pictures, RGB uint8 [4, 64, 64, 3].
    """
    rng = np.random.default_rng((seed, index))
    description = sample_description(rng, held_out)
    return description, np.stack(candidates(description, GROUP_SIZE, rng))


def draw_flawed(seed: int, index: int, flaw: str) -> tuple[Description, np.ndarray, np.ndarray]:
    """
    Draw a picture that shows its caption, and one that differs from it by one flaw.

    Args:
        seed: seed of the set.
        index: index of the pair in the set.
        flaw: one of `FLAWS`.

    Returns:
        The description, and the clean and the flawed picture, RGB uint8 [64, 64, 3]. Both have the same positions,
        tints and background where their things allow it.
    """
    rng = np.random.default_rng((seed, FLAWS.index(flaw), index))
    description, edited = sample_description(rng), None
    while flaw in RESPECTS and (edited is None or edited.held_out):
        description = sample_description(rng)
        edited = edit_once(description, rng, flaw)
    shared = int(rng.integers(2**32))
    clean = draw(arrange(description, np.random.default_rng(shared)))
    if edited is None:
        return description, clean, DEFECTS_BY_NAME[flaw](clean, rng.uniform(0.15, 1.0), rng)
    return description, clean, draw(arrange(edited, np.random.default_rng(shared)))


def candidates(description: Description, count: int, rng: np.random.Generator) -> list[np.ndarray]:
    """
    Draw pictures of very different utility for one description, like the samples of a generator.

    Most match the description or differ in one respect, some differ in two, and a few show another description; 40 %
    have a defect. In half of all calls the candidates share positions, tints and background, if their things allow it.

    Returns:
        `count` pictures, RGB uint8 [64, 64, 3].
    """
    shared = int(rng.integers(2**32)) if rng.random() < 0.5 else None
    images = []
    for _ in range(count):
        edited = description
        for _ in range(rng.choice(3, p=(0.35, 0.5, 0.15))):
            edited = edit(edited, rng)
        if rng.random() < 0.07:
            edited = sample_description(rng)
        image = draw(arrange(edited, rng if shared is None else np.random.default_rng(shared)))
        images.append(spoil(image, rng) if rng.random() < 0.4 else image)
    return images


@dataclass(frozen=True)
class RenderedPictures(Sequence[np.ndarray]):
    """Pictures of the first `groups` rendered groups of a set, each drawn on access; see `draw_group`."""

    seed: int
    groups: int
    held_out: bool = False

    def __len__(self) -> int:
        return self.groups

    def __getitem__(self, index: int) -> np.ndarray:  # type: ignore[override]  # no slices
        return draw_group(self.seed, range(self.groups)[index], self.held_out)[1]


@dataclass(frozen=True, eq=False)
class Groups:
    """
    G groups of four pictures with one caption per group.

    Attributes:
        captions: G captions.
        utilities: true utilities [G, 4], float64 when measured, float32 when loaded from shards.
        pictures: RGB uint8 [4, 64, 64, 3] for each group; None if only latents are stored, as for generated groups.
        latents: [G, 4, C, H, W] in model space; None if the pictures have not been encoded.
    """

    captions: list[str]
    utilities: np.ndarray
    pictures: Sequence[np.ndarray] | np.ndarray | None = None
    latents: torch.Tensor | None = None

    @classmethod
    def draw(cls, indices: Iterable[int], seed: int, held_out: bool = False) -> "Groups":
        """Draw the rendered groups with these indices in a set; see `draw_group`."""
        drawn = [draw_group(seed, index, held_out) for index in indices]
        return cls.measure([description for description, _ in drawn], np.stack([pictures for _, pictures in drawn]))

    @classmethod
    def measure(
        cls,
        descriptions: Sequence[Description],
        pictures: np.ndarray,
        latents: torch.Tensor | None = None,
        pool: Executor | None = None,
    ) -> "Groups":
        """Create groups from pictures, RGB uint8 [G, 4, 64, 64, 3], and measure their utilities, by the processes of
        `pool` if it is given."""
        measured = map if pool is None else partial(pool.map, chunksize=32)
        utilities = list(measured(_utilities, descriptions, pictures))
        return cls([description.caption for description in descriptions], np.array(utilities), pictures, latents)

    @classmethod
    def join(cls, parts: Sequence["Groups"]) -> "Groups":
        """Concatenate groups that all have pictures and no latents."""
        return cls(
            [caption for part in parts for caption in part.captions],
            np.concatenate([part.utilities for part in parts]),
            np.concatenate([np.asarray(part.pictures) for part in parts]),
        )

    def __len__(self) -> int:
        return len(self.captions)

    def first(self, count: int) -> "Groups":
        """The first `count` groups, without pictures."""
        latents = None if self.latents is None else self.latents[:count]
        return Groups(self.captions[:count], self.utilities[:count], latents=latents)

    @property
    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Indices [6 G] of the first and of the second picture of all pairs within groups, among all 4 G pictures."""
        start = GROUP_SIZE * np.arange(len(self))[:, None]
        return (start + FIRST).ravel(), (start + SECOND).ravel()

    @property
    def preferences(self) -> np.ndarray:
        """Probability that an annotator prefers the first picture of each pair, float64 [G, 6]."""
        utilities = self.utilities.astype(np.float64)
        return true_preference(utilities[:, FIRST], utilities[:, SECOND])


def _utilities(description: Description, pictures: np.ndarray) -> list[float]:
    return [true_utility(description, picture) for picture in pictures]


def cast_votes(utilities: np.ndarray) -> np.ndarray:
    """
    Share of `ANNOTATORS` votes for the first picture of every pair, [G, 6].

    Args:
        utilities: [G, 4] of a complete set, because one random generator draws all votes.
    """
    rng = np.random.default_rng(Seed.TOKENIZER_AND_VOTES)
    return vote(utilities[:, FIRST], utilities[:, SECOND], ANNOTATORS, rng)


def pairwise_accuracy(scores: np.ndarray, utilities: np.ndarray) -> dict[str, float]:
    """
    Expected agreement of scores with a new annotator, over all pairs within groups.

    Args:
        scores, utilities: [G, 4].

    Returns:
        "accuracy", its "standard_error" over groups, the "best" possible accuracy, and the "ratio" of the two.
    """
    pairs = utilities[:, FIRST], utilities[:, SECOND]
    agreement = expected_agreement(scores[:, FIRST] > scores[:, SECOND], *pairs)
    accuracy, best = agreement.mean(), expected_agreement(pairs[0] > pairs[1], *pairs).mean()
    error = agreement.mean(axis=1).std(ddof=1) / len(scores) ** 0.5
    measured = {"accuracy": accuracy, "standard_error": error, "best": best, "ratio": accuracy / best}
    return {name: float(value) for name, value in measured.items()}
