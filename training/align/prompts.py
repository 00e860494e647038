"""Where prompts come from: a text file, or the small world's captions without end."""

from pathlib import Path

import numpy as np

from training.world.groups import draw_description


class Prompts:
    """Prompts by number, in an order that is a function of the seed.

    Args:
        source: a text file with a prompt a line, gone through again and again in new orders, or "world".
        seed: of the order, or of the captions: a number or several.
        name: of the argument that `source` is, for errors.

    Raises:
        ValueError: there is no such file, or no prompt in it.
    """

    def __init__(self, source: str, seed: int | tuple[int, ...], name: str = "prompts") -> None:
        self.seed, self.lines = np.atleast_1d(seed).tolist(), None
        if source != "world":
            if not Path(source).is_file():
                raise ValueError(f"{name}: expected 'world' or a text file, got {source}, which is not a file")
            self.lines = [line.strip() for line in Path(source).read_text().splitlines() if line.strip()]
            if not self.lines:
                raise ValueError(f"{name}: expected a prompt a line, got {source}, which has none")

    def __getitem__(self, index: int) -> str:
        if self.lines is None:
            return draw_description(*self.seed, index).caption
        epoch, position = divmod(index, len(self.lines))
        return self.lines[np.random.default_rng((*self.seed, epoch)).permutation(len(self.lines))[position]]

    def batch(self, start: int, count: int, each: int = 1) -> list[str]:
        """`count` prompts from number `start` on, each of them `each` times in succession."""
        return [self[index] for index in range(start, start + count) for _ in range(each)]
