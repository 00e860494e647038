"""The pairs of pictures that people vote on, and the order in which they see them.

Pairs are recorded in a file beside the votes, so that votes can be used without their source. A pair is identified by
its contents: votes belong to it even if files are moved, and the same pair from two rows of a source is one pair.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from modeling_dina.files import write_text
from training.preference_data.candidates import Candidates

PAIRS_FILE = "pairs.jsonl"
PICTURES_FOLDER = "pictures"


class Pair(NamedTuple):
    """
    Attributes:
        key: hash of the prompt and of the contents of both files, in either order; sixteen hexadecimal digits.
        prompt: prompt of both pictures.
        image_a, image_b: absolute paths of the pictures, in the order of their hashes.
    """

    key: str
    prompt: str
    image_a: str
    image_b: str


class Collected(NamedTuple):
    """
    Attributes:
        pairs: different pairs of different pictures.
        duplicates: number of pairs of the source that repeat another one.
        failures: {"name", "error"} of unusable rows and pairs of the source.
    """

    pairs: list[Pair]
    duplicates: int
    failures: list[dict[str, str]]


def collect_pairs(candidates: Candidates, folder: Path) -> Collected:
    """
    The pairs of a source that can be voted on. Files are read, but not decoded.

    Args:
        candidates: images and pairs of the source.
        folder: folder of the votes. Pictures that are not files are written to `folder`/pictures.

    Raises:
        ValueError: there is no such pair.
    """
    failures = list(candidates.failures)
    files: dict[int, tuple[str, str] | None] = {}
    for row in sorted({*candidates.first.tolist(), *candidates.second.tolist()}):
        cell = candidates.images[row]["image"]
        try:
            files[row] = _hashed_file(cell, folder)
        except (OSError, ValueError) as error:
            files[row] = None
            name = (cell or {}).get("path") or f"image {row}"
            failures.append({"name": name, "error": f"image: expected a file that can be read, got {error}"})
    prompts = candidates.images["prompt"][:]
    pairs: dict[str, Pair] = {}
    duplicates = 0
    for first, second in zip(candidates.first.tolist(), candidates.second.tolist(), strict=True):
        readable = [file for file in (files[first], files[second]) if file is not None]
        if len(readable) < 2:
            continue
        (hash_a, image_a), (hash_b, image_b) = sorted(readable)
        if hash_a == hash_b:
            failures.append({"name": f"{image_a}, {image_b}", "error": "images: expected two, got the same one twice"})
            continue
        key = hashlib.sha256(json.dumps([prompts[first], hash_a, hash_b]).encode()).hexdigest()[:16]
        duplicates += key in pairs
        pairs.setdefault(key, Pair(key, prompts[first], image_a, image_b))
    if not pairs:
        raise ValueError(f"source: expected a pair of different pictures that can be read, got none: {failures[:3]}")
    return Collected(list(pairs.values()), duplicates, failures)


def _hashed_file(cell: dict | None, folder: Path) -> tuple[str, str]:
    """Hash and absolute path of a picture in the form of `datasets.Image(decode=False)`."""
    if not cell or (cell["bytes"] is None and cell["path"] is None):
        raise ValueError("neither bytes nor a path")
    if cell["bytes"] is None:
        return hashlib.sha256(Path(cell["path"]).read_bytes()).hexdigest(), str(Path(cell["path"]).absolute())
    digest = hashlib.sha256(cell["bytes"]).hexdigest()
    path = folder / PICTURES_FOLDER / digest[:16]
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_bytes(cell["bytes"])
        partial.replace(path)
    return digest, str(path.absolute())


def record_pairs(folder: Path, pairs: Iterable[Pair]) -> None:
    """Add pairs to the file of `folder`. Pairs that are in it stay, so that votes on them stay usable."""
    recorded = read_pairs(folder) if (folder / PAIRS_FILE).exists() else {}
    recorded |= {pair.key: pair for pair in pairs}
    write_text(folder / PAIRS_FILE, "".join(json.dumps(pair._asdict()) + "\n" for pair in recorded.values()))


def read_pairs(folder: Path) -> dict[str, Pair]:
    """All pairs that were recorded in `folder`, by key.

    Raises:
        ValueError: there is no file of pairs, or it is damaged.
    """
    path = folder / PAIRS_FILE
    try:
        pairs = [Pair(**json.loads(line)) for line in path.read_text("utf-8").splitlines()]
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"out: expected a folder with pairs, got {folder}: {error}") from error
    return {pair.key: pair for pair in pairs}
