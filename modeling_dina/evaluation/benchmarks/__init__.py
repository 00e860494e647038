"""Preference benchmarks: how each is read, and how its official accuracy is defined."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from itertools import islice
from pathlib import Path
from pkgutil import resolve_name

from huggingface_hub import snapshot_download

from modeling_dina.data import preferences
from modeling_dina.data.tables import read_rows
from modeling_dina.evaluation.benchmarks.image_files import ImageFiles
from modeling_dina.evaluation.benchmarks.preference_set import PreferenceSet
from modeling_dina.options import loading


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
        read: its pairs, given a folder laid out as the public repository (None if it needs no data) and how many rows
            to read (None for all).
        ties: see `Ties`.
        equal_prompts: the mean over prompts of each prompt's share of pairs, instead of the share of all pairs.
        by_category: whether accuracy is reported by category too.
        sizes: published counts, as `evaluate_preferences.count` names them.
        files: patterns of what to download of the repository.
        needs_data: whether it is read from a folder; one that makes its own images is not.
        command: that knows the benchmark.
    """

    read: Callable[[Path | None, int | None], PreferenceSet]
    ties: Ties = Ties.dropped
    equal_prompts: bool = False
    by_category: bool = False
    sizes: dict[str, int] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    needs_data: bool = True
    command: str = "dina evaluate"


def published(
    reader: preferences.Reader,
    *,
    images: tuple[str, ...] = (),
    starts: tuple[str, ...] = ("",),
    archives: tuple[str, ...] = (),
    **splits: tuple[str, ...],
) -> Callable[[Path | None, int | None], PreferenceSet]:
    """
    What `Benchmark.read` is for a published data set.

    Args:
        reader: of the data set.
        images: columns that hold images where its files are Parquet.
        starts, archives: see `ImageFiles`.
        splits: for each split, patterns of where its rows may be, the best first: one JSON file, or Parquet files.

    Returns:
        A function of the data set's folder and of how many usable rows of each split to take (None for all). It
        raises a ValueError where a split is missing, empty or damaged.
    """

    def read(folder: Path | None, limit: int | None) -> PreferenceSet:
        if folder is None:
            raise ValueError("data: expected a folder, got None")
        files = ImageFiles(folder, starts, archives)
        gathered = PreferenceSet()
        for split, patterns in splits.items():
            paths = next((found for pattern in patterns if (found := sorted(folder.glob(pattern)))), None)
            if not paths:
                raise ValueError(f"data: expected {' or '.join(patterns)} in {folder}, got none")
            rows = list(read_rows(paths, "data", images))
            if not rows:
                raise ValueError(f"data: expected rows in {paths[0]}, got none")
            for annotation in islice(reader(rows, split, gathered.row), limit):
                cluster = annotation.cluster or annotation.prompt
                common = {"category": annotation.category, "split": split}
                for pair, label, target in annotation.pairs():
                    a, b = (files.item(annotation.prompt, image) for image in pair)
                    gathered.add_pair(cluster, a, b, label, target=target, **common)
        files.unpack()
        return gathered

    return read


BENCHMARKS = {
    "imagereward": Benchmark(
        published(
            preferences.image_reward,
            test=("test.json", "metadata-test.parquet", "**/test.json"),
            archives=("images/test/*.zip", "*.zip"),
        ),
        sizes={"prompts": 466, "pairs": 7230, "ties": 831, "used": 6399},
        files=("test.json", "metadata-test.parquet", "images/test/*"),
    ),
    "hpdv2": Benchmark(
        published(
            preferences.hpdv2,
            test=("test.json", "**/test.json"),
            starts=("", "test"),
            archives=("test*.tar*", "test*.zip"),
        ),
        ties=Ties.correct,
        equal_prompts=True,
        sizes={"pairs": 15_300},
        files=("test.json", "test/*", "test*.tar*", "test*.zip"),
    ),
    "hpdv3": Benchmark(
        published(preferences.hpdv3, test=("test.json", "**/test.json"), archives=("*.tar*", "*.zip")),
        files=("test.json", "*.tar*"),
    ),
    "pickapic": Benchmark(
        # One pair a prompt.
        published(
            preferences.pick_a_pic,
            test=("**/*test_unique*.parquet",),
            validation=("**/*validation_unique*.parquet",),
            images=("jpg_0", "jpg_1"),
        ),
        ties=Ties.predicted,
        sizes={"pairs": 500, "validation_pairs": 500},
        files=("data/test_unique*", "data/validation_unique*"),
    ),
    "genai-bench": Benchmark(
        published(
            preferences.genai_bench,
            test=("**/image_generation/test_v1*.parquet", "**/image_generation*.parquet", "*.parquet"),
            images=("left_image", "right_image"),
        ),
        sizes={"pairs": 1735, "used": 1306},
        files=("image_generation/test_v1*",),
    ),
    "mj-bench": Benchmark(
        published(preferences.mj_bench, test=("data/*.parquet", "**/*.parquet"), images=("image0", "image1")),
        by_category=True,
        files=("data/*.parquet",),
    ),
    "mmrb2": Benchmark(
        published(
            preferences.mmrb2,
            test=("**/*t2i*.parquet", "**/t2i/*.parquet", "**/*t2i*.json", "*.parquet"),
            images=("response_a_images", "response_b_images"),
            archives=("*.zip", "*.tar*"),
        ),
        sizes={"pairs": 1000},
        files=("*t2i*",),
    ),
}


def find_benchmark(name: str) -> Benchmark:
    """
    One of `BENCHMARKS` by its name, or a `Benchmark` of one's own by "module:attribute".

    Raises:
        ValueError: there is none of that name.
    """
    if name in BENCHMARKS:
        return BENCHMARKS[name]
    try:
        found = resolve_name(name) if ":" in name else None
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"benchmark: expected module:attribute, got {name}: {error}") from error
    if not isinstance(found, Benchmark):
        raise ValueError(f"benchmark: expected one of {', '.join(BENCHMARKS)}, or module:attribute, got {name}")
    return found


def find_data(benchmark: Benchmark, data: str | None) -> tuple[Path | None, str | None]:
    """
    The folder that a benchmark is read from, and its revision if it came from the Hub.

    Args:
        benchmark: what is read.
        data: a folder, or the Hub id of a data set, whose files are downloaded; None if the benchmark needs none.

    Raises:
        ValueError: `data` is missing or leads nowhere, or the Hub cannot be reached.
    """
    if benchmark.needs_data != (data is not None):
        raise ValueError(f"data: expected {'a folder or a Hub id' if benchmark.needs_data else 'none'}, got {data}")
    if data is None:
        return None, None
    folder = Path(data)
    if folder.is_dir():
        return folder, None
    if folder.exists() or data.startswith(("/", ".", "~")) or data.count("/") != 1:
        raise ValueError(f"data: expected a folder or a Hub id, got {data}")
    with loading("data", data):
        folder = Path(snapshot_download(data, repo_type="dataset", allow_patterns=list(benchmark.files)))
    return folder, folder.name  # a snapshot's folder is named after its commit
