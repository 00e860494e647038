"""The one form that benchmarks are read into: images under their prompts, and pairs of them with what was observed."""

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
    """An image to be scored for a prompt.

    Attributes:
        prompt: as the annotations give it.
        name: what reports call the image.
        open: decodes it; raises ValueError, TypeError or OSError if it cannot be used.
    """

    prompt: str
    name: str
    open: Callable[[], Image.Image]


@dataclass(frozen=True)
class Pairs:
    """
    Pairs of items, all attributes [N].

    Attributes:
        cluster: which pairs belong to one prompt and are uncertain together.
        a, b: indices of items.
        label: what counts for accuracy: 1 if a is preferred, 0 if b is, 0.5 for a tie, or a probability.
        target: what counts for the likelihood: the share of votes for a where votes are known, else the label.
        category: what the annotations file the pair under, "" if nothing.
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
        """The pairs of a mask or of indices."""
        return Pairs(**{name: values[index] for name, values in vars(self).items()})

    def shuffled_sides(self, seed: int) -> "Pairs":
        """The same pairs, each turned round with probability one half."""
        turned = np.random.default_rng(seed).random(len(self)) < 0.5
        return replace(
            self,
            a=np.where(turned, self.b, self.a),
            b=np.where(turned, self.a, self.b),
            label=np.where(turned, 1 - self.label, self.label),
            target=np.where(turned, 1 - self.target, self.target),
        )


@dataclass
class PreferenceSet:
    """
    What a benchmark's files hold, gathered row by row.

    Attributes:
        items: images, each once for each prompt it is scored for.
        failures: [{"name", "error"}], rows that cannot be used.
    """

    items: list[Item] = field(default_factory=list)
    failures: list[dict[str, str]] = field(default_factory=list)
    _rows: dict[str, list[tuple]] = field(default_factory=dict)
    _known: dict[tuple[str, str], int] = field(default_factory=dict)

    @contextmanager
    def row(self, name: str) -> Iterator[None]:
        """One bad row is no reason to stop: what is wrong with it is kept under its name."""
        try:
            with naming_row(name):
                yield
        except RowError as error:
            self.failures.append({"name": error.name, "error": error.reason})

    def add_item(self, item: Item) -> int:
        """Index of an item, which is the earlier one's for the same name and prompt."""
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
        """A pair; those of one prompt have one name for their cluster."""
        target = label if target is None else target
        if not (0 <= label <= 1 and 0 <= target <= 1):  # so written that NaN fails too
            raise ValueError(f"expected labels within [0, 1], got {label} and {target}")
        row = (cluster, self.add_item(item_a), self.add_item(item_b), label, target, category)
        self._rows.setdefault(split, []).append(row)

    def pairs(self, split: str = "test") -> Pairs:
        """The pairs of a split, "test" or "validation"; there may be none."""
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
        """Sixteen hexadecimal digits that tell sets apart by their prompts, images and labels."""
        content = [[(item.prompt, item.name) for item in self.items], self._rows]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
