"""Encode preference pairs to cached latents: `python -m training.encode_latents SOURCE --out DIR --model MODEL`.

Under `accelerate launch` or `torchrun` several processes share the work. An interrupted run resumes at the first
missing shard. DIR is a Hub data set: DIR/data has the shards, DIR/errors the pairs that could not be encoded.
"""

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Protocol

import numpy as np
import pyarrow.parquet as pq
import torch
import typer
from accelerate import Accelerator, InitProcessGroupKwargs
from datasets import Dataset, disable_progress_bars
from diffusers import AutoModel
from diffusers.image_processor import VaeImageProcessor
from tqdm import tqdm

from modeling_dina.backbone_base_dina import Dimensions
from modeling_dina.backbone_dina import backbone_class, read_backbone_type, read_transformer_config
from modeling_dina.conditioning_dina import Location
from modeling_dina.data.images import open_image
from modeling_dina.data.latents import pack, unpack
from modeling_dina.dataset.batches import process_batch
from modeling_dina.dataset.decoding import ChunkDecoder
from modeling_dina.dataset.rows import Row, Unit
from modeling_dina.dataset.run import compute_shards
from modeling_dina.dataset.shards import Shards
from modeling_dina.files import atomic_path, check_settings, write_text
from modeling_dina.identity import parts_identity
from modeling_dina.latents_dina import encode_images, spatial_factor
from modeling_dina.options import HubOptions, check_folder, check_model, exit_on_bad_input, loading, with_option_groups
from training.preference_data.buckets import bucket_size
from training.preference_data.schema import LATENT_FEATURES, contents_fingerprint, fingerprint
from training.preference_data.sources import Format, load_pairs


class Items(Protocol):
    """Inputs of pairs [2, …] by row; any exception is the error of its row."""

    def __getitem__(self, index: int, /) -> torch.Tensor: ...


@with_option_groups
def main(
    source: Annotated[str, typer.Argument(help="Preference pairs: annotations, a folder, or a data set on the Hub.")],
    out: Annotated[Path, typer.Option(help="Folder for the latents; an interrupted run resumes.")],
    model: Annotated[
        str | None, typer.Option(help="Diffusers pipeline, a folder or a Hub id, whose VAE encodes the images.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the model on the Hub.")] = None,
    source_format: Annotated[
        Format,
        typer.Option("--format", help="Format of the source: a public data set, or the package's own schema (pairs)."),
    ] = "pairs",
    image_root: Annotated[
        Path | None,
        typer.Option(
            help="Folder that image paths in annotations are relative to. Default: the folder of the annotations."
        ),
    ] = None,
    max_pixels: Annotated[
        int | None,
        typer.Option(
            help="Largest area of an encoded image in pixels. Default: the model's training resolution.", min=1
        ),
    ] = None,
    shard_size: Annotated[int, typer.Option(help="Number of pairs per shard.", min=1)] = 512,
    batch_size: Annotated[int, typer.Option(help="Number of pairs encoded at a time.", min=1)] = 2,
    num_workers: Annotated[int, typer.Option(help="Number of processes that decode images.", min=0)] = 4,
    *,
    hub: HubOptions,
) -> None:
    """Encode the images of preference pairs to float16 latents, in shards. A pair that cannot be encoded is reported
    and skipped; the exit code is 1 if no pair could be encoded."""
    with exit_on_bad_input():
        if (model is None) != (source_format == "reference_cache"):
            raise ValueError(f"model: expected a value for images and none for a cache of latents, got {model}")
        check_folder("out", out)
        # The main process converts the data and fills the caches while the others wait, which may take hours.
        patience = InitProcessGroupKwargs(timeout=timedelta(days=1))
        accelerator = Accelerator(cpu=not torch.cuda.is_available(), kwargs_handlers=[patience])
        with accelerator.main_process_first(), loading("source", source):
            pairs = load_pairs(source, source_format, image_root)
        where = {"revision": revision, **hub.hub_arguments()}
        items, encode, encoding = open_items(pairs, model, max_pixels, accelerator, where)
        settings: dict[str, Any] = {
            "source": os.path.abspath(source) if os.path.exists(source) else source,
            "format": source_format,
            "image_root": image_root and os.path.abspath(image_root),
            "pairs": fingerprint(pairs),
            "contents": contents_fingerprint(pairs),
            "model": model,
            "shard_size": shard_size,
            **encoding,
        }
        with accelerator.main_process_first():
            check_settings(out / "encoding.json", settings)
    encode_shards(
        items,
        pairs.select_columns(["prompt", "target", "weight", "source"]),
        encode,
        out,
        accelerator,
        shard_size=shard_size,
        batch_size=batch_size,
        num_workers=num_workers,
    )
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        report(out, len(pairs))


