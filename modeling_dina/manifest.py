"""Scores the rows of a manifest and writes a table. An interrupted run resumes where it stopped."""

import shutil
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from .dataset.manifests import Manifest
from .dataset.ranking import ranked
from .dataset.rows import writable
from .dataset.run import score_dataset
from .dataset.shards import ScoreShards
from .dataset.sources import ManifestSource
from .files import atomic_path
from .options import check_folder
from .scoring_dina import DinaScorer

# Number of rows after which results are on the disk.
SHARD_SIZE = 64
SCHEMA = pa.schema(
    {
        "row": pa.int64(),
        "prompt": pa.string(),
        "image": pa.string(),
        "score": pa.float64(),
        "spread": pa.float64(),
        "rank": pa.int64(),
        "error": pa.string(),
    }
)


class Summary(NamedTuple):
    """Numbers of rows and of rows with an error, and the first row's error."""

    rows: int
    errors: int
    first_error: str | None


def rank_manifest(
    scorer: DinaScorer,
    manifest: Path,
    out: Path,
    *,
    num_workers: int,
    progress: Callable[[int, int | None], None],
    shard_size: int = SHARD_SIZE,
    seed: int = 0,
    **ensemble,
) -> Summary:
    """Score every row of a manifest and write the table `out` with the columns row, prompt, image, score, spread, rank
    (1 is the best image of its prompt) and error. A row without a score has an error. During the run, results are in
    the folder `out`.partial.

    Args:
        scorer, num_workers, progress, seed, ensemble: as in `dataset.run.score_dataset`.
        manifest: as in `Manifest`; image paths are relative to its folder.
        out: a new file, whose suffix selects the format.
        shard_size: number of rows after which results are on the disk.

    Raises:
        ValueError: the manifest is unreadable, there are results of a run with another manifest, model or settings,
            or the model fails on every image. In the last case, earlier results remain.
    """
    folder = Path(f"{out}.partial")
    check_folder("out", folder)
    source = ManifestSource(manifest, "prompt")
    options = {"num_workers": num_workers, "progress": progress, "seed": seed, **ensemble}
    shards = score_dataset(scorer, source, folder, shard_size=shard_size, **options)
    first_error = pq.read_table(shards.paths()[0], columns=["error"])["error"][0].as_py()
    summary = Summary(*shards.count(), first_error)
    _write_table(_tables(shards, Manifest(manifest)), out)
    shutil.rmtree(folder)
    return summary


def _tables(shards: ScoreShards, manifest: Manifest) -> Iterator[pd.DataFrame]:
    """The rows of the table, one shard at a time."""
    rows = enumerate(manifest)
    for _, table in ranked(shards):
        part = list(islice(rows, len(table)))
        columns = {
            "row": [number for number, _ in part],
            "prompt": table["prompt"],
            "image": [writable(row.image) for _, row in part],
            "score": table["score"].cast(pa.float64()),
            "spread": table["spread"].cast(pa.float64()),
            "rank": table["rank"],
            "error": table["error"],
        }
        yield pa.table(columns, SCHEMA).to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)


def _write_table(tables: Iterator[pd.DataFrame], out: Path) -> None:
    suffix = out.suffix.lower()
    with atomic_path(out) as partial:
        if suffix == ".parquet":
            first = pa.Table.from_pandas(next(tables), SCHEMA, preserve_index=False)
            with pq.ParquetWriter(partial, first.schema) as writer:
                writer.write_table(first)
                for table in tables:
                    writer.write_table(pa.Table.from_pandas(table, SCHEMA, preserve_index=False))
            return
        for number, table in enumerate(tables):
            if suffix == ".csv":
                table.to_csv(partial, index=False, mode="a", header=number == 0)
            else:
                table.to_json(partial, orient="records", lines=True, force_ascii=False, mode="a")
