"""Find duplicate pairs, and training pairs that share a prompt or an image with a test set.

As a command: `python -m training.preference_data.overlap TRAIN TEST --format hpdv3 --test-format hpdv2`.
"""

import hashlib
import json
import unicodedata
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from datasets import Dataset, Features, Value

from modeling_dina.data.images import open_image
from modeling_dina.options import exit_on_bad_input, loading
from training.preference_data.sources import Format, load_pairs

_HASHES = Features({"prompt": Value("string"), "image_a": Value("string"), "image_b": Value("string")})


@dataclass(frozen=True)
class Overlap:
    """
    Rows of a training set that overlap with a test set, in ascending order.

    Attributes:
        prompts: rows whose prompt is in the test set, up to case, spacing and Unicode form.
        images: rows with an image that has the same pixels as one in the test set.
    """

    prompts: list[int]
    images: list[int]


def hash_pairs(pairs: Dataset, *, num_proc: int | None = None) -> Dataset:
    """
    Compute what identifies a pair: the prompt, normalised in case, spacing and Unicode form, and a hash of each
    image's pixels, which is None if the image cannot be read.

    Args:
        pairs: pairs from `schema.as_pairs`.
        num_proc: number of processes that read images.

    Returns:
        A data set with the text columns prompt, image_a and image_b, in the order of `pairs`.
    """
    return pairs.select_columns(list(_HASHES)).map(
        _hash_row, features=_HASHES, num_proc=num_proc, desc="Hashing images"
    )


def find_overlap(train: Dataset, test: Dataset) -> Overlap:
    """
    Find training rows that share a prompt or an image with a test set.

    Args:
        train, test: results of `hash_pairs`. An unreadable image equals no other.
    """
    prompts, images = set(test["prompt"]), {*test["image_a"], *test["image_b"]} - {None}
    pairs = zip(train["image_a"], train["image_b"], strict=True)
    return Overlap(
        prompts=[index for index, prompt in enumerate(train["prompt"]) if prompt in prompts],
        images=[index for index, pair in enumerate(pairs) if not images.isdisjoint(pair)],
    )


def find_duplicates(pairs: Dataset) -> list[list[int]]:
    """
    Find rows with the same prompt and the same two images, in either order.

    Rows of a group may have different targets, from several annotators. Rows with unreadable images are left out.

    Args:
        pairs: result of `hash_pairs`.

    Returns:
        Groups of two or more rows, each in ascending order.
    """
    groups = defaultdict(list)
    for index, row in enumerate(pairs):
        images = row["image_a"], row["image_b"]
        if None not in images:
            groups[row["prompt"], frozenset(images)].append(index)
    return [rows for rows in groups.values() if len(rows) > 1]


def _hash_row(row: dict) -> dict:
    return {
        "prompt": " ".join(unicodedata.normalize("NFKC", row["prompt"]).casefold().split()),
        "image_a": _hash_image(row["image_a"]),
        "image_b": _hash_image(row["image_b"]),
    }


def _hash_image(cell: dict) -> str | None:
    """SHA-256 of the pixels, not of the file, so that the file format and metadata do not matter."""
    try:
        image = open_image(cell)
    except ValueError:
        return None
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()


def main(
    train: Annotated[str, typer.Argument(help="Training pairs: annotations, a folder, or a data set on the Hub.")],
    test: Annotated[str, typer.Argument(help="Test pairs, in the same form as TRAIN.")],
    train_format: Annotated[Format, typer.Option("--format", help="Format of the training pairs.")] = "pairs",
    test_format: Annotated[Format, typer.Option(help="Format of the test pairs.")] = "pairs",
    image_root: Annotated[
        Path | None, typer.Option(help="Folder that image paths of the training pairs are relative to.")
    ] = None,
    test_image_root: Annotated[
        Path | None, typer.Option(help="Folder that image paths of the test pairs are relative to.")
    ] = None,
    num_proc: Annotated[int, typer.Option(help="Number of processes that read images.", min=1)] = 4,
) -> None:
    """Print, as JSON, duplicate training rows and those that share a prompt or an image with the test set."""
    with exit_on_bad_input():
        with loading("train", train):
            train_pairs = load_pairs(train, train_format, image_root)
        with loading("test", test):
            test_pairs = load_pairs(test, test_format, test_image_root)
    train_hashes, test_hashes = (hash_pairs(pairs, num_proc=num_proc) for pairs in (train_pairs, test_pairs))
    found = {"duplicates": find_duplicates(train_hashes), **asdict(find_overlap(train_hashes, test_hashes))}
    typer.echo(json.dumps({"rows": len(train_hashes), **found}))


app = typer.Typer(pretty_exceptions_enable=False)
app.command()(main)

if __name__ == "__main__":
    app()
