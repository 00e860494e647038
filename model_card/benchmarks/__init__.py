"""Preference benchmarks: how each is read, and how its official accuracy is defined."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from huggingface_hub import snapshot_download

from model_card.benchmarks.comparisons import (
    read_genai_bench,
    read_hpdv3,
    read_mj_bench,
    read_mmrb2,
    read_pick_a_pic,
)
from model_card.benchmarks.preference_set import PreferenceSet
from model_card.benchmarks.rankings import read_hpdv2, read_image_reward
from modeling_dina.cli import loading


class Ties(str, Enum):
    """What pairs that were labelled a tie count for."""

    dropped = "dropped"
    correct = "correct"  # whatever is predicted
    predicted = "predicted"  # a tie can be predicted too, below a threshold chosen on the validation split
    half = "half"  # as what the label 0.5 says: half of the votes agree, whatever is predicted


@dataclass(frozen=True)
class Benchmark:
    """
    A benchmark and its official accuracy.

    Attributes:
        read: its pairs, given a folder laid out as the public repository and how many rows to read (None for all).
        ties: see `Ties`.
        equal_prompts: the mean over prompts of each prompt's share of pairs, instead of the share of all pairs.
        by_category: whether accuracy is reported by category too.
        sizes: published counts, as `evaluate_preferences.count` names them.
        files: patterns of what to download of the repository.
    """

    read: Callable[[Path, int | None], PreferenceSet]
    ties: Ties = Ties.dropped
    equal_prompts: bool = False
    by_category: bool = False
    sizes: dict[str, int] = field(default_factory=dict)
    files: tuple[str, ...] = ()


def _read_world(folder: Path | None, limit: int | None) -> PreferenceSet:
    # Imported when it is asked for: it brings diffusers along.
    from model_card.benchmarks.world import read_world

    return read_world(limit)


BENCHMARKS = {
    "imagereward": Benchmark(
        read_image_reward,
        sizes={"prompts": 466, "pairs": 7230, "ties": 831, "used": 6399},
        files=("test.json", "metadata-test.parquet", "images/test/*"),
    ),
    "hpdv2": Benchmark(
        read_hpdv2,
        ties=Ties.correct,
        equal_prompts=True,
        sizes={"pairs": 15_300},
        files=("test.json", "test/*", "test*.tar*", "test*.zip"),
    ),
    "hpdv3": Benchmark(read_hpdv3, files=("test.json", "*.tar*")),
    "pickapic": Benchmark(
        read_pick_a_pic,
        ties=Ties.predicted,
        sizes={"pairs": 500, "validation_pairs": 500},
        files=("data/test_unique*", "data/validation_unique*"),
    ),
    "genai-bench": Benchmark(
        read_genai_bench, sizes={"pairs": 1735, "used": 1306}, files=("image_generation/test_v1*",)
    ),
    "mj-bench": Benchmark(read_mj_bench, by_category=True, files=("data/*.parquet",)),
    "mmrb2": Benchmark(read_mmrb2, sizes={"pairs": 1000}, files=("*t2i*",)),
    "world": Benchmark(_read_world, ties=Ties.half, by_category=True),
}


def find_data(benchmark: str, data: str | None) -> tuple[Path | None, str | None]:
    """
    The folder that a benchmark is read from, and its revision if it came from the Hub.

    Args:
        benchmark: a key of `BENCHMARKS`.
        data: a folder, or the Hub id of a data set, whose files are downloaded; None for the small world alone.

    Raises:
        ValueError: `data` is missing or leads nowhere, or the Hub cannot be reached.
    """
    if (data is None) != (benchmark == "world"):
        raise ValueError(f"data: expected a folder or a Hub id for all but the world, got {data} for {benchmark}")
    if data is None:
        return None, None
    folder = Path(data)
    if folder.is_dir():
        return folder, None
    if folder.exists() or data.startswith(("/", ".", "~")) or data.count("/") != 1:
        raise ValueError(f"data: expected a folder or a Hub id, got {data}")
    with loading("data", data):
        folder = Path(snapshot_download(data, repo_type="dataset", allow_patterns=list(BENCHMARKS[benchmark].files)))
    return folder, folder.name  # a snapshot's folder is named after its commit
