"""Public preference data sets, as published, to the schema of this package. Image files are named, not copied."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from modeling_dina.data.tables import read_json, read_parquet
from training.preference_data.schema import PAIR_FEATURES, as_pairs


def hpdv3(annotations: Path, image_root: Path | None = None, *, min_confidence: float = 0.95) -> Dataset:
    """
    Pairs of HPDv3 (MizzenAI/HPDv3).

    `path1` is the preferred image of every row, and `choice_dist`, the votes, is in no fixed order: its larger number
    belongs to `path1`. Rows without votes (Midjourney, HPDv2) are hard choices; rows without confidence are kept.

    Args:
        annotations: `all.json`: `{prompt, choice_dist, confidence, path1, path2, model1, model2}`.
        image_root: the folder that its paths start from; None takes that of `annotations`.
        min_confidence: rows of a lower confidence are left out; 0.95 is what HPSv3 was trained with.

    Raises:
        ValueError: naming the row, what was expected and what came.
    """
    rows = []
    root = image_root or annotations.parent
    for where, record in _records(annotations):
        prompt, path_a, path_b = _fields(where, record, "prompt", "path1", "path2")
        confidence, votes = record.get("confidence"), record.get("choice_dist")
        if confidence is not None and confidence < min_confidence:
            continue
        if votes is not None and (len(votes) != 2 or min(votes) < 0 or sum(votes) == 0):
            raise ValueError(f"{where}: choice_dist: expected the votes for two images, got {votes}")
        target = 1.0 if votes is None else max(votes) / sum(votes)
        rows.append(_pair(prompt, root / path_a, root / path_b, target, "hpdv3"))
    return _dataset(rows)


def hpdv2(annotations: Path, image_root: Path | None = None) -> Dataset:
    """
    Pairs of HPDv2 (ymhao/HPDv2, zhwang/HPDv2).

    `train.json` has one choice a pair: `{prompt, file_path [2], human_preference [2]}`, 1 for the preferred image.
    `test.json` has several annotators who each rank the images of a prompt, the best lowest:
    `{prompt, image_path [n], rank [n], raw_annotations [{rank [n], user_hash}]}`. It gives every pair of images, with
    the share of annotators who rank the first one better; an equal rank is half a vote.

    Args:
        annotations: either file.
        image_root: the folder that its paths start from; None takes that of `annotations`.

    Raises:
        ValueError: naming the row, what was expected and what came.
    """
    rows = []
    root = image_root or annotations.parent
    for where, record in _records(annotations):
        (prompt,) = _fields(where, record, "prompt")
        # The data card says file_path, published files say image_path.
        (paths,) = _fields(where, record, "image_path" if "image_path" in record else "file_path")
        images = [root / path for path in paths]
        if "human_preference" in record:
            # As a ranking: the preferred image, marked 1, comes first.
            rankings = [[-preference for preference in record["human_preference"]]]
        else:
            (raw,) = _fields(where, record, "raw_annotation" if "raw_annotation" in record else "raw_annotations")
            rankings = [annotation["rank"] for annotation in raw]
        rows += _ranked_pairs(where, prompt, images, rankings, "hpdv2")
    return _dataset(rows)


def image_reward(annotations: Path, image_root: Path | None = None) -> Dataset:
    """
    Pairs of ImageRewardDB (THUDM/ImageRewardDB): every two images of a prompt; equal ranks are ties.

    Args:
        annotations: `metadata-*.parquet` or the JSON of a part, one row an image: `{image_path, prompt_id, prompt,
            rank, …}`; or the repository's `test.json`, one row a prompt: `{id, prompt, generations [n], ranking [n]}`.
            A lower rank is better.
        image_root: the folder that its paths start from; None takes that of `annotations`.

    Raises:
        ValueError: naming the row, what was expected and what came.
    """
    groups: dict[str, tuple[str, str, list, list]] = {}
    for where, record in _records(annotations):
        if "generations" in record:
            identity, prompt, paths, ranks = _fields(where, record, "id", "prompt", "generations", "ranking")
        else:
            identity, prompt, path, rank = _fields(where, record, "prompt_id", "prompt", "image_path", "rank")
            paths, ranks = [path], [rank]
        _, _, all_paths, all_ranks = groups.setdefault(identity, (where, prompt, [], []))
        all_paths += paths
        all_ranks += ranks
    root = image_root or annotations.parent
    rows = []
    for where, prompt, paths, ranks in groups.values():
        rows += _ranked_pairs(where, prompt, [root / path for path in paths], [ranks], "image_reward")
    return _dataset(rows)


def pick_a_pic(folder: Path) -> Dataset:
    """
    Pairs of Pick-a-Pic v1 or v2 (yuvalkirstain/pickapic_v2): the rows with a label whose images differ.

    Args:
        folder: its Parquet files: `{caption, jpg_0, jpg_1 (bytes), label_0 in {0, 0.5, 1}, has_label, are_different,
            …}`, at any depth.

    Raises:
        ValueError: there is no such file or column, or a label is outside [0, 1].
    """
    columns = {"caption": "prompt", "jpg_0": "image_a", "jpg_1": "image_b", "label_0": "target"}
    dataset = _from_parquet(folder, [*columns, "has_label", "are_different"])
    flags = dataset.select_columns(["has_label", "are_different"]).with_format("numpy")[:]
    dataset = _with_constants(dataset.rename_columns(columns), weight=1.0, source="pick_a_pic")
    # Selecting last keeps the images where they are, memory-mapped, instead of copying them.
    return as_pairs(dataset.select(np.flatnonzero(flags["has_label"] & flags["are_different"])))


def reference_cache(folder: Path) -> Dataset:
    """
    The latent cache of the reference implementation, a pair of latents in place of the images.

    Args:
        folder: its Parquet files: `{prompt, latent1, latent2}`, `.npy` bytes; `latent1` is the preferred one.

    Returns:
        Columns prompt, latents_a, latents_b (as they came, not yet read), target, weight, source.

    Raises:
        ValueError: there is no such file or column.
    """
    columns = {"latent1": "latents_a", "latent2": "latents_b"}
    dataset = _from_parquet(folder, ["prompt", *columns]).rename_columns(columns)
    return _with_constants(dataset, target=1.0, weight=1.0, source="reference_cache")


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a JSON or Parquet file, each with a name for errors."""
    if not path.is_file():
        raise ValueError(f"annotations: expected a JSON or Parquet file, got {path}, which is not a file")
    if path.suffix.lower() == ".parquet":
        records = read_parquet([path], "annotations").to_list()
    else:
        records = read_json(path, "annotations")
    for index, record in enumerate(records):
        if not isinstance(record, dict):
            raise ValueError(f"{path.name}, row {index}: expected an object, got {type(record).__name__}")
        yield f"{path.name}, row {index}", record


