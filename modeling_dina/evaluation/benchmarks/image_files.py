"""Images that annotations refer to by path, as files on disk or in the archives of a repository."""

import hashlib
import io
import shutil
import tarfile
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from huggingface_hub import cached_assets_path
from PIL import Image

from modeling_dina.data.tables import Cell
from modeling_dina.evaluation.benchmarks.preference_set import Item
from modeling_dina.files import atomic_path
from modeling_dina.images_dina import load_image


class ImageFiles:
    """
    Finds images by the paths in annotations.

    Args:
        folder: folder of the data set.
        starts: subfolders of `folder` that paths may be relative to.
        archives: patterns of .zip files, of .tar files with any compression, or of numbered parts of such a file
            (.tar.gz.00, …).
    """

    def __init__(self, folder: Path, starts: tuple[str, ...] = ("",), archives: tuple[str, ...] = ()):
        self.folder = folder
        self._starts = starts
        self._archives = _find_archives(folder, archives)
        self._wanted: set[str] = set()
        self._unpacked: Path | None = None
        if self._archives:
            stats = [(str(part.resolve()), part.stat()) for parts in self._archives for part in parts]
            content = repr([(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats])
            place = hashlib.sha256(content.encode()).hexdigest()[:16]
            self._unpacked = cached_assets_path("dina-lrm", "benchmarks", place)

    def item(self, prompt: str, image: str | Cell) -> Item:
        """Create the item for a prompt and an image, given by a path or a cell."""
        if isinstance(image, Cell):
            return Item(prompt, image.name, image.open)
        self._wanted.add(image)
        return Item(prompt, image, partial(self._open, image))

    def unpack(self) -> None:
        """
        Unpack the images of all items that are not on disk into the Hub's assets cache, unless they are there already.
        Paths refer to members as if each archive were unpacked in its folder, or in a subfolder with its name. Images
        that are in no archive remain missing.

        Raises:
            ValueError: an archive is damaged.
        """
        if self._unpacked is None:
            return
        missing = defaultdict(list)
        for path in sorted(self._wanted):
            if not self._locate(path).is_file():
                missing[PurePosixPath(path).name].append(path)
        if not missing:
            return
        for parts in self._archives:
            home = parts[0].parent.relative_to(self.folder).as_posix()
            stem = parts[0].name.split(".")[0]
            for member, file in _members(parts):
                places = [f"/{home}/{member}", f"/{home}/{stem}/{member}"]
                name = PurePosixPath(member).name
                for path in missing.get(name, []):
                    if any(place.endswith(f"/{PurePosixPath(path)}") for place in places):
                        with atomic_path(_unpacked_file(self._unpacked, path)) as writing, writing.open("wb") as copy:
                            shutil.copyfileobj(file, copy)
                        missing[name].remove(path)
                        break
                if not any(missing.values()):
                    return

    def _open(self, path: str) -> Image.Image:
        return load_image(self._locate(path))

    def _locate(self, path: str) -> Path:
        """The path of an image, which may not exist."""
        places = [self.folder / start / path for start in self._starts]
        if self._unpacked is not None:
            places.append(_unpacked_file(self._unpacked, path))
        return next((place for place in places if place.is_file()), places[0])


def _unpacked_file(folder: Path, path: str) -> Path:
    return folder / (hashlib.sha256(path.encode()).hexdigest()[:32] + PurePosixPath(path).suffix)


def _find_archives(folder: Path, patterns: tuple[str, ...]) -> list[list[Path]]:
    """Find the archives of a folder; each is a list of its parts in order."""
    archives = defaultdict(list)
    for path in sorted({path for pattern in patterns for path in folder.glob(pattern)}):
        archives[path.with_suffix("") if path.suffix[1:].isdigit() else path].append(path)
    return list(archives.values())


def _members(parts: list[Path]) -> Iterator[tuple[str, IO[bytes]]]:
    """Iterate over the names and contents of an archive's files."""
    try:
        if parts[0].suffix == ".zip":
            with zipfile.ZipFile(parts[0]) as archive:
                for info in archive.infolist():
                    if not info.is_dir():
                        with archive.open(info) as file:
                            yield info.filename.removeprefix("./"), file
        else:
            with tarfile.open(fileobj=_Joined(parts), mode="r|*") as tar:
                for member in tar:
                    content = tar.extractfile(member) if member.isfile() else None
                    if content is not None:
                        yield member.name.removeprefix("./"), content
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error) as error:
        raise ValueError(f"data: cannot read the archive {parts[0]}: {error}") from error


class _Joined(io.RawIOBase):
    """Concatenated files, for sequential reading."""

    def __init__(self, paths: list[Path]):
        self._content = _blocks(paths)

    def read(self, size: int = -1, /) -> bytes:
        """Return the next block. Its size may differ from `size`, which tarfile accepts."""
        return next(self._content, b"")


def _blocks(paths: list[Path]) -> Iterator[bytes]:
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                yield block
