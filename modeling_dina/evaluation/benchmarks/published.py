"""Published preference data sets as benchmarks."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path

from modeling_dina.data.preferences import Reader
from modeling_dina.data.tables import read_rows
from modeling_dina.evaluation.benchmarks.image_files import ImageFiles
from modeling_dina.evaluation.benchmarks.preference_set import PreferenceSet


def published(
    reader: Reader,
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
        preferences = PreferenceSet()
        for split, patterns in splits.items():
            paths = next((found for pattern in patterns if (found := sorted(folder.glob(pattern)))), None)
            if not paths:
                raise ValueError(f"data: expected {' or '.join(patterns)} in {folder}, got none")
            rows = list(read_rows(paths, "data", images))
            if not rows:
                raise ValueError(f"data: expected rows in {paths[0]}, got none")
            for annotation in islice(reader(rows, split, preferences.row), limit):
                cluster, common = (
                    annotation.cluster or annotation.prompt,
                    {"category": annotation.category, "split": split},
                )
                for pair, label, target in annotation.pairs():
                    a, b = (files.item(annotation.prompt, image) for image in pair)
                    preferences.add_pair(cluster, a, b, label, target=target, **common)
        files.unpack()
        return preferences

    return read
