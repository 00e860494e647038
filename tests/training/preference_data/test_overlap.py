"""Duplicates and leaks are found by what is seen and said, not by file names or bytes."""

import json
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image
from typer.testing import CliRunner

from training.preference_data.overlap import Overlap, app, find_duplicates, find_overlap, hash_pairs
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


def hashed(*rows):
    prompts, firsts, seconds = zip(*rows, strict=True)
    labels = {"target": [1.0] * len(rows), "weight": [1.0] * len(rows), "source": ["x"] * len(rows)}
    columns = {"prompt": prompts, "image_a": firsts, "image_b": seconds, **labels}
    return hash_pairs(Dataset.from_dict(columns, features=PAIR_FEATURES))


def test_overlap_by_prompt_and_by_picture(picture, tmp_path):
    train = hashed(
        ("A  Cat", picture(0), picture(1)),  # the prompt of the test set, spelt otherwise
        ("a dog", picture(2), picture(3, "webp")),  # its second picture in another container
        ("a cow", picture(4), picture(5)),
        ("a \uff43\uff41\uff54", picture(6), picture(10)),  # both; the prompt in full-width letters
        ("a pig", str(tmp_path / "missing.png"), picture(7)),
    )
    test = hashed(
        ("a cat", picture(3), picture(8)), ("a hen", picture(9), picture(10)), ("x", str(tmp_path / "no.png"), "")
    )
    assert find_overlap(train, test) == Overlap(prompts=[0, 3], images=[1, 3])
    assert find_overlap(test, train) == Overlap(prompts=[0], images=[0, 1])


def test_the_command_reads_published_formats(picture, tmp_path):
    names = [Path(picture(number)).name for number in range(4)]
    hpdv3 = [{"prompt": "a cat", "path1": names[0], "path2": names[1]}]
    hpdv3 += [{"prompt": "a dog", "path1": names[2], "path2": names[1]}] * 2
    hpdv2 = [{"prompt": "a cow", "image_path": names[2:], "human_preference": [0, 1]}]
    (tmp_path / "train.json").write_text(json.dumps(hpdv3))
    (tmp_path / "test.json").write_text(json.dumps(hpdv2))
    formats = "--format", "hpdv3", "--test-format", "hpdv2", "--num-proc", "1"
    result = CliRunner().invoke(app, [str(tmp_path / "train.json"), str(tmp_path / "test.json"), *formats])
    assert json.loads(result.stdout.splitlines()[-1]) == {
        "rows": 3,
        "duplicates": [[1, 2]],
        "prompts": [],
        "images": [1, 2],
    }


def test_duplicates_in_either_order(picture, tmp_path):
    missing = str(tmp_path / "missing.png")
    data = hashed(
        ("a cat", picture(0), picture(1)),
        ("a cat", picture(0), picture(2)),
        ("A cat", picture(1, "webp"), picture(0, "webp")),
        ("a dog", picture(0), picture(1)),
        ("a hen", missing, picture(0)),
        ("a hen", missing, picture(0)),
    )
    assert find_duplicates(data) == [[0, 2]]
    assert find_duplicates(data.select([0, 1, 3])) == []
