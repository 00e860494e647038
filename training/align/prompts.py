"""Prompts from a text file, or an endless sequence of captions of the small world."""

from pathlib import Path

import numpy as np

from training.world.groups import draw_description


class Prompts:
    """Prompts by index, in an order determined by the seed.

    Args:
        source: a text file with one prompt per line, repeated in a new order each time, or "world".
        seed: seed of the order or of the captions, one or more numbers.
        name: name of the argument in errors.

    Raises:
        ValueError: the file does not exist or contains no prompt.
    """

    def __init__(self, source: str, seed: int | tuple[int, ...], name: str = "prompts") -> None:
        self.seed, self.lines = np.atleast_1d(seed).tolist(), None
        if source != "world":
            if not Path(source).is_file():
                raise ValueError(f"{name}: expected 'world' or a text file, got {source}, which is not a file")
            self.lines = [line.strip() for line in Path(source).read_text().splitlines() if line.strip()]
            if not self.lines:
                raise ValueError(f"{name}: expected one prompt per line, got {source} without a prompt")

    def __getitem__(self, index: int) -> str:
        if self.lines is None:
            return draw_description(*self.seed, index).caption
        epoch, position = divmod(index, len(self.lines))
        return self.lines[np.random.default_rng((*self.seed, epoch)).permutation(len(self.lines))[position]]

    def batch(self, start: int, count: int, each: int = 1) -> list[str]:
        """`count` prompts from index `start` on, each repeated `each` times in succession."""
        return [self[index] for index in range(start, start + count) for _ in range(each)]
