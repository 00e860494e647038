"""Duplicates and leaks are found by what is seen and said, not by file names or bytes."""

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image

from training.preference_data.overlap import Overlap, find_duplicates, find_overlap
from training.preference_data.schema import PAIR_FEATURES


@pytest.fixture
def picture(tmp_path):
    """Path of a picture by number, in a format."""

    def make(number, suffix="png"):
        path = tmp_path / f"{number}.{suffix}"
        pixels = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path, **({"lossless": True} if suffix == "webp" else {}))
        return str(path)

    return make


def pairs(*rows):
    prompts, firsts, seconds = zip(*rows, strict=True)
    labels = {"target": [1.0] * len(rows), "weight": [1.0] * len(rows), "source": ["x"] * len(rows)}
    return Dataset.from_dict(
        {"prompt": prompts, "image_a": firsts, "image_b": seconds, **labels}, features=PAIR_FEATURES
    )


def test_overlap_by_prompt_and_by_picture(picture, tmp_path):
    train = pairs(
        ("A  Cat", picture(0), picture(1)),  # the prompt of the test set, spelt otherwise
        ("a dog", picture(2), picture(3, "webp")),  # its second picture in another container
        ("a cow", picture(4), picture(5)),
        ("a \uff43\uff41\uff54", picture(6), picture(10)),  # both; the prompt in full-width letters
        ("a pig", str(tmp_path / "missing.png"), picture(7)),
    )
    test = pairs(
        ("a cat", picture(3), picture(8)), ("a hen", picture(9), picture(10)), ("x", str(tmp_path / "no.png"), "")
    )
    assert find_overlap(train, test) == Overlap(prompts=[0, 3], images=[1, 3])
    assert find_overlap(test, train) == Overlap(prompts=[0], images=[0, 1])


def test_duplicates_in_either_order(picture, tmp_path):
    missing = str(tmp_path / "missing.png")
    data = pairs(
        ("a cat", picture(0), picture(1)),
        ("a cat", picture(0), picture(2)),
        ("A cat", picture(1, "webp"), picture(0, "webp")),
        ("a dog", picture(0), picture(1)),
        ("a hen", missing, picture(0)),
        ("a hen", missing, picture(0)),
    )
    assert find_duplicates(data) == [[0, 2]]
    assert find_duplicates(data.select([0, 1, 3])) == []
