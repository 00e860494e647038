"""Benchmarks whose annotators ranked several images of a prompt."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from modeling_dina.evaluation.benchmarks.annotations import Annotations, Row
from modeling_dina.evaluation.benchmarks.image_files import ImageFiles
from modeling_dina.evaluation.benchmarks.preference_set import PreferenceSet


def read_image_reward(folder: Path, limit: int | None = None) -> PreferenceSet:
    """
    The test set of ImageRewardDB.

    Rows are prompts of `test.json` (`id, prompt, generations, ranking`), or images of `metadata-test.parquet`
    (`prompt_id, prompt, image_path, rank`). A lower rank is better.
    """
    files = ImageFiles(folder, archives=("images/test/*.zip", "*.zip"))
    annotations = Annotations(files, ("test.json", "metadata-test.parquet", "**/test.json"))
    preferences = PreferenceSet()
    for name, (prompt, paths, ranks) in _image_reward_prompts(preferences, annotations)[:limit]:
        with preferences.row(name):
            preferences.add_ranking(name, [files.item(prompt, path) for path in paths], ranks, [])
    files.unpack()
    return preferences


def _image_reward_prompts(
    preferences: PreferenceSet, rows: Iterable[tuple[str, Row]]
) -> list[tuple[str, tuple[str, list[str], list[float]]]]:
    """Name, prompt, paths and ranks of every prompt."""
    prompts: dict[str, tuple[str, list[str], list[float]]] = {}
    for name, row in rows:
        with preferences.row(name):
            if row.get("generations") is not None:
                prompts[name] = row["prompt"], _list(row, "generations"), _list(row, "ranking")
            else:
                _, paths, ranks = prompts.setdefault(f"prompt {row['prompt_id']}", (row["prompt"], [], []))
                path, rank = row["image_path"], row["rank"]
                paths.append(path)
                ranks.append(rank)
    return list(prompts.items())


def read_hpdv2(folder: Path, limit: int | None = None) -> PreferenceSet:
    """
    The test set of HPDv2: `test.json` with rows `prompt, image_path, rank` and `raw_annotations` or `raw_annotation`,
    `[{rank, user_hash}]`. A lower rank is better; paths start in `test`.
    """
    files = ImageFiles(folder, ("", "test"), archives=("test*.tar*", "test*.zip"))
    preferences = PreferenceSet()
    for name, row in Annotations(files, ("test.json", "**/test.json"), limit=limit):
        with preferences.row(name):
            items = [files.item(row["prompt"], path) for path in _list(row, "image_path")]
            votes = row.get("raw_annotations") or row.get("raw_annotation") or []
            preferences.add_ranking(name, items, _list(row, "rank"), [vote["rank"] for vote in votes])
    files.unpack()
    return preferences


def _list(row: Row, name: str) -> list[Any]:
    value = row[name]
    if not isinstance(value, list):
        raise ValueError(f"{name}: expected a list, got {value!r}")
    return value
