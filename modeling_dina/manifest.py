"""Scores the rows of a manifest into a table, and goes on where an interrupted run stopped.

While a run goes on, its results are in a journal beside the table; the table appears, whole, when all rows have one.
"""

import csv
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from .images_dina import load_image
from .journal import Journal
from .scoring_dina import DinaScorer, check_prompt

TABLE_SUFFIXES = (".csv", ".jsonl", ".parquet")


class Row(NamedTuple):
    """A row of a manifest: `prompt` and `image` as they came, or the `error` that kept it from being read."""

    prompt: Any = None
    image: Any = None
    error: str | None = None


def read_manifest(path: Path) -> list[Row]:
    """
    The rows of a CSV, JSON-lines or Parquet file with the columns "prompt" and "image".

    Raises:
        ValueError: the file is missing, unreadable or empty, or lacks a column. A bad row is no such error.
    """
    if path.suffix not in TABLE_SUFFIXES:
        raise ValueError(f"manifest: expected a file ending in {', '.join(TABLE_SUFFIXES)}, got {path}")
    if not path.is_file():
        raise ValueError(
            f"manifest: expected a file, got {path}, which {'is none' if path.exists() else 'is missing'}"
        )
    try:
        records = {".csv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}[path.suffix](path)
    except (csv.Error, ValueError, OSError) as error:
        raise ValueError(f"manifest: cannot read {path}: {error}") from error
    columns = sorted({str(name) for record in records if isinstance(record, dict) for name in record})
    if not {"prompt", "image"} <= set(columns):
        raise ValueError(f"manifest: expected rows with the columns 'prompt' and 'image', got {columns} in {path}")
    return [
        Row(record.get("prompt"), record.get("image")) if isinstance(record, dict) else Row(error=record)
        for record in records
    ]


def _read_csv(path: Path) -> list[dict | str]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


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


def _read_parquet(path: Path) -> list[dict | str]:
    return pd.read_parquet(path).to_dict("records")


def rank_manifest(
    scorer: DinaScorer,
    manifest: Path,
    out: Path,
    *,
    settings: dict[str, Any],
    progress: Callable[[int, int], None],
    **options,
) -> pd.DataFrame:
    """
    Scores every row of a manifest and writes the table `out`: row, prompt, image, score, spread, rank (1 is the best
    image of its prompt) and error.

    Args:
        manifest: see `read_manifest`; image paths are relative to its folder.
        out: a new file; its ending chooses the format.
        settings: what a journal must agree with to be continued, beside the manifest's content: the model and so on.
        progress: called with the number of finished rows and of all rows.
        options: passed to `DinaScorer.score`.

    Raises:
        ValueError: the manifest is unreadable, or an earlier run with other settings left a journal.
    """
    rows = read_manifest(manifest)
    settings = {"manifest": hashlib.sha256(manifest.read_bytes()).hexdigest(), **settings}
    journal = Journal(Path(f"{out}.partial"), settings)
    results = {record.pop("row"): record for record in journal.records}
    progress(len(results), len(rows))
    missing = [index for index in range(len(rows)) if index not in results]
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
    results: dict[int, dict] = {}
    images = {}
    for index, row in rows.items():
        try:
            if row.error:
                raise ValueError(row.error)
            check_prompt(row.prompt)
            check_prompt(row.image, "image")
            images[index] = load_image(folder / row.image)
        except (ValueError, TypeError) as error:
            results[index] = {"error": str(error)}
    if images:
        prompts = [rows[index].prompt for index in images]
        scores = scorer.score(prompts=prompts, images=list(images.values()), **options).to_dict()
        for index, score, spread in zip(images, scores["scores"], scores["spread"], strict=True):
            results[index] = {"score": score, "spread": spread}
    return results


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
    # Half of a surrogate pair, which JSON can spell, has no bytes in UTF-8.
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else None


def _write_table(table: pd.DataFrame, out: Path) -> None:
    partial = Path(f"{out}.writing")
    if out.suffix == ".csv":
        table.to_csv(partial, index=False)
    elif out.suffix == ".jsonl":
        table.to_json(partial, orient="records", lines=True, force_ascii=False)
    else:
        table.to_parquet(partial, index=False)
    os.replace(partial, out)
