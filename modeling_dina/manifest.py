"""Scores the rows of a manifest and writes a table. An interrupted run resumes where it stopped.

During a run, results are in a journal beside the table. The table is written atomically at the end.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd
from PIL import Image

from .dataset.manifests import Manifest
from .dataset.rows import Row, writable
from .files import Journal, atomic_path
from .identity import scoring_settings
from .images_dina import load_image
from .isolation import score_images
from .scoring_dina import DinaScorer, check_prompt


def rank_manifest(
    scorer: DinaScorer, manifest: Path, out: Path, *, progress: Callable[[int, int], None], seed: int = 0, **ensemble
) -> pd.DataFrame:
    """Score every row of a manifest and write the table `out` with the columns row, prompt, image, score, spread, rank
    (1 is the best image of its prompt) and error. A row without a score has an error.

    Args:
        scorer: a scorer whose model was loaded from a folder or from the Hub.
        manifest: as in `Manifest`; image paths are relative to its folder.
        out: a new file, whose suffix selects the format.
        progress: called with the number of finished rows and of all rows.
        seed: seed of the noise.
        ensemble: `sigmas`, `num_draws` and `mode` of `DinaScorer.score`.

    Raises:
        ValueError: the manifest is unreadable, there is a journal of a run with another manifest, model or settings,
            or the model fails on every image. In the last case the journal still has all earlier results.
    """
    table_of_images = Manifest(manifest)
    rows = list(table_of_images)
    settings = {
        "manifest": table_of_images.fingerprint(),
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
            "prompt": [writable(row.prompt) for row in rows],
            "image": [writable(row.image) for row in rows],
            "score": [results[index].get("score") for index in range(len(rows))],
            "spread": [results[index].get("spread") for index in range(len(rows))],
        }
    ).astype({"score": float, "spread": float})
    ranks = table.groupby("prompt")["score"].rank(ascending=False, method="min")
    table["rank"] = ranks.astype("Int64")
    table["error"] = [writable(results[index].get("error")) for index in range(len(rows))]
    return table


def _write_table(table: pd.DataFrame, out: Path) -> None:
    suffix = out.suffix.lower()
    with atomic_path(out) as partial:
        if suffix == ".csv":
            table.to_csv(partial, index=False)
        elif suffix == ".jsonl":
            table.to_json(partial, orient="records", lines=True, force_ascii=False)
        else:
            table.to_parquet(partial, index=False)
