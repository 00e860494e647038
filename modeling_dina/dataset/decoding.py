"""Decoding of rows in worker processes, in the order of the source and a few chunks ahead."""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from modeling_dina.data.images import open_image
from modeling_dina.data.latents import unpack
from modeling_dina.images_dina import fit_size, load_image
from modeling_dina.isolation import error_text
from modeling_dina.scoring_dina import DinaScorer, check_prompt

from .rows import Chunk, Decoded, Row, writable


class ChunkDecoder(TorchDataset, ABC):
    """Maps a chunk of rows to a decoded one."""

    @abstractmethod
    def values(self, row: Row) -> np.ndarray:
        """The input of a row, which is a batch of one with those of other rows of the same shape. Any exception is
        the row's error."""

    def columns(self, row: Row) -> dict[str, Any]:
        """Columns of a row in the output, among them "prompt"."""
        return {"key": row.key, "prompt": writable(row.prompt), "group": row.group}

    def __getitem__(self, chunk: Chunk) -> Decoded:
        errors: dict[int, str] = {}
        groups: dict[tuple[int, ...], list[tuple[int, np.ndarray]]] = defaultdict(list)
        for number, row in enumerate(chunk.rows, start=chunk.start):
            try:
                if row.error is not None:
                    raise ValueError(row.error)
                check_prompt(row.prompt)
                values = self.values(row)
                groups[values.shape].append((number, values))
            except Exception as error:
                errors[number] = error_text(error)
        return Decoded(
            chunk.unit,
            chunk.start,
            chunk.is_last,
            [self.columns(row) for row in chunk.rows],
            errors,
            [
                ([number for number, _ in group], np.stack([values for _, values in group]))
                for group in groups.values()
            ],
        )


class Decoder(ChunkDecoder):
    """Decodes images, which are resized to the size at which the scorer processes them, or cached latents.

    Args:
        scorer: determines the sizes.
        has_latents: rows have latents in place of images.
    """

    def __init__(self, scorer: DinaScorer, has_latents: bool):
        # Without the scorer itself, which should not be sent to other processes.
        self._processor = scorer.pipeline.image_processor
        self._limits = scorer.size_limits
        self._has_latents = has_latents

    def values(self, row: Row) -> np.ndarray:
        return unpack(row.image).numpy() if self._has_latents else self._pixels(row.image)

    def _pixels(self, value: Any) -> np.ndarray:
        image = _open(value)
        width, height = fit_size(*image.size, **self._limits)
        # The scorer resizes an image of this size to itself.
        return np.array(self._processor.resize(image, height, width))


def _open(value: Any) -> Image.Image:
    if isinstance(value, bytes):
        value = {"bytes": value, "path": None}
    if isinstance(value, dict):
        return open_image(value)
    check_prompt(value, "image")
    return load_image(value)


def decode(chunks: Iterable[Chunk], decoder: ChunkDecoder, num_workers: int) -> Iterator[Decoded]:
    """Decode chunks in worker processes and return them in order. The source is read in this process, at most two
    chunks per worker ahead.

    Args:
        chunks: chunks of rows.
        decoder: the decoder.
        num_workers: number of processes; with 0, this process decodes.

    Raises:
        RuntimeError: a worker process was killed; torch raises it anywhere in the main thread, and `worker_died`
            recognises it.
    """
    # A sampler is any iterable of what the data set takes as an index, here a whole chunk.
    # Arrays are sent as they are: memory that tensors share between processes is lost with the worker.
    loader: DataLoader = DataLoader(
        decoder, batch_size=None, sampler=chunks, num_workers=num_workers, collate_fn=_unchanged
    )
    yield from loader


def _unchanged(decoded: Any) -> Any:
    return decoded


def worker_died(error: Exception) -> bool:
    """Whether the cause of an exception is that a worker process of `decode` was killed."""
    return "DataLoader worker" in str(error)
