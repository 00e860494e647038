"""Scoring of decoded rows in batches of one size, which may come from many chunks."""

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, Future
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from modeling_dina.isolation import PROBE_PROMPT, isolate_failures
from modeling_dina.scoring_dina import DinaScorer

from .rows import Decoded

# Decoded rows that wait for others of their size, in batches. It bounds memory if nearly all sizes differ.
MAX_WAITING_BATCHES = 16
# Batches of which the results are awaited; the second is prepared while the first is scored.
MAX_RUNNING_BATCHES = 2

Scored = dict[str, Any]
ScoreInputs = Callable[[Sequence[str], np.ndarray], Sequence[Scored]]


class Input(NamedTuple):
    """A decoded row: its number in the unit, its prompt, and pixels [height, width, 3] or a latent [C, h, w]."""

    number: int
    prompt: str
    values: np.ndarray


def scoring_function(scorer: DinaScorer, *, with_levels: bool, **options) -> ScoreInputs:
    """A function of prompts and inputs [B, …] of one shape, pixels or latents, that returns the score and the spread
    of each input, and with `with_levels` its score at each single noise level.

    Args:
        scorer: the scorer.
        options: `sigmas`, `num_draws`, `mode` and `seed` of `DinaScorer.score`.
    """

    def score(prompts: Sequence[str], inputs: np.ndarray) -> list[Scored]:
        is_pixels = inputs.dtype == np.uint8
        content: dict[str, Any] = (
            {"images": [Image.fromarray(each) for each in inputs]}
            if is_pixels
            else {"latents": torch.from_numpy(inputs)}
        )
        result = scorer.score(prompts=prompts, **content, with_levels=with_levels, **options)
        values = result.to_dict()
        scored = [
            {"score": score, "spread": spread}
            for score, spread in zip(values["scores"], values["spread"], strict=True)
        ]
        if result.level_samples is not None:
            for row, levels in zip(scored, result.level_samples.mean(dim=1).T.tolist(), strict=True):
                row["level_scores"] = levels
        return scored

    return score


class UnitScores:
    """Scores the rows of one unit in batches of one shape.

    Args:
        score: as `scoring_function` returns.
        batch_size: number of rows in a batch.
        pool: executes the batches, one at a time, while this thread collects the next one.
        progress: called with a number of further finished rows.
    """

    def __init__(self, score: ScoreInputs, batch_size: int, pool: Executor, progress: Callable[[int], None]):
        self._score, self._batch_size, self._pool, self._progress = score, batch_size, pool, progress
        self._waiting: dict[tuple[int, ...], list[Input]] = defaultdict(list)
        self._running: deque[Future] = deque()
        self._keys: list[str | None] = []
        self._prompts: list[str | None] = []
        self._results: dict[int, Scored] = {}
        self._errors: dict[int, str] = {}

    def score(self, chunks: Iterable[Decoded]) -> list[dict[str, Any]]:
        """Score all chunks of a unit.

        Returns:
            `key`, `prompt`, `error` and what `score` returns, for every row in order. A key of None stands for the
            position of the row.

        Raises:
            ValueError: the model fails on a plain input, too.
        """
        for chunk in chunks:
            self._keys += chunk.keys
            self._prompts += chunk.prompts
            self._errors |= chunk.errors
            self._progress(len(chunk.errors))
            for numbers, inputs in chunk.groups:
                for number, values in zip(numbers, inputs, strict=True):
                    self._add(Input(number, chunk.prompts[number - chunk.start] or "", values))
        for group in self._waiting.values():
            self._submit(group)
        while self._running:
            self._collect()
        return [
            {"key": key, "prompt": prompt, "error": self._errors.get(number), **self._results.get(number, {})}
            for number, (key, prompt) in enumerate(zip(self._keys, self._prompts, strict=True))
        ]

    def _add(self, row: Input) -> None:
        group = self._waiting[row.values.shape]
        group.append(row)
        if len(group) == self._batch_size:
            self._submit(group)
        elif sum(map(len, self._waiting.values())) > MAX_WAITING_BATCHES * self._batch_size:
            self._submit(max(self._waiting.values(), key=len))

    def _submit(self, group: list[Input]) -> None:
        """Begin to score the group, and empty it."""
        if group:
            if len(self._running) == MAX_RUNNING_BATCHES:
                self._collect()
            self._running.append(self._pool.submit(self._score_batch, tuple(group)))
            group.clear()

    def _collect(self) -> None:
        scored, failures = self._running.popleft().result()
        self._results.update({each.number: result for each, result in scored})
        self._errors.update({each.number: error for each, error in failures})
        self._progress(len(scored) + len(failures))

    def _score_batch(self, batch: Sequence[Input]):
        def score(inputs: Sequence[Input]) -> Sequence[Scored]:
            return self._score([each.prompt for each in inputs], np.stack([each.values for each in inputs]))

        return isolate_failures(score, batch, lambda: self._score([PROBE_PROMPT], _plain(batch[0].values)[None]))


def _plain(values: np.ndarray) -> np.ndarray:
    """A small grey image [64, 64, 3] or latent [C, 8, 8], if `values` is of this kind and not smaller."""
    if values.dtype == np.uint8:
        return np.full_like(values[:64, :64], 128)
    return np.zeros_like(values[:, :8, :8])
