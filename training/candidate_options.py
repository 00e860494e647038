"""Options of the commands that label pairs of images: where the images with their prompts come from, a source that is
loaded or a generator that samples them, and which of their pairs are chosen."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from datasets import Dataset
from diffusers import DiffusionPipeline

from modeling_dina.conditioning_dina import Location
from modeling_dina.identity import parts_identity
from modeling_dina.options import (
    DeviceOption,
    DtypeOption,
    HubOptions,
    check_model,
    loading,
    quieten_libraries,
    scoring_progress,
    usable_device,
)
from training.align.prompts import Prompts
from training.arguments import read_mapping
from training.preference_data.candidates import (
    Candidates,
    images_of_files,
    load_images,
    load_paired_images,
    pair_images,
)
from training.preference_data.samples import sample_images
from training.preference_data.sources import Format


@dataclass
class CandidateOptions(HubOptions):
    """Options for loading or sampling images with prompts, and for choosing pairs of them."""

    source: Annotated[
        str | None,
        typer.Argument(
            help="Images with prompts: a manifest, a folder or a data set with the columns prompt and image; or "
            "preference pairs, with --format.",
            show_default=False,
        ),
    ] = None
    source_format: Annotated[
        Literal["images", Format],
        typer.Option(
            "--format", help="Format of the source: images with prompts, or a format of preference pairs to relabel."
        ),
    ] = "images"
    image_root: Annotated[
        Path | None,
        typer.Option(
            help="Folder that image paths in annotations are relative to. Default: the folder of the annotations."
        ),
    ] = None
    max_pairs: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of pairs per prompt, drawn at random. Default: all.")
    ] = None
    seed: Annotated[int, typer.Option(min=0, help="Seed of the generator's noise and of random choices.")] = 0
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

    def check(self) -> None:
        """Raise a ValueError if the options contradict one another."""
        if (self.source is None) == (self.generator is None):
            raise ValueError(f"source, generator: expected one of them, got {self.source} and {self.generator}")
        if self.generator is not None and self.source_format != "images":
            raise ValueError(f"format: expected images with a generator, got {self.source_format}")
        if self.max_pairs is not None and self.source_format != "images":
            raise ValueError(f"max_pairs: expected none for a source that has pairs, got {self.max_pairs}")

    def load(self, out: Path) -> Candidates:
        """Load the images, or sample them into the folder `out`, and choose the pairs.

        Raises:
            ValueError: the source or the generator cannot be loaded, or there are no pairs.
        """
        if self.source is None:
            return pair_images(*self._sample(out), self.max_pairs, self.seed)
        if self.source_format == "images":
            return pair_images(*load_images(self.source), self.max_pairs, self.seed)
        if self.source_format == "reference_cache":
            raise ValueError("format: expected a format with images, got reference_cache")
        return load_paired_images(self.source, self.source_format, self.image_root)

    def _sample(self, out: Path) -> tuple[Dataset, list[dict[str, str]]]:
        """The same as `load_images`, of sampled images."""
        if self.generator is None or self.prompts is None:
            raise ValueError(f"generator, prompts: expected both, got {self.generator} and {self.prompts}")
        call = read_mapping("sampling", self.sampling, repr(self.sampling))
        source = Prompts(self.prompts, self.seed)
        count = self.num_prompts or len(source.lines or ())
        if not count:
            raise ValueError("num_prompts: expected a number with prompts 'world', got none")
        pipeline, identity = self._load_generator()
        with scoring_progress("sampling") as advance:
            rows, failures = sample_images(
                pipeline,
                source.batch(0, count),
                out,
                identity,
                count=self.samples,
                seed=self.seed,
                call=call,
                progress=advance,
            )
        return images_of_files(rows), failures

    def _load_generator(self) -> tuple[Any, dict[str, Any]]:
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
