"""Label pairs of images by any scorer of pixels, in place of votes:
`python -m training.label_pairs SOURCE --scorer module:function --out DIR`.

Without SOURCE, `--generator` samples the images. An interrupted run resumes. DIR is a Hub data set of preference
pairs: DIR/data has the pairs, DIR/scores.jsonl the scores of all images, and DIR/errors.jsonl what has no score.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import typer
from datasets import Dataset, concatenate_datasets, disable_progress_bars

from modeling_dina.data.images import open_image
from modeling_dina.evaluation.benchmarks.preference_set import Item
from modeling_dina.evaluation.evaluate import score_items
from modeling_dina.evaluation.rewards import CallableEvaluator
from modeling_dina.files import Journal
from modeling_dina.options import (
    BatchSizeOption,
    check_folder,
    exit_on_bad_input,
    scoring_progress,
    with_option_groups,
)
from training.candidate_options import CandidateOptions
from training.preference_data.candidates import Candidates, flat_images
from training.preference_data.schema import as_pairs, contents_fingerprint, fingerprint, write_pairs

# Probability that the first image is preferred, of the score difference over the temperature.
LAWS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "bradley_terry": torch.sigmoid,
    "thurstone": lambda difference: torch.special.ndtr(difference / 2**0.5),
}


@with_option_groups
def main(
    out: Annotated[Path, typer.Option(help="Folder for the pairs; an interrupted run resumes.")],
    scorer: Annotated[
        str, typer.Option(help="Scorer: module:function that maps (prompts, images) to one number per image.")
    ],
    law: Annotated[
        Literal["bradley_terry", "thurstone"],
        typer.Option(
            help="Law of the targets, for the score difference d: logistic function of d / temperature, or normal "
            "distribution function of d / (sqrt(2) temperature)."
        ),
    ] = "bradley_terry",
    temperature: Annotated[
        float, typer.Option(help="Temperature of the law, in units of the scores; lower is more decided.")
    ] = 1.0,
    batch_size: BatchSizeOption = 16,
    *,
    images: CandidateOptions,
) -> None:
    """Label pairs of images of one prompt by a scorer. Images that cannot be scored are reported, and their pairs
    skipped."""
    # This includes scoring, which is where errors in the scorer or the data appear.
    with exit_on_bad_input():
        if not 0 < temperature < float("inf"):
            raise ValueError(f"temperature: expected a finite positive number, got {temperature}")
        images.check()
        check_folder("out", out)
        evaluator = CallableEvaluator(scorer)
        candidates = images.load(out)
        with scoring_progress() as advance:
            scores, failures = score_candidates(candidates, evaluator, out, batch_size, advance)
        pairs = label(candidates, scores, law, temperature, scorer)
        write_pairs(out, pairs, [*candidates.failures, *failures])
    report(out, candidates, scores, pairs, failures)


def score_candidates(
    candidates: Candidates,
    evaluator: CallableEvaluator,
    out: Path,
    batch_size: int,
    progress: Callable[[int, int], None],
) -> tuple[np.ndarray, list[dict[str, str]]]:
    """
    Score all images that have no score in the journal `out`/scores.jsonl, which stays: another law or temperature
    needs no further scoring.

    Returns:
        Scores of all images, NaN for those that failed, and {"name", "error"} of these.
    """
    images = candidates.images

    def open_row(row: int):
        return open_image(images[row]["image"])

    paths = flat_images(images)["image.path"]
    items = [
        Item(prompt, path or f"image {row}", partial(open_row, row))
        for row, (prompt, path) in enumerate(zip(images["prompt"], paths, strict=True))
    ]
    settings = {
        **evaluator.settings,
        "prompts": fingerprint(images, ["prompt"]),
        "images": contents_fingerprint(images),
    }
    out.mkdir(parents=True, exist_ok=True)
    journal = Journal(out / "scores.jsonl", settings)
    samples, failures = score_items(items, evaluator, journal, batch_size, progress)
    return evaluator.ensemble(samples).scores, failures


def label(candidates: Candidates, scores: np.ndarray, law: str, temperature: float, scorer: str) -> Dataset:
    """
    The pairs whose images both have scores, in the schema of preference data.

    Args:
        candidates: images and pairs.
        scores: score of every image, or NaN.
        law: name of a function in `LAWS`.
        temperature: divisor of score differences.
        scorer: the source of the pairs.

    Raises:
        ValueError: there is no such pair.
    """
    differences = scores[candidates.first] - scores[candidates.second]
    chosen = np.isfinite(differences)
    if not chosen.any():
        raise ValueError(f"source: expected pairs of images that can be scored, got none of {len(chosen)}")
    targets = LAWS[law](torch.from_numpy(differences[chosen] / temperature)).tolist()
    first, second = candidates.first[chosen], candidates.second[chosen]
    images_a = candidates.images.select(first).rename_column("image", "image_a")
    images_b = candidates.images.select(second).select_columns("image").rename_column("image", "image_b")
    labels = {"target": targets, "weight": [1.0] * len(targets), "source": [scorer] * len(targets)}
    return as_pairs(concatenate_datasets([images_a, images_b, Dataset.from_dict(labels)], axis=1))


def report(
    out: Path, candidates: Candidates, scores: np.ndarray, pairs: Dataset, failures: list[dict[str, str]]
) -> None:
    """Print how many pairs were labelled, and what is needed to choose the temperature."""
    differences = scores[candidates.first] - scores[candidates.second]
    targets = np.array(pairs["target"])
    confidence = np.maximum(targets, 1 - targets).mean()
    typer.echo(
        f"{len(pairs)} pairs, {len(differences) - len(pairs)} without a label; score differences have a standard "
        f"deviation of {np.nanstd(differences):.4g}; the preferred image has a mean probability of {confidence:.3f}",
        err=True,
    )
    if candidates.failures or failures:
        typer.echo(f"{len(candidates.failures) + len(failures)} errors are in {out / 'errors.jsonl'}", err=True)


app = typer.Typer(pretty_exceptions_enable=False)
app.command()(main)

if __name__ == "__main__":
    disable_progress_bars()  # `datasets` prints one per file
    app()
