"""Files and folders that are complete or absent, and results that an interrupted run does not compute again."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A path at which the block writes a file or a folder, which replaces `path` when the block ends.

    It is a hidden name beside `path`, `.name.partial.suffix`, where nothing is yet. If the block raises an exception,
    what it wrote is removed and `path` stays as it was. Files are flushed to disk before they are renamed, so that
    `path` is complete or absent even after a crash of the machine. Folders above `path` are created.

    Args:
        path: of the file or folder. Whatever is there is replaced, except that no file replaces a folder.
    """
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove(partial)  # of a process that was killed
    try:
        yield partial
        commit(partial, path)
    finally:
        _remove(partial)


def commit(partial: Path, path: Path) -> None:
    """Flush a file, or the files of a folder, to disk and rename it to `path`, replacing what was there."""
    for file in partial.rglob("*") if partial.is_dir() else [partial]:
        if file.is_file():
            _flush(file)
    if partial.is_dir() and os.path.lexists(path):
        # A folder cannot be renamed to the name of one that is not empty.
        outgoing = path.with_name(f".{path.name}.outgoing")
        _remove(outgoing)
        os.rename(path, outgoing)
        os.rename(partial, path)
        _remove(outgoing)
    else:
        os.replace(partial, path)


def _flush(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file as `atomic_path` does."""
    with atomic_path(path) as partial:
        partial.write_text(text, "utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file as `atomic_path` does.

    Raises:
        ValueError: `content` contains NaN or infinity, which JSON does not have.
    """
    write_text(path, _json_text(content))


def _json_text(content: Any) -> str:
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def load_or_compute(path: Path, make: Callable[[], Any]) -> Any:
    """The content of the JSON file `path`. If there is no such file, it is written with what `make` returns."""
    if not path.exists():
        write_json(path, make())
    return json.loads(path.read_text("utf-8"))


def check_settings(path: Path, settings: dict[str, Any]) -> None:
    """Record the settings of a folder of results, so that no other run adds results with other settings. Several
    processes may begin a folder at the same time.

    Args:
        path: JSON file in this folder.
        settings: what the results depend on.

    Raises:
        ValueError: the folder has other settings.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        # Unlike that of `atomic_path`, the name of this file is of this process alone.
        partial = path.with_name(f".{path.stem}.{uuid4().hex}{path.suffix}")
        partial.write_text(_json_text(settings), "utf-8")
        commit(partial, path)
    begun = json.loads(path.read_text("utf-8"))
    for name, value in settings.items():
        if begun.get(name) != value:
            raise ValueError(f"{name}: expected {begun.get(name)}, with which {path.parent} was begun, got {value}")


class Journal:
    """A file of JSON lines: the settings that the results belong to, then the results. Each batch of them is on the
    disk before the next is begun; a line cut off by a crash is forgotten.

    Args:
        path: of the file. It is begun if there is none, and gone on with if its settings are these.
        settings: what the results depend on.

    Attributes:
        records: the results it held when it was opened.

    Raises:
        ValueError: the file is no journal, or one of other settings. It is left as it is.
    """

    def __init__(self, path: Path, settings: dict[str, Any]):
        header = _line(settings)
        content = path.read_bytes() if path.exists() else b""
        whole = _whole_lines(content)
        self.path = path
        self.records: list[dict] = []
        if not whole and header.startswith(content):
            path.write_bytes(header)
            return
        try:
            found, *self.records = [json.loads(line) for line in whole.splitlines()]
        except ValueError as error:
            raise ValueError(f"out: expected the journal of an interrupted run, got {path}; move it away") from error
        if _line(found) != header:
            raise ValueError(
                f"out: {path} is the journal of a run with other settings; {_differences(settings, found)}; "
                f"finish that run, or delete its journal"
            )
        os.truncate(path, len(whole))

    @staticmethod
    def read(path: Path) -> list[dict]:
        """The results in a journal, which another process may be writing. The file is not changed.

        Raises:
            OSError: the file cannot be read.
            ValueError: a complete line is no JSON.
        """
        return [json.loads(line) for line in _whole_lines(path.read_bytes()).splitlines()[1:]]

    def append(self, *records: dict[str, Any]) -> None:
        """Write results, and wait until the disk has them. If that fails, for example because the disk is full, the
        file stays as it was."""
        content = b"".join(_line(record) for record in records)
        # Without a buffer, whose rest would be written when the file is closed.
        with self.path.open("ab", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            try:
                while content:
                    content = content[file.write(content) :]
                os.fsync(file.fileno())
            except BaseException:
                file.truncate(end)
                raise

    def remove(self) -> None:
        """Delete the file, once what it was for is written elsewhere."""
        self.path.unlink()


def _differences(expected: dict[str, Any], found: Any) -> str:
    if not isinstance(found, dict):
        return f"expected {expected}, got {found}"
    names = [name for name in {**expected, **found} if expected.get(name) != found.get(name)]
    return "; ".join(f"{name}: expected {expected.get(name)}, got {found.get(name)}" for name in names)


def _whole_lines(content: bytes) -> bytes:
    """The content without a last line that was cut off."""
    return content[: content.rfind(b"\n") + 1]


def _line(record: dict[str, Any]) -> bytes:
    return json.dumps(record, allow_nan=False).encode() + b"\n"
