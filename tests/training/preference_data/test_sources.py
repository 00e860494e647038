"""Pairs of the package's own schema are read from disk in both layouts; a source without pairs is an error."""

import json

import pytest
from datasets import Dataset

from training.preference_data.schema import PAIR_FEATURES
from training.preference_data.sources import Format, load_pairs


@pytest.fixture
def pairs():
    return Dataset.from_dict(
        {
            "prompt": ["a cat"],
            "image_a": [{"bytes": b"a", "path": None}],
            "image_b": [{"bytes": b"b", "path": None}],
            "target": [0.25],
            "weight": [2.0],
            "source": ["test"],
        },
        features=PAIR_FEATURES,
    )


def test_saved_to_disk_or_as_parquet_like_on_the_hub(pairs, tmp_path):
    pairs.save_to_disk(tmp_path / "saved")
    (tmp_path / "hub" / "data").mkdir(parents=True)
    pairs.to_parquet(tmp_path / "hub" / "data" / "train-00000-of-00001.parquet")
    for folder in ("saved", "hub"):
        loaded = load_pairs(str(tmp_path / folder))
        assert loaded.features == PAIR_FEATURES
        assert loaded.to_list() == pairs.to_list()


def test_a_source_without_pairs(tmp_path):
    (tmp_path / "all.json").write_text(json.dumps([{"prompt": "p", "path1": "a", "path2": "b", "confidence": 0.5}]))
    with pytest.raises(ValueError, match="source: expected preference pairs, got none"):
        load_pairs(str(tmp_path / "all.json"), Format.hpdv3)
