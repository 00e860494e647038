"""Pairs a second of the memory-mapped loader against reading Parquet rows: `python -m training.benchmark_loader`.

The obvious way reads the row group that a random row is in and keeps that one row. Both read the same random pairs of
the same shards, in turns, so that a busy machine slows them alike; each round gives a ratio. Shards are in the page
cache for both, and making the memory-mapped copy, once for all epochs, is timed apart.
"""

import json
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import datasets
import numpy as np
import pyarrow.parquet as pq
import torch
import typer
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from training.encode_latents import write_shard
from training.preference_data.latents import latent_shapes, read_latents, unpack
from training.preference_data.sampler import ShapeBatchSampler


class ParquetRows(TorchDataset):
    """Pairs of latents by row, the obvious way: the row group of a row is decoded for it."""

    def __init__(self, paths: list[Path]) -> None:
        files = [pq.ParquetFile(path) for path in paths]
        self._places = [
            (file, group, row)
            for file in files
            for group in range(file.num_row_groups)
            for row in range(file.metadata.row_group(group).num_rows)
        ]

    def __getitem__(self, index: int) -> dict:
        file, group, row = self._places[index]
        pair = file.read_row_group(group).slice(row, 1).to_pylist()[0]
        return pair | {name: unpack(pair[name]) for name in ("latents_a", "latents_b")}


def write_random_shards(folder: Path, shards: int, shard_size: int, channels: int, side: int) -> None:
    """Shards of random latents, square and, every fourth, 3:4."""
    generator = torch.Generator().manual_seed(0)
    rows = range(shards * shard_size)
    labels = datasets.Dataset.from_dict(
        {
            "prompt": [f"prompt {row}" for row in rows],
            "target": [1.0 for _ in rows],
            "weight": [1.0 for _ in rows],
            "source": ["random" for _ in rows],
        }
    )
    for shard in range(shards):
        latents = {
            row: torch.randn(2, channels, side * 3 // 4 if row % 4 == 0 else side, side, generator=generator).half()
            for row in rows[shard * shard_size : (shard + 1) * shard_size]
        }
        write_shard(folder / "data" / f"train-{shard:05d}-of-{shards:05d}.parquet", latents, labels)


def measure(batches: Iterator[dict], seconds: float) -> float:
    """Pairs a second of an endless iterator of batches."""
    pairs, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        pairs += len(next(batches)["index"])
    return pairs / (time.perf_counter() - start)


def main(
    shards: Annotated[int, typer.Option(help="Files of latents.", min=1)] = 2,
    shard_size: Annotated[int, typer.Option(help="Pairs in a file.", min=1)] = 256,
    channels: Annotated[int, typer.Option(help="Channels of a latent.", min=1)] = 16,
    side: Annotated[int, typer.Option(help="Height and width of a latent.", min=4)] = 128,
    batch_size: Annotated[int, typer.Option(help="Pairs of the largest shape in a batch.", min=1)] = 8,
    rounds: Annotated[int, typer.Option(help="Turns that each way has.", min=1)] = 5,
    seconds: Annotated[float, typer.Option(help="Length of a turn.")] = 3.0,
) -> None:
    """Measure both ways on random latents in a temporary folder, and print what came out as JSON."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        datasets.config.HF_DATASETS_CACHE = folder / "cache"
        write_random_shards(folder, shards, shard_size, channels, side)
        paths = sorted((folder / "data").iterdir())
        start = time.perf_counter()
        dataset = read_latents(folder)
        prepared = time.perf_counter() - start
        shapes = latent_shapes(dataset)
        rows = ParquetRows(paths)

        def batches(source: TorchDataset) -> Iterator[dict]:
            sampler = ShapeBatchSampler(shapes, max_area=batch_size * side**2, seed=random.randrange(2**31))
            while True:
                yield from DataLoader(source, batch_sampler=sampler)

        ways = {"parquet_rows": rows, "memory_mapped": dataset}
        measured: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way, source in ways.items():
                measured[way].append(measure(batches(source), seconds))
        ratios = np.divide(measured["memory_mapped"], measured["parquet_rows"]).tolist()
        result = {
            "pairs": len(dataset),
            "latents": [channels, side, side],
            "row_groups": sum(pq.ParquetFile(path).num_row_groups for path in paths),
            "preparation_seconds": round(prepared, 2),
            "pairs_per_second": {way: round(statistics.median(values), 1) for way, values in measured.items()},
            "ratio": {
                "median": round(statistics.median(ratios), 1),
                "least": round(min(ratios), 1),
                "most": round(max(ratios), 1),
            },
        }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    datasets.disable_progress_bars()
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
