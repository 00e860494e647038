"""Pairs in the one schema: accepted from images of any storage, refused when a label makes no sense."""

from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, Image
from PIL import Image as PILImage

from training.preference_data.schema import PAIR_FEATURES, as_pairs, contents_fingerprint, fingerprint


def columns(**changes):
    values = {
        "prompt": ["a cat", "a dog"],
        "image_a": ["a.png", "b.png"],
        "image_b": ["c.png", "d.png"],
        "target": [1.0, 0.5],
        "weight": [1.0, 0.0],
        "source": ["x", "y"],
    }
    return Dataset.from_dict(values | changes)


def test_paths_bytes_and_decoded_images_become_undecoded_images():
    picture = PILImage.fromarray(np.full((4, 5, 3), 7, np.uint8))
    data = columns().add_column("more", [1, 2])
    assert as_pairs(data).features == PAIR_FEATURES
    assert as_pairs(data)[0]["image_a"] == {"bytes": None, "path": "a.png"}

    decoded = Dataset.from_dict(columns()[:1] | {"image_a": [picture]}).cast_column("image_a", Image())
    cell = as_pairs(decoded)[0]["image_a"]
    assert cell["bytes"].startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": [1.0, 1.5]}, r"target: expected numbers within \[0, 1\], got 1.5 in row 1 of 2"),
        ({"target": [float("nan"), 0.5]}, "target: .* got nan in row 0"),
        ({"weight": [1.0, -1.0]}, "weight: expected numbers >= 0, got -1.0 in row 1"),
        ({"weight": [float("inf"), 1.0]}, "weight: .* got inf in row 0"),
    ],
)
def test_labels_without_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        as_pairs(columns(**changes))


def test_a_missing_column_is_named():
    with pytest.raises(ValueError, match="got none named target, source"):
        as_pairs(columns().remove_columns(["target", "source"]))


def test_fingerprint_tells_prompts_targets_and_order_apart():
    prints = [
        fingerprint(columns()),
        fingerprint(columns(target=[0.9, 0.5])),
        fingerprint(columns(prompt=["a cat", "a cow"])),
        fingerprint(columns().select([1, 0])),
    ]
    assert len(set(prints)) == 4
    assert fingerprint(columns(weight=[2.0, 2.0])) == prints[0]


def test_contents_are_told_apart_by_labels_places_and_lengths(tmp_path, monkeypatch):
    def contents(**changes):
        return contents_fingerprint(as_pairs(columns(**changes)))

    def with_bytes(*lengths):
        cells = [{"bytes": b"x" * length, "path": "a.png"} for length in lengths]
        return contents(image_a=cells, image_b=cells)

    here = contents()
    others = [
        contents(weight=[2.0, 2.0]),
        contents(source=["x", "x"]),
        contents(image_b=["d.png", "c.png"]),
        contents(image_b=["d.png", None]),
        with_bytes(3, 4),
        with_bytes(4, 3),
    ]
    assert len({here, *others}) == 7
    assert contents(image_a=[str(Path(name).absolute()) for name in ("a.png", "b.png")]) == here
    assert contents(target=[0.0, 0.0]) == here
    embedded = with_bytes(3, 4)
    monkeypatch.chdir(tmp_path)  # the same relative paths are other images here
    assert contents() != here
    assert with_bytes(3, 4) == embedded
