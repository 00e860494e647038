"""Pairs of the package's own schema are read from disk in both layouts; a source without pairs is an error."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from training.preference_data.schema import PAIR_FEATURES, as_pairs
from training.preference_data.sources import load_pairs


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
        load_pairs(str(tmp_path / "all.json"), "hpdv3")


@pytest.mark.parametrize("source_format", ["hpdv3", "hpdv2", "image_reward"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "source: expected preference pairs, got none"),
        ("null", "annotations: expected a list of rows in .*, got NoneType"),
        ("{cut", "annotations: cannot read"),
        ('["a cat"]', "row 0: expected an object, got str"),
    ],
)
def test_annotations_without_rows(tmp_path, source_format, content, message):
    (tmp_path / "all.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        load_pairs(str(tmp_path / "all.json"), source_format)


COLUMNS = {
    "pick_a_pic": ["caption", "jpg_0", "jpg_1", "label_0", "has_label", "are_different"],
    "reference_cache": ["prompt", "latent1", "latent2"],
}


@pytest.mark.parametrize("source_format", COLUMNS)
def test_parquet_without_rows(tmp_path, source_format):
    """Written by pyarrow: a row group with no rows."""
    empty = pa.table({name: pa.array([], pa.string()) for name in COLUMNS[source_format]})
    pq.write_table(empty, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"folder: expected rows in .*, got none"):
        load_pairs(str(tmp_path), source_format)
    if source_format == "reference_cache":  # one such file among others takes nothing away
        filled = pa.table({name: ["text"] for name in COLUMNS[source_format]})
        pq.write_table(filled, tmp_path / "b.parquet")
        assert len(load_pairs(str(tmp_path), source_format)) == 1


def test_own_schema_without_rows(pairs, tmp_path):
    """Of which `datasets` makes an error of its own."""
    pairs.select([]).save_to_disk(tmp_path / "saved")
    (tmp_path / "hub").mkdir()
    pairs.select([]).to_parquet(tmp_path / "hub" / "train.parquet")
    for folder in ("saved", "hub"):
        with pytest.raises(ValueError, match=f"source: cannot load .*{folder}"):
            load_pairs(str(tmp_path / folder))
    assert len(as_pairs(pairs.select([]))) == 0
