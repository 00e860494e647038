"""Ranks of scored rows within their groups, wherever in the data set the rows of a group are. Memory depends on the
size of a bucket of groups, and not on the number of rows."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from modeling_dina.files import atomic_path
from modeling_dina.thurstone_dina import pair_statistics

from .shards import SAMPLES, ScoreShards

# Mean number of rows in a bucket, which is in memory as a whole.
ROWS_A_BUCKET = 250_000
NOT_RANKED = 0


def rank_within_groups(shards: ScoreShards, out: Path) -> None:
    """Write the folder `out`: files with the names and rows of the shards, and the columns that `ranked` adds.

    Args:
        shards: all shards of a source that was opened with a column of groups.
        out: the folder; it is complete or absent.
    """
    with atomic_path(out) as partial:
        partial.mkdir()
        for path, table in ranked(shards):
            pq.write_table(table, partial / path.name)


def ranked(shards: ScoreShards) -> Iterator[tuple[Path, pa.Table]]:
    """Rank rows within their groups.

    Args:
        shards: as in `rank_within_groups`.

    Yields:
        Each shard's file and its columns. `rank` is 1 for the highest score of a group; equal scores have an equal
        rank. `win_probability` is the probability that the image is preferred to the best one of its group, and one
        half for this one itself. Both are null in rows without a score or without a group. The samples are left out.
    """
    sizes = {path: pq.read_metadata(path).num_rows for path in shards.paths()}
    rows = sum(sizes.values())
    if not rows:
        return
    with TemporaryDirectory(dir=shards.folder.parent, prefix=".ranking-") as folder:
        buckets = _scatter(sizes, Path(folder), -(-rows // ROWS_A_BUCKET))
        # On the disk, because the rows of a bucket are anywhere in the data set.
        ranks = np.memmap(Path(folder, "ranks"), np.int64, "w+", shape=rows)
        wins = np.memmap(Path(folder, "wins"), np.float32, "w+", shape=rows)
        for bucket in buckets:
            table = pq.read_table(bucket)
            numbers = table["number"].to_numpy()
            ranks[numbers], wins[numbers] = _rank(table)
        start = 0
        for path, size in sizes.items():
            part = slice(start, start := start + size)
            table = pq.read_table(path).drop_columns([name for name in SAMPLES if name != "group"])
            absent = ranks[part] == NOT_RANKED
            table = table.append_column("rank", pa.array(ranks[part], mask=absent))
            yield path, table.append_column("win_probability", pa.array(wins[part], mask=absent))


def _scatter(sizes: dict[Path, int], folder: Path, count: int) -> list[Path]:
    """Divide the rows of shards with a score and a group, and their numbers in the data set, into buckets by group."""
    paths = [folder / f"{bucket}.parquet" for bucket in range(count)]
    schema = pa.schema({"number": pa.int64(), "score": pa.float32(), **SAMPLES})
    start = 0
    with ExitStack() as stack:
        writers = [stack.enter_context(pq.ParquetWriter(path, schema)) for path in paths]
        for path, size in sizes.items():
            table = pq.read_table(path, columns=["score", *SAMPLES])
            table = table.add_column(0, "number", pa.array(np.arange(start, start + size)))
            table = table.filter(table["score"].is_valid()).filter(pa.compute.field("group").is_valid())
            start += size
            chosen = pd.util.hash_array(table["group"].to_numpy()) % count
            for bucket in np.unique(chosen):
                writers[bucket].write_table(table.filter(chosen == bucket))
    return paths


def _rank(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Ranks and win probabilities of rows, whose groups are complete."""
    if not len(table):
        return np.empty(0, np.int64), np.empty(0, np.float32)
    scores = table.select(["group", "score"]).to_pandas()
    groups = scores.groupby("group")["score"]
    ranks = groups.rank(ascending=False, method="min").to_numpy(np.int64)
    best = groups.transform("idxmax").to_numpy(copy=True)
    # The same in all rows.
    variance, weights = (torch.tensor(table[name][0].as_py()) for name in ("variance", "weights"))
    samples = table["samples"].combine_chunks().flatten().to_numpy().reshape(len(table), len(variance), -1)
    ours = torch.from_numpy(samples.copy()).permute(1, 2, 0)
    return ranks, pair_statistics(ours, ours[..., best], variance, weights).win_probability.numpy()
