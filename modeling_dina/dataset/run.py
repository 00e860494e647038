"""Scores a data set: reads, decodes, scores and writes its missing shards."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any

from modeling_dina.files import check_settings
from modeling_dina.identity import scoring_settings
from modeling_dina.scoring_dina import DinaScorer

from .batches import ScoreInputs, UnitScores, scoring_function
from .decoding import Decoder, decode, worker_died
from .rows import Chunk, Decoded, Unit
from .shards import WHOLE, Shards, Share
from .sources import Source

# Times that a shard may be begun before the run gives up, because an image may be what kills the workers.
ATTEMPTS = 3


def score_dataset(
    scorer: DinaScorer,
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
) -> Shards:
    """Score every row of a source. Shards that are already in the folder are not computed again.

    Args:
        scorer: a scorer whose model was loaded from a folder or from the Hub.
        source: the rows.
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
    settings: dict[str, Any] = {
        **source.identity,
        "shard_size": shard_size,
        "seed": seed,
        "levels": with_levels,
        **scoring_settings(scorer, **ensemble),
    }
    check_settings(out / "settings.json", settings)
    shards = Shards(out / "data", shard_size, with_levels=with_levels)
    score = scoring_function(scorer, with_levels=with_levels, seed=seed, **ensemble)
    decoder = Decoder(scorer, source.has_latents)
    failures = 0
    while True:
        chunks = shards.missing(source, scorer.batch_size, share)
        if failures:
            # One shard alone, so that the workers do not read ahead to the rows that kill them.
            chunks = next(iter(groupby(chunks, key=_unit)), (None, iter(())))[1]
        try:
            _score_chunks(chunks, shards, source, score, scorer.batch_size, decoder, num_workers, progress)
        except (RuntimeError, ValueError) as error:
            if not worker_died(error):
                raise
            failures += 1
            if failures == ATTEMPTS:
                raise ValueError(
                    f"num_workers: expected processes that decode the rows after {shards.count()[0]}, got {ATTEMPTS} "
                    f"times one that was killed; is there enough memory? {error}"
                ) from error
        else:
            if not failures:
                return shards
            failures = 0


def _unit(chunk: Chunk | Decoded) -> Unit:
    return chunk.unit


def _score_chunks(
    chunks: Iterable[Chunk],
    shards: Shards,
    source: Source,
    score: ScoreInputs,
    batch_size: int,
    decoder: Decoder,
    num_workers: int,
    progress: Callable[[int, int | None], None],
) -> None:
    done, _ = shards.count()
    progress(done, source.total)

    def advance(rows: int) -> None:
        nonlocal done
        done += rows
        progress(done, source.total)

    # Scoring has a thread of its own: signals of dead workers, which torch turns into exceptions of the main thread,
    # cannot be mistaken for a failure of the model there.
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="scoring") as pool:
        for unit, decoded in groupby(decode(chunks, decoder, num_workers), key=_unit):
            shards.write(unit, UnitScores(score, batch_size, pool, advance).score(decoded))
