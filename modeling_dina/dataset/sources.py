"""Sources of rows: manifests, data sets of the library `datasets`, WebDataset shards, and cached latents."""

import os
from collections.abc import Iterator
from glob import glob
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from modeling_dina.options import loading

from .manifests import TABLE_SUFFIXES, Manifest, parquet_records
from .rows import Row

# Columns and WebDataset extensions with the prompt, if no column is given; the first that a row has is used.
PROMPT_COLUMNS = ("prompt", "caption", "text", "txt", "json")
KEY_COLUMNS = ("key", "__key__")
WEBDATASET_IMAGES = ("jpg", "jpeg", "png", "webp")


class Source(Protocol):
    """Rows in a fixed order, in pieces that can be read one by one.

    Attributes:
        pieces: number of pieces.
        total: number of rows; None if it is unknown before they are read.
        has_latents: rows have latents in place of images.
        identity: what the rows depend on, as JSON values.
    """

    pieces: int
    has_latents: bool
    identity: dict[str, Any]

    @property
    def total(self) -> int | None: ...

    def read(self, piece: int, start: int) -> Iterator[Row]:
        """Read the rows of a piece from number `start` on. Raises a ValueError if the piece is damaged."""


class ManifestSource:
    """A manifest as one piece. Paths of images are relative to its folder.

    Args:
        path: as in `Manifest`.
    """

    pieces = 1
    has_latents = False

    def __init__(self, path: Path):
        self._manifest = Manifest(path)
        self._folder = path.parent.resolve()
        self.total = len(self._manifest)
        self.identity = {"manifest": self._manifest.fingerprint(), "folder": str(self._folder)}

    def read(self, piece: int, start: int) -> Iterator[Row]:
        for row in self._manifest.read(start):
            yield row._replace(image=self._locate(row.image))

    def _locate(self, image: Any) -> Any:
        if isinstance(image, dict) and image.get("bytes") is None and isinstance(image.get("path"), str):
            return self._locate(image["path"])
        return str(self._folder / image) if isinstance(image, str) and image.strip() else image


class DatasetSource:
    """A data set that `datasets` streams. Its files are the pieces.

    Args:
        source: a folder of images with `metadata.csv` or of Parquet files, a pattern of WebDataset shards such as
            `"shards/*.tar"`, or a Hub id.
        split: name of the split.
        image_column: column with images; None uses every column of the type `Image`, and of these the first that a
            row has.
        prompt_column: column with prompts; None uses the first of `PROMPT_COLUMNS`.
        options: further arguments of `datasets.load_dataset`.

    Raises:
        ValueError: the data set cannot be loaded or lacks a column.
    """

    has_latents = False
    total = None

    def __init__(
        self,
        source: str,
        split: str = "train",
        image_column: str | None = None,
        prompt_column: str | None = None,
        **options,
    ):
        import datasets

        self._source = source
        with loading("source", source):
            if source.endswith(".tar"):
                image = datasets.Image(decode=False)
                text = datasets.Value("string")
                # Given explicitly, the types of images may differ between samples.
                features = datasets.Features(
                    {
                        **dict.fromkeys(WEBDATASET_IMAGES, image),
                        "txt": text,
                        "json": datasets.Json(),
                        "__key__": text,
                        "__url__": text,
                    }
                )
                options |= {"data_files": {split: source}, "features": features}
                source = "webdataset"
            data = datasets.load_dataset(source, split=split, streaming=True, **options)
            columns = dict(data.features or dict.fromkeys(next(iter(data))))
        found = [name for name, kind in columns.items() if isinstance(kind, datasets.Image)]
        self._images = _choose("image_column", image_column, found, columns)
        self._prompts = _choose("prompt_column", prompt_column, [c for c in PROMPT_COLUMNS if c in columns], columns)
        for name in self._images:
            if isinstance(columns[name], datasets.Image):
                data = data.cast_column(name, datasets.Image(decode=False))
        keys = [name for name in KEY_COLUMNS if name in columns]
        self._data = data.select_columns([*self._images, *self._prompts, *keys])
        self._keys = keys
        self.pieces = data.num_shards
        self.identity = {
            "source": os.path.abspath(self._source) if os.path.exists(self._source) else self._source,
            "split": split,
            "pieces": self.pieces,
            "image_column": image_column,
            "prompt_column": prompt_column,
        }

    def read(self, piece: int, start: int) -> Iterator[Row]:
        part = self._data.shard(num_shards=self.pieces, index=piece)
        with loading("source", f"piece {piece} of {self._source}"):
            for record in part.skip(start) if start else part:
                key = next((str(record[name]) for name in self._keys if record[name] is not None), None)
                image = next((record[name] for name in self._images if record[name] is not None), None)
                prompt = next((record[name] for name in self._prompts if record[name] is not None), None)
                yield Row(key, _prompt_of(prompt), image)


def _choose(argument: str, given: str | None, found: list[str], columns: dict[str, Any]) -> list[str]:
    if given is not None:
        found = [given] if given in columns else []
    if not found:
        raise ValueError(f"{argument}: expected one of the columns {sorted(columns)}, got {given}")
    return found


def _prompt_of(value: Any) -> Any:
    """The prompt in a value, which may be the content of a WebDataset's `.json`."""
    if isinstance(value, dict):
        return next((value[name] for name in PROMPT_COLUMNS if name in value), None)
    return value


class LatentSource:
    """Cached latents in a folder written by `python -m training.encode_latents`. Its shards are the pieces; each pair
    gives two rows, with the keys INDEX-a and INDEX-b.

    Args:
        folder: the folder.

    Raises:
        ValueError: a shard is damaged or has other columns.
    """

    has_latents = True

    def __init__(self, folder: Path):
        self._paths = _latent_shards(folder)
        self.pieces = len(self._paths)
        self.total = 0
        for path in self._paths:
            with loading("source", path):
                self.total += 2 * pq.read_metadata(path).num_rows
        self.identity = {"source": str(folder.resolve()), "pieces": self.pieces, "rows": self.total}

    def read(self, piece: int, start: int) -> Iterator[Row]:
        columns = ["index", "prompt", "latents_a", "latents_b"]
        skipped = start % 2
        try:
            for record in parquet_records(self._paths[piece], columns, start // 2):
                for side in "ab"[skipped:]:
                    yield Row(f"{record['index']}-{side}", record["prompt"], record[f"latents_{side}"])
                skipped = 0
        except pa.ArrowException as error:
            raise ValueError(f"source: cannot read {self._paths[piece]}: {error}") from error


def _latent_shards(folder: Path) -> list[Path]:
    return sorted((folder / "data").glob("train-*-of-*.parquet")) if (folder / "encoding.json").is_file() else []


def open_source(
    source: str, *, split: str = "train", image_column: str | None = None, prompt_column: str | None = None, **options
) -> Source:
    """Open a source by its kind: a manifest, a folder of cached latents, or anything that `DatasetSource` reads.

    Args:
        source: path, pattern or Hub id.
        split, image_column, prompt_column, options: as in `DatasetSource`.

    Raises:
        ValueError: there is no such source, or it lacks a column.
    """
    path = Path(source)
    if path.suffix.lower() in TABLE_SUFFIXES:
        return ManifestSource(path)
    if _latent_shards(path):
        return LatentSource(path)
    if path.is_dir() and glob(f"{source}/*.tar"):
        source = f"{source}/*.tar"
    return DatasetSource(source, split, image_column, prompt_column, **options)