def _fields(where: str, record: dict[str, Any], *names: str) -> list:
    missing = [name for name in names if record.get(name) is None]
    if missing:
        raise ValueError(f"{where}: expected the fields {', '.join(names)}, got none in {', '.join(missing)}")
    return [record[name] for name in names]


def _ranked_pairs(
    where: str, prompt: str, images: Sequence[Path], rankings: Sequence[Sequence[float]], source: str
) -> list[dict]:
    """Every two of n images, with the share of `rankings`, each of n numbers, that put the first one lower."""
    if not rankings or any(len(ranking) != len(images) for ranking in rankings):
        lengths = [len(ranking) for ranking in rankings]
        raise ValueError(f"{where}: expected rankings of {len(images)} images, got rankings of {lengths}")
    ranks = np.asarray(rankings, dtype=float)
    return [
        _pair(prompt, images[i], images[j], float((1 + np.sign(ranks[:, j] - ranks[:, i])).mean() / 2), source)
        for i, j in combinations(range(len(images)), 2)
    ]


def _pair(prompt: str, image_a: Path, image_b: Path, target: float, source: str) -> dict:
    return {
        "prompt": prompt,
        "image_a": str(image_a),
        "image_b": str(image_b),
        "target": target,
        "weight": 1.0,
        "source": source,
    }


def _dataset(rows: list[dict]) -> Dataset:
    columns = defaultdict(list)
    for row in rows:
        for name, value in row.items():
            columns[name].append(value)
    return Dataset.from_dict({name: columns[name] for name in PAIR_FEATURES}, features=PAIR_FEATURES)


def _from_parquet(folder: Path, columns: list[str]) -> Dataset:
    paths = sorted(folder.rglob("*.parquet"))
    if not paths:
        raise ValueError(f"folder: expected Parquet files, got {folder} without any")
    for path in paths:
        try:
            missing = set(columns).difference(pq.read_schema(path).names)
        except pa.ArrowException as error:
            raise ValueError(f"folder: cannot read {path}: {error}") from error
        if missing:
            raise ValueError(f"{path.name}: expected the columns {columns}, got none named {sorted(missing)}")
    return read_parquet(paths, "folder", columns)


def _with_constants(dataset: Dataset, **constants: float | str) -> Dataset:
    for name, value in constants.items():
        dataset = dataset.add_column(name, [value] * len(dataset))
    return dataset
