"""Label pairs of images by any scorer of pixels, in place of votes:
`python -m training.label_pairs SOURCE --scorer module:function --out DIR`.

Without SOURCE, `--generator` samples the images. An interrupted run resumes. DIR is a Hub data set of preference
pairs: DIR/data has the pairs, DIR/scores.jsonl the scores of all images, and DIR/errors.jsonl what has no score.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import typer
from datasets import Dataset, concatenate_datasets, disable_progress_bars
from diffusers import DiffusionPipeline

from modeling_dina.conditioning_dina import Location
from modeling_dina.data.images import open_image
from modeling_dina.evaluation.benchmarks.preference_set import Item
from modeling_dina.evaluation.evaluate import score_items
from modeling_dina.evaluation.rewards import CallableEvaluator
from modeling_dina.files import Journal, atomic_path, write_text
from modeling_dina.identity import parts_identity
from modeling_dina.options import (
    BatchSizeOption,
    DeviceOption,
    DtypeOption,
    HubOptions,
    check_folder,
    check_model,
    exit_on_bad_input,
    loading,
    quieten_libraries,
    scoring_progress,
    usable_device,
    with_option_groups,
)
from training.align.prompts import Prompts
from training.arguments import read_mapping
from training.preference_data.candidates import (
    Candidates,
    flat_images,
    images_of_files,
    load_images,
    load_paired_images,
    pair_images,
)
from training.preference_data.samples import sample_images
from training.preference_data.schema import as_pairs, contents_fingerprint, fingerprint
from training.preference_data.sources import Format

# Images with prompts, or a format of preference pairs.
Source = Literal["images", Format]
# Probability that the first image is preferred, of the score difference over the temperature.
LAWS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "bradley_terry": torch.sigmoid,
    "thurstone": lambda difference: torch.special.ndtr(difference / 2**0.5),
}


@dataclass
class GeneratorOptions(HubOptions):
    """Options for sampling images from a generator in place of loading them."""

    generator: Annotated[
        str | None, typer.Option(help="Diffusers pipeline, a folder or a Hub id, that samples the images.")
    ] = None
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the generator on the Hub.")] = None
    prompts: Annotated[
        str | None, typer.Option(help="Prompts of the generator: a text file with one per line, or 'world'.")
    ] = None
    num_prompts: Annotated[
        int | None, typer.Option(min=1, help="Number of prompts. Default: all lines of the file.")
    ] = None
    samples: Annotated[int, typer.Option(min=2, help="Number of images sampled per prompt.")] = 4
    sampling: Annotated[
        str, typer.Option(help="Further arguments of the generator, such as '{\"num_inference_steps\": 28}'.")
    ] = "{}"
    device: DeviceOption = None
    dtype: DtypeOption = None

    def sample(self, out: Path, seed: int) -> tuple[Dataset, list[dict[str, str]]]:
        """Sample the images into the folder `out`; returns the same as `load_images`."""
        if self.generator is None or self.prompts is None:
            raise ValueError(f"generator, prompts: expected both, got {self.generator} and {self.prompts}")
        call = read_mapping("sampling", self.sampling, repr(self.sampling))
        source = Prompts(self.prompts, seed)
        count = self.num_prompts or len(source.lines or ())
        if not count:
            raise ValueError("num_prompts: expected a number with prompts 'world', got none")
        pipeline, identity = self._load()
        with scoring_progress("sampling") as advance:
            rows, failures = sample_images(
                pipeline,
                source.batch(0, count),
                out,
                identity,
                count=self.samples,
                seed=seed,
                call=call,
                progress=advance,
            )
        return images_of_files(rows), failures

    def _load(self) -> tuple[Any, dict[str, Any]]:
        """The pipeline, and what identifies it."""
        assert self.generator is not None
        check_model(self.generator, "generator")
        device = usable_device(self.device)
        quieten_libraries()
        dtype = {} if self.dtype is None else {"dtype": getattr(torch, self.dtype)}
        with loading("generator", self.generator):
            pipeline = DiffusionPipeline.from_pretrained(
                self.generator, revision=self.revision, **dtype, **self.hub_arguments()
            ).to(device)
            parts = [name for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)]
            identity = parts_identity(Location(self.generator, self.revision), parts, **self.hub_arguments())
        pipeline.set_progress_bar_config(disable=True)
        return pipeline, {"generator": self.generator, "weights": identity, "dtype": self.dtype}


@with_option_groups
def main(
    out: Annotated[Path, typer.Option(help="Folder for the pairs; an interrupted run resumes.")],
    scorer: Annotated[
        str, typer.Option(help="Scorer: module:function that maps (prompts, images) to one number per image.")
    ],
    source: Annotated[
        str | None,
        typer.Argument(
            help="Images with prompts: a manifest, a folder or a data set with the columns prompt and image; or "
            "preference pairs, with --format.",
            show_default=False,
        ),
    ] = None,
    source_format: Annotated[
        Source,
        typer.Option(
            "--format", help="Format of the source: images with prompts, or a format of preference pairs to relabel."
        ),
    ] = "images",
    image_root: Annotated[
        Path | None,
        typer.Option(
            help="Folder that image paths in annotations are relative to. Default: the folder of the annotations."
        ),
    ] = None,
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
    max_pairs: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of pairs per prompt, drawn at random. Default: all.")
    ] = None,
    batch_size: BatchSizeOption = 16,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the generator's noise and of random choices.")] = 0,
    *,
    generator: GeneratorOptions,
) -> None:
    """Label pairs of images of one prompt by a scorer. Images that cannot be scored are reported, and their pairs
    skipped."""
    # This includes scoring, which is where errors in the scorer or the data appear.
    with exit_on_bad_input():
        if not 0 < temperature < float("inf"):
            raise ValueError(f"temperature: expected a finite positive number, got {temperature}")
        if (source is None) == (generator.generator is None):
            raise ValueError(f"source, generator: expected one of them, got {source} and {generator.generator}")
        if generator.generator is not None and source_format != "images":
            raise ValueError(f"format: expected images with a generator, got {source_format}")
        if max_pairs is not None and source_format != "images":
            raise ValueError(f"max_pairs: expected none for a source that has pairs, got {max_pairs}")
        check_folder("out", out)
        evaluator = CallableEvaluator(scorer)
        candidates = load_candidates(source, source_format, image_root, generator, out, max_pairs, seed)
        with scoring_progress() as advance:
            scores, failures = score_candidates(candidates, evaluator, out, batch_size, advance)
        pairs = label(candidates, scores, law, temperature, scorer)
        write(out, pairs, [*candidates.failures, *failures])
    report(out, candidates, scores, pairs, failures)


def load_candidates(
    source: str | None,
    source_format: Source,
    image_root: Path | None,
    generator: GeneratorOptions,
    out: Path,
    max_pairs: int | None,
    seed: int,
) -> Candidates:
    """Load or sample the images, and choose the pairs; arguments are the options of the command."""
    if source is None:
        return pair_images(*generator.sample(out, seed), max_pairs, seed)
    if source_format == "images":
        return pair_images(*load_images(source), max_pairs, seed)
    if source_format == "reference_cache":
        raise ValueError("format: expected a format with images, got reference_cache")
    return load_paired_images(source, source_format, image_root)


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


def write(out: Path, pairs: Dataset, failures: list[dict[str, str]]) -> None:
    """Write pairs and failures."""
    write_text(out / "errors.jsonl", "".join(json.dumps(failure) + "\n" for failure in failures))
    with atomic_path(out / "data" / "train-00000-of-00001.parquet") as path:
        pairs.to_parquet(path)


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
