"""Scores the rows of a manifest and writes a table. An interrupted run resumes where it stopped.

During a run, results are in a journal beside the table. The table is written atomically at the end.
"""

import csv
import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from PIL import Image

from .files import Journal, atomic_path
from .identity import scoring_settings
from .images_dina import load_image
from .isolation import score_images
from .scoring_dina import DinaScorer, check_prompt

TABLE_SUFFIXES = (".csv", ".jsonl", ".parquet")


class Row(NamedTuple):
    """A row of a manifest: its `prompt` and `image`, or the `error` with which reading it failed."""

    prompt: Any = None
    image: Any = None
    error: str | None = None


def read_manifest(path: Path) -> list[Row]:
    """Read the rows of a CSV, JSON-lines or Parquet file with the columns "prompt" and "image".

    Raises:
        ValueError: the file is missing, unreadable or empty, or lacks a column. A bad row does not raise.
    """
    suffix = path.suffix.lower()
    if suffix not in TABLE_SUFFIXES:
        raise ValueError(f"manifest: expected a file ending in {', '.join(TABLE_SUFFIXES)}, got {path}")
    if not path.is_file():
        problem = "is not a file" if path.exists() else "does not exist"
        raise ValueError(f"manifest: expected a file, got {path}, which {problem}")
    try:
        if suffix == ".parquet":
            records = pd.read_parquet(path).to_dict("records")
        else:
            records = _read_csv(path) if suffix == ".csv" else _read_jsonl(path)
    except (csv.Error, ValueError, OSError) as error:
        raise ValueError(f"manifest: cannot read {path}: {error}") from error
    if not records:
        raise ValueError(f"manifest: expected rows with the columns 'prompt' and 'image', got no rows in {path}")
    columns = sorted({str(name) for record in records if isinstance(record, dict) for name in record})
    if not {"prompt", "image"} <= set(columns):
        raise ValueError(f"manifest: expected rows with the columns 'prompt' and 'image', got {columns} in {path}")
    return [
        Row(record.get("prompt"), record.get("image")) if isinstance(record, dict) else Row(error=record)
        for record in records
    ]


def _read_csv(path: Path) -> list[dict | str]:
    limit = csv.field_size_limit()
    try:
        # A field is no longer than its file. The limit is global to the process, so it is restored afterwards.
        csv.field_size_limit(max(limit, min(path.stat().st_size, 2**31 - 1)))
        with path.open(newline="", encoding="utf-8-sig") as file:
            return list(csv.DictReader(file))
    finally:
        csv.field_size_limit(limit)


def _read_jsonl(path: Path) -> list[dict | str]:
    records: list[dict | str] = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            records.append(f"line {number}: expected a JSON object, got {error}")
        else:
            is_object = isinstance(record, dict)
            records.append(record if is_object else f"line {number}: expected a JSON object, got {line[:40]}")
    return records


def rank_manifest(
    scorer: DinaScorer, manifest: Path, out: Path, *, progress: Callable[[int, int], None], seed: int = 0, **ensemble
) -> pd.DataFrame:
    """Score every row of a manifest and write the table `out` with the columns row, prompt, image, score, spread, rank
    (1 is the best image of its prompt) and error. A row without a score has an error.

    Args:
        scorer: a scorer whose model was loaded from a folder or from the Hub.
        manifest: as in `read_manifest`; image paths are relative to its folder.
        out: a new file, whose suffix selects the format.
        progress: called with the number of finished rows and of all rows.
        seed: seed of the noise.
        ensemble: `sigmas`, `num_draws` and `mode` of `DinaScorer.score`.

    Raises:
        ValueError: the manifest is unreadable, there is a journal of a run with another manifest, model or settings,
            or the model fails on every image. In the last case the journal still has all earlier results.
    """
    rows = read_manifest(manifest)
    settings = {
        "manifest": hashlib.sha256(manifest.read_bytes()).hexdigest(),
        "folder": str(manifest.parent.resolve()),
        "seed": seed,
        **scoring_settings(scorer, **ensemble),
    }
    journal = Journal(Path(f"{out}.partial"), settings)
    results = {record.pop("row"): record for record in journal.records}
    progress(len(results), len(rows))
    missing = [index for index in range(len(rows)) if index not in results]
    options = {"seed": seed, **ensemble}
    for start in range(0, len(missing), scorer.batch_size):
        indices = missing[start : start + scorer.batch_size]
        scored = _score_rows(scorer, {index: rows[index] for index in indices}, manifest.parent, options)
        results.update(scored)
        journal.append(*({"row": index, **result} for index, result in scored.items()))
        progress(len(results), len(rows))
    table = _table(rows, results)
    _write_table(table, out)
    journal.remove()
    return table


def _score_rows(scorer: DinaScorer, rows: dict[int, Row], folder: Path, options: dict) -> dict[int, dict]:
    """Score some rows: score and spread, or the error, of each."""

    def open_image(row: Row) -> Image.Image:
        check_prompt(row.image, "image")
        return load_image(folder / row.image)

    def score(prompts: list[str], images: list[Image.Image]) -> list[dict]:
        scores = scorer.score(prompts=prompts, images=images, **options).to_dict()
        return [
            {"score": score, "spread": spread}
            for score, spread in zip(scores["scores"], scores["spread"], strict=True)
        ]

    unreadable = {index: row.error for index, row in rows.items() if row.error}
    readable = {index: row for index, row in rows.items() if not row.error}
    results, failures = score_images(score, {i: (row.prompt, partial(open_image, row)) for i, row in readable.items()})
    return results | {index: {"error": error} for index, error in {**unreadable, **failures}.items()}


def _table(rows: list[Row], results: dict[int, dict]) -> pd.DataFrame:
    table = pd.DataFrame(
        {
            "row": range(len(rows)),
            "prompt": [_writable(row.prompt) for row in rows],
            "image": [_writable(row.image) for row in rows],
            "score": [results[index].get("score") for index in range(len(rows))],
            "spread": [results[index].get("spread") for index in range(len(rows))],
        }
    ).astype({"score": float, "spread": float})
    ranks = table.groupby("prompt")["score"].rank(ascending=False, method="min")
    table["rank"] = ranks.astype("Int64")
    table["error"] = [_writable(results[index].get("error")) for index in range(len(rows))]
    return table


def _writable(value: Any) -> str | None:
    # JSON can contain half of a surrogate pair, which cannot be encoded in UTF-8.
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else None


def _write_table(table: pd.DataFrame, out: Path) -> None:
    suffix = out.suffix.lower()
    with atomic_path(out) as partial:
        if suffix == ".csv":
            table.to_csv(partial, index=False)
        elif suffix == ".jsonl":
            table.to_json(partial, orient="records", lines=True, force_ascii=False)
        else:
            table.to_parquet(partial, index=False)