def open_items(
    pairs: Dataset, model: str | None, max_pixels: int | None, accelerator: Accelerator, where: dict[str, Any]
) -> tuple[Items, Callable[[torch.Tensor], torch.Tensor], dict[str, Any]]:
    """
    Open the arguments `items` and `encode` of `encode_shards`, and the settings that determine the latents of an
    image.

    Args:
        pairs: preference pairs in the package's schema.
        model: diffusers pipeline whose VAE encodes images; None for a cache of latents.
        max_pixels: largest area of an encoded image in pixels; None uses the transformer's training resolution.
        accelerator: device and precision of the VAE.
        where: `revision` and further options of the loaders.
    """
    if model is None:
        return CachedPairs(pairs), torch.Tensor.half, {}
    check_model(model)
    with loading("model", model):
        family = read_backbone_type(model, **where)
        sizes = backbone_class(family).describe(read_transformer_config(family, model, **where)[0])
        vae: Any = AutoModel.from_pretrained(model, subfolder="vae", **where).to(accelerator.device).eval()
        items = ImagePairs(pairs, sizes, spatial_factor(vae), max_pixels)
        hub = {name: value for name, value in where.items() if name != "revision"}
        identity = parts_identity(Location(model, where["revision"]), ["vae"], **hub)

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        with torch.no_grad(), accelerator.autocast():
            return encode_images(vae, pixels.to(accelerator.device)).half().cpu()

    settings = {
        "vae": identity,
        "dtype": str(vae.dtype).removeprefix("torch."),
        "mixed_precision": accelerator.mixed_precision,
        **items.limits,
    }
    return items, encode, settings


class ImagePairs:
    """
    Pixels of image pairs by row: float32 [2, 3, H, W] in [-1, 1].

    Args:
        pairs: rows of `schema.PAIR_FEATURES`.
        sizes: dimensions of the transformer that will process the latents.
        factor: number of pixels per latent along each side.
        max_pixels: largest area in pixels; None uses the transformer's training resolution.

    Attributes:
        limits: arguments of `bucket_size`, which determine the size of an encoded image.
    """

    def __init__(self, pairs: Dataset, sizes: Dimensions, factor: int, max_pixels: int | None) -> None:
        self._pairs = pairs
        self._processor = VaeImageProcessor(vae_scale_factor=factor)
        self.limits: dict[str, Any] = {
            "multiple": factor * sizes.patch_size,
            "max_pixels": max_pixels or (factor * sizes.training_side) ** 2,
        }
        if math.isfinite(sizes.max_side):
            self.limits["max_side"] = factor * sizes.max_side

    def __getitem__(self, index: int) -> torch.Tensor:
        row = self._pairs[index]
        images = [open_image(row[name], name) for name in ("image_a", "image_b")]
        width, height = bucket_size([image.size for image in images], **self.limits)
        return self._processor.preprocess(images, height=height, width=width)


class CachedPairs:
    """Latents of the reference implementation's cache by row: [2, C, h, w]."""

    def __init__(self, pairs: Dataset) -> None:
        self._pairs = pairs

    def __getitem__(self, index: int) -> torch.Tensor:
        row = self._pairs[index]
        latents = [unpack(row[name]) for name in ("latents_a", "latents_b")]
        if latents[0].shape != latents[1].shape:
            shapes = " and ".join(str(list(each.shape)) for each in latents)
            raise ValueError(f"latents: expected one shape for both, got {shapes}")
        return torch.stack(latents)


def encode_shards(
    items: Items,
    labels: Dataset,
    encode: Callable[[torch.Tensor], torch.Tensor],
    out: Path,
    accelerator: Accelerator,
    *,
    shard_size: int,
    batch_size: int,
    num_workers: int,
) -> None:
    """
    Write the missing shards, which are divided between the processes.

    Args:
        items: by row, the input [2, …] of `encode` for a pair; any exception is the error of its row.
        labels: prompt, target, weight and source of every row.
        encode: maps [B, …] to float16 latents [B, C, h, w].
        out: folder for shards, in `out`/data, and for errors of rows without latents, in `out`/errors.
        accelerator: divides the shards between the processes.
        shard_size: number of rows in a shard.
        batch_size: maximum number of pairs of one shape that are encoded together.
        num_workers: number of processes that load `items`.
    """
    shards, source = _LatentShards(out, shard_size, labels), _Pairs(labels)
    # All processes list the missing shards before one begins to write, so that the lists agree.
    accelerator.wait_for_everyone()
    missing = [block for block in range(shards.count) if not shards.path(Unit(0, block)).exists()]
    accelerator.wait_for_everyone()

    def encode_pairs(prompts: Sequence[str], pairs: np.ndarray) -> list[dict[str, Any]]:
        encoded = encode(torch.from_numpy(pairs).flatten(0, 1))
        if not encoded.isfinite().all():
            raise ValueError("latents: expected finite numbers, got NaN or infinity in float16")
        return [{"latents": pair} for pair in encoded.unflatten(0, (-1, 2))]

    def submit(prompts: Sequence[str], pairs: np.ndarray) -> Future:
        return thread.submit(process_batch, encode_pairs, prompts, pairs)

    with accelerator.split_between_processes(missing) as blocks, ThreadPoolExecutor(max_workers=1) as thread:
        rows = sum(min(shard_size, len(labels) - block * shard_size) for block in blocks)
        with tqdm(total=rows, unit="pair", disable=not accelerator.is_main_process) as bar:
            compute_shards(
                shards,
                source,
                _PairDecoder(items),
                submit,
                selection=_Blocks(blocks),
                batch_size=batch_size,
                max_running=2,
                num_workers=num_workers,
                progress=lambda done: bar.update(done - bar.n),
            )


