"""The common form of all benchmarks: images with their prompts, and pairs of images with observed preferences."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image

from modeling_dina.data.tables import RowError, naming_row


@dataclass(frozen=True)
class Item:
    """An image to score for a prompt.

    Attributes:
        prompt: prompt as in the annotations.
        name: name of the image in reports.
        open: decodes the image; raises a ValueError, TypeError or OSError if it is unusable.
    """

    prompt: str
    name: str
    open: Callable[[], Image.Image]


@dataclass(frozen=True)
class Pairs:
    """
    Pairs of items, all attributes [N].

    Attributes:
        cluster: index of a cluster of statistically dependent pairs, usually those of one prompt.
        a, b: indices of items.
        label: label for the accuracy: 1 if a is preferred, 0 if b is, 0.5 for a tie, or a probability.
        target: target for the likelihood: the share of votes for a if votes are known, otherwise the label.
        category: category in the annotations, or "".
    """

    cluster: np.ndarray
    a: np.ndarray
    b: np.ndarray
    label: np.ndarray
    target: np.ndarray
    category: np.ndarray

    def __len__(self) -> int:
        return len(self.a)

    def __getitem__(self, index) -> "Pairs":
        """Select pairs by a mask or by indices."""
        return Pairs(**{name: values[index] for name, values in vars(self).items()})

    def shuffled_sides(self, seed: int) -> "Pairs":
        """The same pairs, with a and b swapped with probability one half."""
        swapped = np.random.default_rng(seed).random(len(self)) < 0.5
        return replace(
            self,
            a=np.where(swapped, self.b, self.a),
            b=np.where(swapped, self.a, self.b),
            label=np.where(swapped, 1 - self.label, self.label),
            target=np.where(swapped, 1 - self.target, self.target),
        )


@dataclass
class PreferenceSet:
    """
    The items and pairs of a benchmark, which are added row by row.

    Attributes:
        items: images with their prompts, without duplicates.
        failures: [{"name", "error"}] for unusable rows.
    """

    items: list[Item] = field(default_factory=list)
    failures: list[dict[str, str]] = field(default_factory=list)
    _rows: dict[str, list[tuple]] = field(default_factory=dict)
    _known: dict[tuple[str, str], int] = field(default_factory=dict)

    @contextmanager
    def row(self, name: str) -> Iterator[None]:
        """Context that records the error of a bad row in `failures` instead of raising it."""
        try:
            with naming_row(name):
                yield
        except RowError as error:
            self.failures.append({"name": error.name, "error": error.reason})

    def add_item(self, item: Item) -> int:
        """Add an item, unless one with the same name and prompt exists, and return its index."""
        key = (item.prompt, item.name)
        if key not in self._known:
            self._known[key] = len(self.items)
            self.items.append(item)
        return self._known[key]

    def add_pair(
        self,
        cluster: str,
        item_a: Item,
        item_b: Item,
        label: float,
        *,
        target: float | None = None,
        category: str = "",
        split: str = "test",
    ) -> None:
        """Add a pair. `cluster` is a name that statistically dependent pairs share."""
        target = label if target is None else target
        if not (0 <= label <= 1 and 0 <= target <= 1):  # in this form, NaN also fails
            raise ValueError(f"expected labels within [0, 1], got {label} and {target}")
        row = (cluster, self.add_item(item_a), self.add_item(item_b), label, target, category)
        self._rows.setdefault(split, []).append(row)

    def pairs(self, split: str = "test") -> Pairs:
        """The pairs of a split, "test" or "validation", which may be empty."""
        columns = list(zip(*self._rows.get(split, []), strict=True)) or [()] * 6
        _, cluster = np.unique(np.array(columns[0], dtype=object).astype(str), return_inverse=True)
        return Pairs(
            cluster=cluster,
            a=np.array(columns[1], int),
            b=np.array(columns[2], int),
            label=np.array(columns[3], float),
            target=np.array(columns[4], float),
            category=np.array(columns[5], str),
        )

    def fingerprint(self) -> str:
        """Hash of prompts, image names and labels, as sixteen hexadecimal digits."""
        content = [[(item.prompt, item.name) for item in self.items], self._rows]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
