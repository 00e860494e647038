"""Public data sets as training pairs, from small files in the schemas that they are published in."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from modeling_dina.evaluation.benchmarks import BENCHMARKS
from training.preference_data.schema import PAIR_FEATURES
from training.preference_data.sources import load_pairs


def reader(source_format):
    return lambda source, image_root=None: load_pairs(str(source), source_format, image_root)


hpdv3, hpdv2, image_reward = map(reader, ("hpdv3", "hpdv2", "image_reward"))
pick_a_pic, reference_cache = map(reader, ("pick_a_pic", "reference_cache"))


@pytest.fixture
def annotations(tmp_path):
    """Writes records as a JSON file."""

    def write(records, name="all.json"):
        path = tmp_path / name
        path.write_text(json.dumps(records), "utf-8")
        return path

    return write


def hpdv3_row(**changes):
    row = {
        "prompt": "Ein Häschen",
        "choice_dist": [12.0, 7.0],
        "confidence": 0.9999907,
        "path1": "images/uuid1.jpg",
        "path2": "images/uuid2.jpg",
        "model1": "flux",
        "model2": "infinity",
    }
    return row | changes


def labels(dataset):
    columns = dataset["prompt"][:], paths(dataset, "image_a"), paths(dataset, "image_b"), dataset["target"][:]
    return list(zip(*columns, strict=True))


def paths(dataset, name):
    return [cell["path"].rpartition("/")[2] for cell in dataset[name][:]]


def test_hpdv3_filters_by_confidence_and_turns_votes_into_targets(annotations, tmp_path):
    path = annotations(
        [
            hpdv3_row(),
            hpdv3_row(confidence=0.949),
            hpdv3_row(confidence=0.95, choice_dist=[1.0, 9.0]),  # path1 is preferred: the 9 votes are its own
            hpdv3_row(confidence=None, choice_dist=None, model1="midjourney", model2="midjourney"),
        ]
    )
    pairs = hpdv3(path)
    assert pairs.features == PAIR_FEATURES
    assert pairs["target"][:] == [12 / 19, 0.9, 1.0]
    assert pairs[0] == {
        "prompt": "Ein Häschen",
        "image_a": {"bytes": None, "path": str(tmp_path / "images/uuid1.jpg")},
        "image_b": {"bytes": None, "path": str(tmp_path / "images/uuid2.jpg")},
        "target": 12 / 19,
        "weight": 1.0,
        "source": "hpdv3",
    }
    assert hpdv3(path, tmp_path / "elsewhere")[0]["image_a"]["path"] == str(tmp_path / "elsewhere/images/uuid1.jpg")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path2": None}, "row 0: expected the field path2, got none"),
        ({"choice_dist": [0.0, 0.0]}, r"row 0: choice_dist: expected .* got \[0.0, 0.0\]"),
        ({"choice_dist": [1.0]}, "choice_dist"),
        ({"choice_dist": 1.0}, "row 0: .*float"),
        ({"path1": 5}, "row 0: path1: expected a str, got 5"),
    ],
)
def test_hpdv3_names_the_row_that_is_wrong(annotations, changes, message):
    with pytest.raises(ValueError, match=message):
        hpdv3(annotations([hpdv3_row(**changes)]))


def test_annotations_that_do_not_exist(tmp_path):
    with pytest.raises(ValueError, match="annotations: expected a JSON or Parquet file"):
        hpdv3(tmp_path / "all.json")


@pytest.mark.parametrize("name", ["file_path", "image_path"])
def test_hpdv2_training_choices_are_hard(annotations, name):
    path = annotations(
        [
            {"human_preference": [1, 0], "prompt": "p", name: ["0.jpg", "1.jpg"]},
            {"human_preference": [0, 1], "prompt": "q", name: ["2.jpg", "3.jpg"]},
        ]
    )
    assert labels(hpdv2(path)) == [("p", "0.jpg", "1.jpg", 1.0), ("q", "2.jpg", "3.jpg", 0.0)]


@pytest.mark.parametrize("name", ["raw_annotations", "raw_annotation"])
def test_hpdv2_rankings_give_every_pair_its_share_of_votes(annotations, name):
    ranks = [[1, 2, 3], [1, 3, 2], [2, 1, 3], [1, 1, 2]]
    record = {
        "prompt": "p",
        "image_path": ["0.jpg", "1.jpg", "2.jpg"],
        "rank": [1, 2, 3],
        name: [{"rank": rank, "user_hash": str(index)} for index, rank in enumerate(ranks)],
    }
    assert labels(hpdv2(annotations([record]))) == [
        ("p", "0.jpg", "1.jpg", 2.5 / 4),  # two votes, one against, one tie
        ("p", "0.jpg", "2.jpg", 1.0),
        ("p", "1.jpg", "2.jpg", 3 / 4),
    ]


def test_training_and_evaluation_read_the_same_votes(annotations, tmp_path):
    record = {"prompt": "p", "image_path": ["0.jpg", "1.jpg", "2.jpg"], "rank": [1, 2, 2]}
    record["raw_annotations"] = [{"rank": rank} for rank in ([1, 2, 3], [1, 3, 2], [2, 1, 3])]
    path = annotations([record], "test.json")
    read = BENCHMARKS["hpdv2"].read(tmp_path, None).pairs()
    assert hpdv2(path)["target"][:] == read.target.tolist() == [2 / 3, 1.0, 2 / 3]
    assert read.label.tolist() == [1.0, 1.0, 0.5]


def test_hpdv2_rankings_of_another_length_are_refused(annotations):
    record = {"prompt": "p", "image_path": ["0.jpg", "1.jpg"], "raw_annotations": [{"rank": [1, 2, 3]}]}
    with pytest.raises(ValueError, match=r"row 0: expected rankings of 2 images, got rankings of \[3\]"):
        hpdv2(annotations([record]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"raw_annotations": [{"user_hash": "a"}]}, "row 0: .*rank"),
        ({"raw_annotations": [{"rank": [1, None]}]}, "row 0: expected .* ranks, got .*None"),
        ({"image_path": "0.jpg"}, "row 0: image_path: expected a list, got '0.jpg'"),
    ],
)
def test_hpdv2_names_the_row_that_is_wrong(annotations, changes, message):
    record = {"prompt": "p", "image_path": ["0.jpg", "1.jpg"], "raw_annotations": [{"rank": [1, 2]}]}
    with pytest.raises(ValueError, match=message):
        hpdv2(annotations([record | changes]))


def test_image_reward_metadata_is_grouped_by_prompt(tmp_path):
    def row(prompt_id, name, rank):
        return {
            "image_path": f"images/train/train_1/{name}.webp",
            "prompt_id": prompt_id,
            "prompt": f"prompt of {prompt_id}",
            "classification": "People",
            "image_amount_in_total": 3,
            "rank": rank,
            "overall_rating": 5,
            "image_text_alignment_rating": 5,
            "fidelity_rating": 6,
        }

    path = tmp_path / "metadata-train.parquet"
    rows = [row("1-1", "a", 2), row("2-2", "d", 1), row("1-1", "b", 1), row("1-1", "c", 2), row("2-2", "e", 2)]
    pq.write_table(pa.Table.from_pylist(rows), path)
    assert labels(image_reward(path)) == [
        ("prompt of 1-1", "a.webp", "b.webp", 0.0),
        ("prompt of 1-1", "a.webp", "c.webp", 0.5),
        ("prompt of 1-1", "b.webp", "c.webp", 1.0),
        ("prompt of 2-2", "d.webp", "e.webp", 1.0),
    ]


def test_image_reward_test_file(annotations):
    record = {"id": "7-7", "prompt": "p", "generations": ["7/a.webp", "7/b.webp"], "ranking": [2, 1]}
    pairs = image_reward(annotations([record], "test.json"))
    assert labels(pairs) == [("p", "a.webp", "b.webp", 0.0)]
    assert pairs["source"][:] == ["image_reward"]


def jpeg(value):
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(file, "JPEG")
    return file.getvalue()


def pick_a_pic_row(number, label_0, **changes):
    row = {
        "are_different": True,
        "best_image_uid": "u",
        "caption": f"caption {number}",
        "created_at": pa.scalar(number, pa.timestamp("ns")).as_py(),
        "has_label": True,
        "image_0_uid": "u",
        "image_0_url": "",
        "image_1_uid": "v",
        "image_1_url": "",
        "jpg_0": jpeg(number),
        "jpg_1": jpeg(100 + number),
        "label_0": label_0,
        "label_1": 1 - label_0,
        "model_0": "a",
        "model_1": "b",
        "ranking_id": number,
        "user_id": 1,
        "num_example_per_prompt": 1,
        "__index_level_0__": number,
    }
    return row | changes


def test_pick_a_pic_keeps_labelled_pairs_of_different_images(tmp_path):
    rows = [
        pick_a_pic_row(0, 1.0),
        pick_a_pic_row(1, 0.5),
        pick_a_pic_row(2, 0.0, has_label=False),
        pick_a_pic_row(3, 0.0, are_different=False),
        pick_a_pic_row(4, 0.0),
    ]
    (tmp_path / "data").mkdir()
    for shard, part in enumerate((rows[:2], rows[2:])):
        pq.write_table(pa.Table.from_pylist(part), tmp_path / "data" / f"train-{shard:05d}-of-00002.parquet")
    pairs = pick_a_pic(tmp_path)
    assert pairs.features == PAIR_FEATURES
    assert pairs["prompt"][:] == ["caption 0", "caption 1", "caption 4"]
    assert pairs["target"][:] == [1.0, 0.5, 0.0]
    assert pairs[2]["image_a"]["bytes"] == jpeg(4)
    assert pairs[2]["image_b"]["bytes"] == jpeg(104)
    assert pairs["source"][:] == ["pick_a_pic"] * 3


def test_parquet_without_the_columns_of_its_format(tmp_path):
    with pytest.raises(ValueError, match="folder: expected Parquet files"):
        pick_a_pic(tmp_path)
    pq.write_table(pa.table({"prompt": ["p"], "latent1": [b""]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a.parquet: expected the columns .* none named \['latent2'\]"):
        reference_cache(tmp_path)