class _Pairs:
    """The rows of preference pairs as a source of one piece; the image of a row is its number."""

    pieces, has_latents = 1, True
    group_column: str | None = None

    def __init__(self, labels: Dataset):
        self._prompts = labels.select_columns("prompt")
        self.lengths = [len(labels)]
        self.identity: dict[str, Any] = {}

    def read(self, piece: int, start: int) -> Iterator[Row]:
        rows = range(start, len(self._prompts))
        for number, row in zip(rows, self._prompts.select(rows), strict=True):
            yield Row(prompt=row["prompt"], image=number)


class _PairDecoder(ChunkDecoder):
    def __init__(self, items: Items):
        self._items = items

    def values(self, row: Row) -> np.ndarray:
        return self._items[row.image].numpy()


class _LatentShards(Shards):
    """Shard `train-BBBBB-of-COUNT.parquet` has the latents of block B; rows without latents are in the file of errors
    of the block."""

    def __init__(self, out: Path, size: int, labels: Dataset):
        super().__init__(out / "data", size)
        self.count = -(-len(labels) // size)
        self._errors, self._labels = out / "errors", labels

    def path(self, unit: Unit) -> Path:
        return self.folder / f"train-{unit.block:05d}-of-{self.count:05d}.parquet"

    def write(self, unit: Unit, rows: list[dict[str, Any]]) -> None:
        numbered = list(enumerate(rows, start=unit.block * self.size))
        errors = [{"index": number, "error": row["error"]} for number, row in numbered if row["error"] is not None]
        error_file = self._errors / f"{unit.block:05d}.jsonl"
        if errors:
            write_text(error_file, "".join(json.dumps(error) + "\n" for error in errors))
        else:
            error_file.unlink(missing_ok=True)  # from an interrupted run before the images were repaired
        # The shard is written last, so that an existing shard and its errors are complete.
        latents = {number: row["latents"] for number, row in numbered if row["error"] is None}
        write_shard(self.path(unit), latents, self._labels)


class _Blocks(frozenset):
    """Chosen blocks of a source of one piece."""

    def may_have(self, piece: int, pieces: int) -> bool:
        return True

    def has(self, unit: Unit, pieces: int) -> bool:
        return unit.block in self


def report(out: Path, count: int) -> None:
    """
    Print how many of `count` pairs have latents in a finished folder.

    Raises:
        typer.Exit: with code 1 if there are none.
    """
    encoded = sum(pq.read_metadata(path).num_rows for path in (out / "data").glob("train-*.parquet"))
    typer.echo(f"{count} pairs, {count - encoded} of them without latents", err=True)
    if encoded < count:
        typer.echo(f"their errors are in {out / 'errors'}", err=True)
    if not encoded:
        raise typer.Exit(1)


def write_shard(path: Path, latents: dict[int, torch.Tensor], labels: Dataset) -> None:
    """
    Write a Parquet file with the columns of `schema.LATENT_FEATURES`.

    Args:
        path: file to write.
        latents: float16 latents [2, C, h, w] by row of `labels`.
        labels: prompt, target, weight and source of every row.
    """
    rows = sorted(latents)
    shard = Dataset.from_dict(
        {
            **labels.select(rows).to_dict(),
            "index": rows,
            "latents_a": [pack(latents[row][0]) for row in rows],
            "latents_b": [pack(latents[row][1]) for row in rows],
            "height": [latents[row].shape[-2] for row in rows],
            "width": [latents[row].shape[-1] for row in rows],
        },
        features=LATENT_FEATURES,
    )
    with atomic_path(path) as partial:
        shard.to_parquet(partial)


app = typer.Typer(pretty_exceptions_enable=False)
app.command()(main)

if __name__ == "__main__":
    disable_progress_bars()  # `datasets` prints one per shard
    app()
