"""Preference benchmarks: their data and the definitions of their official accuracies."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice
from pathlib import Path
from pkgutil import resolve_name

from huggingface_hub import snapshot_download

from modeling_dina.data import preferences
from modeling_dina.data.tables import read_rows
from modeling_dina.evaluation.benchmarks.image_files import ImageFiles
from modeling_dina.evaluation.benchmarks.preference_set import PreferenceSet
from modeling_dina.options import loading


class Ties(StrEnum):
    """How pairs labelled as a tie count."""

    dropped = "dropped"
    correct = "correct"  # for any prediction
    predicted = "predicted"  # a tie is predicted below a threshold that is chosen on the validation split
    half = "half"  # like any label: for 0.5, half of the votes agree with any prediction


@dataclass(frozen=True)
class Benchmark:
    """
    A benchmark and its official accuracy.

    Attributes:
        read: reads the pairs, given a folder with the layout of the public repository (None if no data is needed) and
            a maximum number of rows (None for all).
        ties: how ties count.
        equal_prompts: whether all prompts have the same weight, instead of all pairs.
        by_category: whether to report the accuracy by category as well.
        sizes: published sizes, with the keys of `evaluate.count`.
        files: patterns of the files to download from the repository.
        needs_data: whether the benchmark is read from a folder; False if it generates its images.
        command: command that can run the benchmark.
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
    Create `Benchmark.read` for a published data set.

    Args:
        reader: reader of the data set's rows.
        images: columns with images, if the files are Parquet.
        starts, archives: arguments of `ImageFiles`.
        splits: for each split, patterns of its files in order of preference: one JSON file, or Parquet files.

    Returns:
        A function of the data set's folder and of the maximum number of usable rows per split (None for all). It
        raises a ValueError if a split is missing, empty or damaged.
    """

    def read(folder: Path | None, limit: int | None) -> PreferenceSet:
        if folder is None:
            raise ValueError("data: expected a folder, got None")
        files = ImageFiles(folder, starts, archives)
        found_preferences = PreferenceSet()
        for split, patterns in splits.items():
            paths = next((found for pattern in patterns if (found := sorted(folder.glob(pattern)))), None)
            if not paths:
                raise ValueError(f"data: expected {' or '.join(patterns)} in {folder}, got none")
            rows = list(read_rows(paths, "data", images))
            if not rows:
                raise ValueError(f"data: expected rows in {paths[0]}, got none")
            for annotation in islice(reader(rows, split, found_preferences.row), limit):
                cluster = annotation.cluster or annotation.prompt
                common = {"category": annotation.category, "split": split}
                for pair, label, target in annotation.pairs():
                    a, b = (files.item(annotation.prompt, image) for image in pair)
                    found_preferences.add_pair(cluster, a, b, label, target=target, **common)
        files.unpack()
        return found_preferences

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
        # There is one pair per prompt.
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
    # Votes of your own.
    "pairs": Benchmark(
        published(preferences.labelled_pairs, test=("data/*.parquet",), images=("image_a", "image_b")),
        ties=Ties.half,
        files=("data/*.parquet",),
    ),
}


def find_benchmark(name: str) -> Benchmark:
    """
    Find one of `BENCHMARKS` by its name, or any other `Benchmark` by "module:attribute".

    Raises:
        ValueError: there is no such benchmark.
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
    Find the data of a benchmark, and download it if necessary.

    Args:
        benchmark: benchmark to read.
        data: a folder, or the Hub id of a data set; None if the benchmark needs no data.

    Returns:
        The folder, and the revision if the data comes from the Hub.

    Raises:
        ValueError: `data` is missing or does not exist, or the Hub cannot be reached.
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
    return folder, folder.name  # the name of a snapshot's folder is its commit
