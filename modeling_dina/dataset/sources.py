"""Sources of rows: manifests, data sets of the library `datasets`, WebDataset shards, and cached latents."""

import json
import os
from collections.abc import Iterator, Sequence
from glob import glob
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from modeling_dina.options import loading

from .manifests import TABLE_SUFFIXES, Manifest, parquet_records
from .rows import Row, text_of

# Columns and WebDataset extensions with the prompt, if no column is given; the first that a row has is used.
PROMPT_COLUMNS = ("prompt", "caption", "text", "txt", "json")
KEY_COLUMNS = ("key", "__key__")


class Source(Protocol):
    """Rows in a fixed order, in pieces that can be read one by one.

    Attributes:
        pieces: number of pieces.
        lengths: numbers of rows of the pieces; None if they are unknown before the rows are read.
        has_latents: rows have latents in place of images.
        group_column: column with the names of groups, if rows have one.
        identity: what the rows depend on, as JSON values.
    """

    pieces: int
    has_latents: bool
    group_column: str | None
    identity: dict[str, Any]

    @property
    def lengths(self) -> list[int] | None: ...

    def read(self, piece: int, start: int) -> Iterator[Row]:
        """Read the rows of a piece from number `start` on. Raises a ValueError if the piece is damaged."""


class ManifestSource:
    """A manifest as one piece. Paths of images are relative to its folder.

    Args:
        path, group_column: as in `Manifest`.
    """

    pieces = 1
    has_latents = False

    def __init__(self, path: Path, group_column: str | None = None):
        self._manifest = Manifest(path, group_column)
        self.group_column = group_column
        self._folder = path.parent.resolve()
        self.lengths = [len(self._manifest)]
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
        subset: name of the subset (configuration), if the data set has several.
        image_column: column with images; None uses every column of the type `Image`, and of these the first that a
            row has.
        prompt_column: column with prompts; None uses the first of `PROMPT_COLUMNS`.
        group_column: column with the names of groups, if rows have one; of a WebDataset, a field of `.json`. "prompt"
            always stands for the prompt.
        options: further arguments of `datasets.load_dataset_builder`, such as `revision`.

    Raises:
        ValueError: the data set cannot be loaded or lacks a column.
    """

    has_latents = False
    lengths = None

    def __init__(
        self,
        source: str,
        split: str = "train",
        subset: str | None = None,
        image_column: str | None = None,
        prompt_column: str | None = None,
        group_column: str | None = None,
        **options,
    ):
        import datasets

        from .webdatasets import open_builder

        self._source = source
        with loading("source", source):
            builder, self._is_tar = open_builder(source, split, name=subset, **options)
            data = builder.as_streaming_dataset(split)
            columns = dict(data.features or dict.fromkeys(next(iter(data))))
        found = [name for name, kind in columns.items() if isinstance(kind, datasets.Image)]
        self._images = _choose("image_column", image_column, found, columns)
        self._prompts = _choose("prompt_column", prompt_column, [c for c in PROMPT_COLUMNS if c in columns], columns)
        self.group_column = group_column
        used = [*self._images, *self._prompts]
        if group_column not in (None, "prompt"):
            used += _choose("group_column", "json" if self._is_tar else group_column, [], columns)
        for name in self._images:
            if isinstance(columns[name], datasets.Image):
                data = data.cast_column(name, datasets.Image(decode=False))
        self._keys = [name for name in KEY_COLUMNS if name in columns]
        self._data = data.select_columns(list(dict.fromkeys([*used, *self._keys])))
        self.pieces = data.num_shards
        origins = [each for files in (builder.config.data_files or {}).values() for each in files.origin_metadata]
        self.identity = {
            "source": os.path.abspath(self._source) if os.path.exists(self._source) else self._source,
            # Files on the Hub come from a repository and a commit.
            "commits": sorted({origin[1] for origin in origins if len(origin) == 2}),
            "split": split,
            "subset": subset,
            "pieces": self.pieces,
            "image_column": image_column,
            "prompt_column": prompt_column,
        }

    def read(self, piece: int, start: int) -> Iterator[Row]:
        part = self._data.shard(num_shards=self.pieces, index=piece)
        with loading("source", f"piece {piece} of {self._source}"):
            for record in part.skip(start) if start else part:
                yield self._row(record)

    def _row(self, record: dict[str, Any]) -> Row:
        key = next((str(record[name]) for name in self._keys if record[name] is not None), None)
        image = next((record[name] for name in self._images if record[name] is not None), None)
        try:
            prompt = next((self._value(record, name) for name in self._prompts if record[name] is not None), None)
            prompt = _field_of(prompt, PROMPT_COLUMNS)
            return Row(key, prompt, image, group=text_of(self._group_of(record, prompt)))
        except ValueError as error:
            return Row(key, error=str(error))

    def _value(self, record: dict[str, Any], name: str) -> Any:
        """The value of a column that may be a file of a WebDataset, which nobody has decoded."""
        value = record[name]
        if not self._is_tar or value is None:
            return value
        try:
            return json.loads(value) if name == "json" else value.decode()
        except (ValueError, RecursionError) as error:
            expected = "JSON" if name == "json" else "UTF-8 text"
            raise ValueError(f"{name}: expected {expected}, got {value[:40]!r}: {error}") from error

    def _group_of(self, record: dict[str, Any], prompt: Any) -> Any:
        if self.group_column is None or self.group_column == "prompt":
            return None if self.group_column is None else prompt
        fields = self._value(record, "json") if self._is_tar else record
        return fields.get(self.group_column) if isinstance(fields, dict) else None


def _choose(argument: str, given: str | None, found: list[str], columns: dict[str, Any]) -> list[str]:
    if given is not None:
        found = [given] if given in columns else []
    if not found:
        raise ValueError(f"{argument}: expected one of the columns {sorted(columns)}, got {given}")
    return found


def _field_of(value: Any, names: Sequence[str]) -> Any:
    """The first of these fields that a value has, if it is an object, such as the content of a WebDataset's `.json`;
    else the value."""
    if isinstance(value, dict):
        return next((value[name] for name in names if name in value), None)
    return value


class LatentSource:
    """Cached latents in a folder written by `python -m training.encode_latents`. Its shards are the pieces; each pair
    gives two rows, with the keys INDEX-a and INDEX-b.

    Args:
        folder: the folder.
        group_column: column with the names of groups, if rows have one.

    Raises:
        ValueError: a shard is damaged or has other columns.
    """

    has_latents = True

    def __init__(self, folder: Path, group_column: str | None = None):
        self._paths, self.group_column = _latent_shards(folder), group_column
        self.pieces = len(self._paths)
        self.lengths: list[int] = []
        for path in self._paths:
            with loading("source", path):
                metadata = pq.read_metadata(path)
            self.lengths.append(2 * metadata.num_rows)
            if group_column is not None:
                columns = dict.fromkeys(metadata.schema.to_arrow_schema().names)
                _choose("group_column", group_column, [], columns)
        self.identity = {"source": str(folder.resolve()), "pieces": self.pieces, "rows": sum(self.lengths)}

    def read(self, piece: int, start: int) -> Iterator[Row]:
        columns = ["index", "prompt", "latents_a", "latents_b", *filter(None, [self.group_column])]
        skipped = start % 2
        try:
            for record in parquet_records(self._paths[piece], columns, start // 2):
                group = text_of(self.group_column and record[self.group_column])
                for side in "ab"[skipped:]:
                    key, latent = f"{record['index']}-{side}", record[f"latents_{side}"]
                    yield Row(key, record["prompt"], latent, group=group)
                skipped = 0
        except pa.ArrowException as error:
            raise ValueError(f"source: cannot read {self._paths[piece]}: {error}") from error


def _latent_shards(folder: Path) -> list[Path]:
    return sorted((folder / "data").glob("train-*-of-*.parquet")) if (folder / "encoding.json").is_file() else []


def open_source(source: str, *, group_column: str | None = None, **options) -> Source:
    """Open a source by its kind: a manifest, a folder of cached latents, or anything that `DatasetSource` reads.

    Args:
        source: path, pattern or Hub id.
        group_column, options: as in `DatasetSource`, for which alone the options are.

    Raises:
        ValueError: there is no such source, it lacks a column, or an option is not for this kind of source.
    """
    path = Path(source)
    if path.suffix.lower() in TABLE_SUFFIXES:
        _check_unused("a manifest, whose columns are prompt and image", options)
        return ManifestSource(path, group_column)
    if _latent_shards(path):
        _check_unused("cached latents", options)
        return LatentSource(path, group_column)
    if path.is_dir() and glob(f"{source}/*.tar"):
        source = f"{source}/*.tar"
    return DatasetSource(source, group_column=group_column, **options)


def _check_unused(kind: str, options: dict[str, Any]) -> None:
    """Raise a ValueError for an option that a kind of source does not have."""
    for name in ("image_column", "prompt_column", "subset", "revision"):
        if options.get(name) is not None:
            raise ValueError(f"{name}: expected none for {kind}, got {options[name]}")
