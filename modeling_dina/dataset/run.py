"""Computes the missing shards of a data set: reads, decodes and processes its rows, and writes the results."""

from collections.abc import Callable
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from modeling_dina.files import check_settings
from modeling_dina.scoring_dina import DinaScorer

from .batches import Batches, Submit
from .decoding import ChunkDecoder, decode, worker_died
from .rows import Chunk, Unit
from .scorers import ATTEMPTS, LocalScorer, Scorers
from .scores import Wanted, describe, score_batch
from .shards import WHOLE, ScoreShards, Selection, Shards, Share
from .sources import Source


def score_dataset(
    scorer: DinaScorer | Scorers,
    source: Source,
    out: Path,
    *,
    shard_size: int,
    num_workers: int,
    progress: Callable[[int, int | None], None],
    with_levels: bool = False,
    share: Share = WHOLE,
    seed: int = 0,
    **ensemble,
) -> ScoreShards:
    """Score every row of a source. Shards that are already in the folder are not computed again.

    Args:
        scorer: a scorer whose model was loaded from a folder or from the Hub, or several on their devices.
        source: the rows. If they have groups, shards have what `ranking.rank_within_groups` needs.
        out: folder for `settings.json` and for the shards, in `out`/data.
        shard_size: number of rows in a shard.
        num_workers: number of processes that decode images.
        progress: called with the number of finished rows and, if known, of all rows.
        with_levels: also write the score at each single noise level.
        share: the shards to compute, if several runs share the folder.
        seed: seed of the noise.
        ensemble: `sigmas`, `num_draws` and `mode` of `DinaScorer.score`.

    Returns:
        The finished shards.

    Raises:
        ValueError: the folder has scores with other settings, the source is damaged, worker processes keep dying, or
            the model fails on every image. Finished shards remain.
    """
    wanted = Wanted(with_levels, source.group_column is not None, seed, ensemble)
    with LocalScorer(scorer) if isinstance(scorer, DinaScorer) else scorer as scorers:
        settings, decoder, batch_size = scorers.call(describe, wanted, source.has_latents).result()
        shards = open_shards(out, source, shard_size, wanted, settings)
        done = sum(shards.finished().values())
        total = None if source.lengths is None else sum(source.lengths)
        compute_shards(
            shards,
            source,
            decoder,
            partial(scorers.call, score_batch, wanted),
            selection=share,
            batch_size=batch_size,
            max_running=scorers.max_calls,
            num_workers=num_workers,
            progress=lambda rows: progress(done + rows, total),
        )
    return shards


def open_shards(out: Path, source: Source, shard_size: int, wanted: Wanted, settings: dict[str, Any]) -> ScoreShards:
    """The shards in a folder, once it is certain that they belong to this run.

    Args:
        out, source, shard_size: as in `score_dataset`.
        wanted: what is computed.
        settings: further settings of the run, as `scores.describe` returns them.

    Raises:
        ValueError: the folder has scores with other settings.
    """
    own = {"rank_within": source.group_column, "shard_size": shard_size}
    check_settings(out / "settings.json", {**source.identity, **own, **settings})
    return ScoreShards(out / "data", shard_size, with_levels=wanted.with_levels, with_samples=wanted.with_samples)


def compute_shards(
    shards: Shards,
    source: Source,
    decoder: ChunkDecoder,
    submit: Submit,
    *,
    selection: Selection,
    batch_size: int,
    max_running: int,
    num_workers: int,
    progress: Callable[[int], None],
) -> None:
    """Compute the missing shards. A decoding process that dies is replaced, and the rows of unfinished shards are done
    again.

    Args:
        shards: the shards.
        source: the rows.
        decoder: decodes the rows.
        submit, batch_size, max_running: as in `batches.Batches`.
        selection: the units to compute.
        num_workers: number of processes that decode.
        progress: called with the number of rows that this call has finished.

    Raises:
        ValueError: as in `score_dataset`.
    """
    written = failures = 0
    while True:
        chunks = shards.missing(source, batch_size, selection)
        unit: Unit | None = None
        if failures:
            # One shard alone, so that the workers do not read ahead to the rows that kill them.
            unit, chunks = next(groupby(chunks, key=_unit), (None, iter(())))
        done = written
        progress(done)

        def advance(rows: int) -> None:
            nonlocal done
            done += rows
            progress(done)

        try:
            batches = Batches(submit, batch_size, max_running, advance)
            for finished, rows in batches.process(decode(chunks, decoder, num_workers)):
                shards.write(finished, rows)
                written += len(rows)
        except (RuntimeError, ValueError) as error:
            if not worker_died(error):
                raise
            failures += 1
            if failures == ATTEMPTS and unit is not None:
                raise ValueError(
                    f"num_workers: expected processes that decode, of piece {unit.piece}, the rows after "
                    f"{unit.block * shards.size}, got {ATTEMPTS} times one that was killed; is there enough memory? "
                    f"{error}"
                ) from error
        else:
            if not failures:
                return
            failures = 0


def _unit(chunk: Chunk) -> Unit:
    return chunk.unit
