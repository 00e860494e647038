"""Scores a data set on a Ray cluster, with Ray Data: tasks read and decode rows, actors with a scorer each score them,
and this process writes the shards. Only the source, and models in folders, must be at the same path on every node."""

import pickle
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray.exceptions import RayError

from modeling_dina.scoring_dina import DinaScorer

from .batches import Batches, Columns
from .decoding import ChunkDecoder
from .rows import Decoded, Unit
from .run import open_shards
from .scorers import LocalScorer
from .scores import Description, Wanted, describe, score_batch
from .shards import ScoreShards, Share, Units
from .sources import Source

# Batches of rows in one call of an actor. More of them waste less of the device on images of rare sizes.
BATCHES_PER_CALL = 8


def score_dataset_on_ray(
    address: str,
    open_scorer: Callable[[str], DinaScorer],
    open_rows: Callable[[], Source],
    out: Path,
    *,
    devices: Sequence[str] | None,
    shard_size: int,
    num_workers: int | None,
    progress: Callable[[int, int | None], None],
    with_levels: bool = False,
    seed: int = 0,
    **ensemble,
) -> ScoreShards:
    """Score every row of a source, as `run.score_dataset` does.

    Args:
        address: address of the cluster, as in `ray.init`; "local" starts one on this machine.
        open_scorer: loads the scorer for a device.
        open_rows: opens the source.
        out: folder for the scores, on this machine.
        devices: one device per actor, all of one kind; Ray chooses the GPUs. None uses all GPUs of the cluster, or one
            actor on a CPU if there are none.
        num_workers: number of tasks that read and decode at a time; None uses one per CPU.
        shard_size, progress, with_levels, seed, ensemble: as in `run.score_dataset`.

    Raises:
        ValueError: as in `run.score_dataset`.
    """
    source = open_rows()
    with _cluster(address):
        resources = ray.cluster_resources()
        devices = devices or ["cuda"] * int(resources.get("GPU", 0)) or ["cpu"]
        kind, cpus = devices[0].partition(":")[0], resources.get("CPU", 1)
        # Half of the CPUs are left for reading.
        actor: dict[str, Any] = {"num_gpus": 1} if kind == "cuda" else {"num_cpus": min(1, cpus / 2 / len(devices))}
        wanted = Wanted(with_levels, source.group_column is not None, seed, ensemble)
        opened = partial(open_scorer, kind)
        described = ray.remote(**actor)(_describe).remote(opened, wanted, source.has_latents)
        settings, decoder, batch_size = ray.get(described)
        shards = open_shards(out, source, shard_size, wanted, settings)
        finished = shards.finished()
        count = num_workers or max(1, int(cpus - len(devices) * actor.get("num_cpus", 0)))
        parts = ray.data.from_items([{"part": part} for part in range(count)], override_num_blocks=count)
        read = partial(_read, open_rows, decoder, _Finished(finished, shard_size), count, batch_size)
        scored = parts.flat_map(read).map_batches(
            _Actor,
            fn_constructor_args=(opened, wanted),
            batch_size=BATCHES_PER_CALL,
            concurrency=len(devices),
            **actor,
        )
        done, total = sum(finished.values()), None if source.lengths is None else sum(source.lengths)
        progress(done, total)
        for unit, rows in _whole(scored.iter_batches(batch_size=None, batch_format="pyarrow")):
            shards.write(unit, rows)
            done += len(rows)
            progress(done, total)
    return shards


@contextmanager
def _cluster(address: str) -> Iterator[None]:
    """Connect to a cluster, unless this process is connected already. Errors of its processes become ValueErrors."""
    is_ours = not ray.is_initialized()
    if is_ours:
        ray.init(address, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        yield
    except RayError as error:
        raise ValueError(f"ray: {getattr(error, 'cause', None) or error}") from error
    finally:
        if is_ours:
            ray.shutdown()


def _describe(open_scorer: Callable[[], DinaScorer], wanted: Wanted, has_latents: bool) -> Description:
    return describe(open_scorer(), wanted, has_latents)


class _Finished(Units):
    """Which shards are finished, for processes on other machines."""

    def __init__(self, rows: dict[Unit, int], size: int):
        super().__init__(size)
        self._rows = rows

    def is_done(self, unit: Unit) -> bool:
        return unit in self._rows

    def is_short(self, unit: Unit) -> bool:
        return self._rows[unit] < self.size


def _read(
    open_rows: Callable[[], Source],
    decoder: ChunkDecoder,
    finished: Units,
    count: int,
    chunk_size: int,
    row: dict[str, int],
) -> Iterator[dict[str, bytes]]:
    """Read and decode the chunks of one of `count` parts. An error is sent like a chunk, because Ray would replace it
    by one of its own without the cause."""
    try:
        for chunk in finished.missing(open_rows(), chunk_size, Share(row["part"], count)):
            yield {"chunk": pickle.dumps(decoder[chunk])}
    except ValueError as error:
        yield {"chunk": pickle.dumps(error)}


class _Result(NamedTuple):
    """The columns of a chunk's rows; the rest as in `Chunk`."""

    unit: Unit
    start: int
    is_last: bool
    rows: list[Columns]


class _Actor:
    """Scores chunks. An error is sent like a result."""

    def __init__(self, open_scorer: Callable[[], DinaScorer], wanted: Wanted):
        scorer = open_scorer()
        self._scorer, self._batch_size, self._wanted = LocalScorer(scorer), scorer.batch_size, wanted

    def __call__(self, batch: dict[str, Any]) -> dict[str, list]:
        chunks = [pickle.loads(chunk) for chunk in batch["chunk"]]
        failure = next((each for each in chunks if isinstance(each, ValueError)), None)
        try:
            results: list[Any] = self._score(chunks) if failure is None else [failure]
        except ValueError as error:
            results = [error]
        return {"result": [pickle.dumps(result) for result in results]}

    def _score(self, chunks: list[Decoded]) -> list[_Result]:
        with self._scorer as scorer:
            submit = partial(scorer.call, score_batch, self._wanted)
            batches = Batches(submit, self._batch_size, scorer.max_calls, lambda rows: None)
            ((_, rows),) = batches.process(_as_one_unit(chunks))
        remaining = iter(rows)
        return [
            _Result(each.unit, each.start, each.is_last, [next(remaining) for _ in each.columns]) for each in chunks
        ]


def _as_one_unit(chunks: Iterable[Decoded]) -> Iterator[Decoded]:
    """The same chunks as if they were of one unit, so that their rows are in the same batches."""
    start = 0
    for chunk in chunks:
        shift = start - chunk.start
        errors = {number + shift: error for number, error in chunk.errors.items()}
        groups = [([number + shift for number in numbers], inputs) for numbers, inputs in chunk.groups]
        yield chunk._replace(unit=Unit(0, 0), start=start, errors=errors, groups=groups)
        start += len(chunk.columns)


def _whole(tables: Iterable) -> Iterator[tuple[Unit, list[Columns]]]:
    """Units of which all chunks are scored, which may come in any order."""
    parts: dict[Unit, dict[int, list[Columns]]] = defaultdict(dict)
    sizes: dict[Unit, int] = {}
    for table in tables:
        for result in table["result"].to_pylist():
            loaded = pickle.loads(result)
            if isinstance(loaded, ValueError):
                raise loaded
            unit, start, is_last, rows = loaded
            parts[unit][start] = rows
            if is_last:
                sizes[unit] = start + len(rows)
            if sum(map(len, parts[unit].values())) == sizes.get(unit):
                by_start = parts.pop(unit)
                yield unit, [row for start in sorted(by_start) for row in by_start[start]]
