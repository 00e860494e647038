"""Files that are whole or not there: the results of a run as JSON, and line by line while it goes on, so that an
interrupted run goes on where it stopped."""

import json
import os
from pathlib import Path
from typing import Any


class Journal:
    """
    A file of JSON lines: the settings that the results belong to, then the results. Each batch of them is on the disk
    before the next is begun; a line cut off by a crash is forgotten.

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
        whole = content[: content.rfind(b"\n") + 1]
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

    def append(self, *records: dict[str, Any]) -> None:
        """Write results, and wait until the disk has them."""
        with self.path.open("ab") as file:
            file.write(b"".join(_line(record) for record in records))
            file.flush()
            os.fsync(file.fileno())

    def remove(self) -> None:
        """Delete the file, once what it was for is written elsewhere."""
        self.path.unlink()


def _differences(expected: dict[str, Any], found: Any) -> str:
    if not isinstance(found, dict):
        return f"expected {expected}, got {found}"
    names = [name for name in {**expected, **found} if expected.get(name) != found.get(name)]
    return "; ".join(f"{name}: expected {expected.get(name)}, got {found.get(name)}" for name in names)


def _line(record: dict[str, Any]) -> bytes:
    return json.dumps(record, allow_nan=False).encode() + b"\n"


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Whole or not at all; NaN is no JSON."""
    writing = path.with_name(f".{path.name}.writing")
    writing.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
    os.replace(writing, path)
