"""Rows of a data set before and after their images are decoded."""

from typing import Any, NamedTuple

import numpy as np


class Row(NamedTuple):
    """A row of a source.

    Attributes:
        key: name of the row in the output; None stands for its position in the source.
        prompt: should be a text; checked when the row is decoded.
        image: what the decoder decodes: for `decoding.Decoder`, a path, an encoded image, {"bytes", "path"} of
            `datasets.Image(decode=False)`, or a clean latent as `.npy` bytes, if the source has latents.
        error: why the row cannot be read, if so.
        group: name of the row's group, if the source was opened with a column for it.
    """

    key: str | None = None
    prompt: Any = None
    image: Any = None
    error: str | None = None
    group: str | None = None


class Unit(NamedTuple):
    """The rows of one output shard.

    Attributes:
        piece: number of the piece of the source, such as a file, that has the rows.
        block: number of the unit within its piece.
    """

    piece: int
    block: int


class Chunk(NamedTuple):
    """Consecutive rows of a unit, which one worker process decodes.

    Attributes:
        unit: the unit.
        start: number of the first row within the unit.
        rows: the rows.
        is_last: whether these are the last rows of the unit.
    """

    unit: Unit
    start: int
    rows: list[Row]
    is_last: bool


class Decoded(NamedTuple):
    """A decoded chunk.

    Attributes:
        unit, start, is_last: as in `Chunk`.
        columns: of every row, its columns in the output that are not computed. "prompt" is a text where there is no
            error.
        errors: by number of the row in the unit.
        groups: for inputs of one shape, the numbers of their rows in the unit, and the inputs [n, …]: pixels, uint8
            [n, height, width, 3], or latents [n, C, h, w].
    """

    unit: Unit
    start: int
    is_last: bool
    columns: list[dict[str, Any]]
    errors: dict[int, str]
    groups: list[tuple[list[int], np.ndarray]]


def writable(value: Any) -> str | None:
    """A text that UTF-8 can encode, or None for another value. JSON can contain half of a surrogate pair."""
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else None


def text_of(value: Any) -> str | None:
    """A value such as a number as a text that UTF-8 can encode; None stays None."""
    return None if value is None else writable(str(value))
