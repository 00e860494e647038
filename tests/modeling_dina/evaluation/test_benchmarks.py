"""Every benchmark in its public schema, with accuracies worked out by hand."""

import tarfile
import zipfile

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset, Features, Image, List, Value

from tests.modeling_dina.evaluation import scorers
from tests.modeling_dina.evaluation.conftest import grey
from training.preference_data.schema import PAIR_FEATURES, write_pairs


def sigmoid(difference):
    return 1 / (1 + np.exp(-difference))


# ImageReward: micro over pairs, label ties dropped, a predicted tie is wrong

IMAGE_REWARD = [
    # In the order of the ranks: five of five, and a tie between the second and the third.
    {"id": "1-1", "prompt": "a cat", "generations": ["p/1/0.png", "p/1/1.png", "p/1/2.png", "p/1/3.png"]}
    | {"ranking": [1, 2, 2, 3]},
    # An equal reward and two wrong orders: none of three.
    {"id": "1-2", "prompt": "a dog", "generations": ["p/2/0.png", "p/2/1.png", "p/2/2.png"], "ranking": [1, 2, 3]},
]
IMAGE_REWARD_GREYS = dict(
    zip(
        [path for row in IMAGE_REWARD for path in row["generations"]],
        [200, 150, 140, 100, 100, 100, 200],
        strict=True,
    )
)


def check_image_reward(results):
    assert results["accuracy"] == 5 / 8
    sizes = {"prompts": 2, "pairs": 9, "ties": 1, "used": 8, "failures": 0, "failed_pairs": 0}
    assert {name: results[name] for name in sizes} == sizes
    assert results["size_differences"] == {"prompts": -464, "pairs": -7221, "ties": -830, "used": -6391}


def test_image_reward(run, write_json, write_greys):
    write_json(IMAGE_REWARD)
    write_greys(IMAGE_REWARD_GREYS)
    scorers.CALLS.clear()
    results = run("imagereward")
    check_image_reward(results)
    # Sums over prompts 5 of 5 and 0 of 3: residuals ±1.875, so sqrt(2 (1.875^2 + 1.875^2)) / 8.
    assert results["standard_error"] == pytest.approx(0.46875)
    assert 0 <= results["interval"][0] < 5 / 8 < results["interval"][1] <= 1
    won = sigmoid(np.array([0.5, 0.6, 1.0, 0.5, 0.4, 0.0, -1.0, -1.0]))
    assert results["log_likelihood"] == pytest.approx(np.log(won).mean())
    assert results["brier_score"] == pytest.approx(np.square(1 - won).mean())
    assert sum(scorers.CALLS) == 7  # each image once, though it is in two or three pairs
    assert results["levels"] == []
    assert results["settings"]["model"] == "tests.modeling_dina.evaluation.scorers:brightness"


def test_image_reward_as_on_the_hub(run, data):
    """One row an image, and images in archives."""
    rows = [
        {"prompt_id": row["id"], "prompt": row["prompt"], "image_path": f"images/test/test_1/{path}", "rank": rank}
        for row in IMAGE_REWARD
        for path, rank in zip(row["generations"], row["ranking"], strict=True)
    ]
    pd.DataFrame(rows).to_parquet(data / "metadata-test.parquet")
    (data / "images" / "test").mkdir(parents=True)
    with zipfile.ZipFile(data / "images" / "test" / "test_1.zip", "w") as archive:
        for path, level in IMAGE_REWARD_GREYS.items():
            archive.writestr(path, grey(level))
    check_image_reward(run("imagereward"))


def test_prompts_of_one_image_have_no_pairs(run, write_json, write_greys):
    alone = {"id": "1-3", "prompt": "a cow", "generations": ["p/2/0.png"], "ranking": [1]}
    write_json([*IMAGE_REWARD, alone])
    write_greys(IMAGE_REWARD_GREYS)
    check_image_reward(run("imagereward"))


# HPDv2: 1 - discordant pairs / all pairs, a mean over prompts; label ties are correct

HPDV2 = [
    # One discordant pair of three; the other two are in order, and a tie.
    {"prompt": "a cat", "image_path": ["0.jpg", "1.jpg", "2.jpg"], "rank": [1, 2, 2]}
    | {"raw_annotations": [{"rank": [1, 2, 3], "user_hash": "a"}, {"rank": [2, 1, 3], "user_hash": "b"}]},
    {"prompt": "a dog", "image_path": ["3.jpg", "4.jpg"], "rank": [2, 1]}
    | {"raw_annotation": [{"rank": [2, 1], "user_hash": "a"}]},
]
HPDV2_GREYS = {"test/0.jpg": 100, "test/1.jpg": 200, "test/2.jpg": 50, "test/3.jpg": 10, "test/4.jpg": 20}


def check_hpdv2(results):
    assert results["accuracy"] == pytest.approx((2 / 3 + 1) / 2)
    assert (results["pairs"], results["ties"], results["used"]) == (4, 1, 4)
    # Of the pairs 0-1, 0-2, 1-2 and 4-3: rewards, and shares of votes.
    won, votes = sigmoid(np.array([-1.0, 0.5, 1.5, 0.1])), np.array([0.5, 1, 1, 1])
    assert results["brier_score"] == pytest.approx(np.mean(votes * (1 - won) ** 2 + (1 - votes) * won**2))
    # Two prompts at 2/3 and 1: half their distance.
    assert results["standard_error"] == pytest.approx(1 / 6)


def test_hpdv2(run, write_json, write_greys):
    write_json(HPDV2)
    write_greys(HPDV2_GREYS)
    check_hpdv2(run("hpdv2"))


def test_odd_rankings_are_failures(run, write_json, write_greys):
    odd = [
        HPDV2[0] | {"rank": [1, 2]},
        HPDV2[0] | {"rank": [1, 2, None]},
        HPDV2[0] | {"image_path": "0.jpg"},
        HPDV2[0] | {"raw_annotations": [{"user_hash": "a"}]},
        HPDV2[0] | {"raw_annotations": [[1, 2, 3]]},
        HPDV2[0] | {"raw_annotations": [{"rank": [1, 2]}]},
    ]
    write_json([*odd, *HPDV2])
    write_greys(HPDV2_GREYS)
    results = run("hpdv2")
    check_hpdv2(results)
    assert [failure["name"] for failure in results["failed"]] == [f"test.json, row {row}" for row in range(6)]


@pytest.mark.parametrize("inside", ["test/", "./test/", ""])
def test_hpdv2_archive(run, data, write_json, write_greys, inside, monkeypatch):
    write_json(HPDV2)
    write_greys(HPDV2_GREYS)
    with tarfile.open(data / "test.tar.gz", "w:gz") as archive:
        for path in HPDV2_GREYS:
            archive.add(data / path, inside + path.removeprefix("test/"))
            (data / path).unlink()
    check_hpdv2(run("hpdv2"))
    (data / "test").rmdir()
    # Taken out once: the second time nobody opens the archive.
    monkeypatch.setattr(tarfile, "open", None)
    check_hpdv2(run("hpdv2"))


# HPDv3: the first image is always preferred; equal scores are an error

HPDV3 = [
    {"prompt": "a cat", "path1": "images/2.jpg", "path2": "images/1.jpg", "model1": "flux", "model2": "sdxl"},
    {"prompt": "a cat", "path1": "images/1.jpg", "path2": "images/0.jpg", "model1": "flux", "model2": "sdxl"},
    {"prompt": "a cat", "path1": "images/0.jpg", "path2": "images/2.jpg", "model1": "flux", "model2": "sdxl"},
    {"prompt": "a dog", "path1": "images/1.jpg", "path2": "images/3.jpg", "model1": "flux", "model2": "sdxl"},
]
HPDV3_GREYS = {"images/0.jpg": 0, "images/1.jpg": 100, "images/2.jpg": 200, "images/3.jpg": 100}


def test_hpdv3(run, write_json, write_greys):
    write_json(HPDV3)
    write_greys(HPDV3_GREYS)
    scorers.CALLS.clear()
    results = run("hpdv3")
    assert results["accuracy"] == 0.5
    assert (results["prompts"], results["pairs"], results["ties"]) == (2, 4, 0)
    assert sum(scorers.CALLS) == 5  # an image again for another prompt, not again for another pair
    assert results["published_sizes"] == {}


def test_hpdv3_archive_in_parts(run, data, write_json, write_greys):
    write_json(HPDV3)
    write_greys(HPDV3_GREYS)
    with tarfile.open(data / "whole", "w:gz") as archive:
        for path in HPDV3_GREYS:
            archive.add(data / path, f"HPDv3/{path}")
            (data / path).unlink()
    content = (data / "whole").read_bytes()
    (data / "whole").unlink()
    for part in range(3):
        third = len(content) // 3 + 1
        (data / f"HPDv3.tar.gz.{part:02d}").write_bytes(content[part * third : (part + 1) * third])
    assert run("hpdv3")["accuracy"] == 0.5
    for path in data.glob("*.tar.gz.01"):  # another archive now, and a broken one
        path.unlink()
    assert "data: cannot read the archive" in run("hpdv3", refused=True)


def test_an_archived_image_of_a_like_name_is_not_taken(run, data, write_json, write_greys):
    write_json(HPDV3)
    write_greys({path: level for path, level in HPDV3_GREYS.items() if path != "images/3.jpg"})
    with tarfile.open(data / "HPDv3.tar", "w") as archive:
        archive.add(data / "images" / "0.jpg", "other/3.jpg")
    results = run("hpdv3")
    assert results["failures"] == 1
    assert results["failed"][0]["name"] == "images/3.jpg"


# Pick-a-Pic: ties are predicted below a threshold that is swept on the validation split


def pick_a_pic(path, rows):
    columns = ("caption", "jpg_0", "jpg_1", "label_0", "has_label")
    records = [
        dict(zip(columns, (f"prompt {index}", grey(a), grey(b), label, has_label), strict=True))
        | {"label_1": 1 - label, "are_different": True, "ranking_id": index}
        for index, (a, b, label, has_label) in enumerate(rows)
    ]
    path.parent.mkdir(exist_ok=True)
    pd.DataFrame(records).to_parquet(path)


def test_pick_a_pic(run, data):
    pick_a_pic(
        data / "data" / "validation_unique-00000-of-00001-abc.parquet",
        [
            (150, 100, 0.5, True),  # probabilities differ by tanh(0.25) = 0.24: a tie from a threshold of 0.3 on
            (200, 100, 1.0, True),  # tanh(0.5) = 0.46: right below a threshold of 0.5
            (0, 200, 0.0, True),  # tanh(1) = 0.76
        ],
    )
    pick_a_pic(
        data / "data" / "test_unique-00000-of-00001-abc.parquet",
        [
            (160, 100, 1.0, True),  # tanh(0.3) = 0.29: predicted a tie, half right
            (120, 100, 0.5, True),  # tie and tie: right
            (250, 100, 0.0, True),  # wrong
            (250, 100, 1.0, True),  # right
            (250, 100, 0.0, False),  # nobody was asked
        ],
    )
    (data / "data" / "train-00000-of-00001.parquet").write_bytes(b"not to be read")
    results = run("pickapic")
    assert results["tie_threshold"] == 0.3
    assert results["accuracy"] == (0.5 + 1 + 0 + 1) / 4
    assert (results["pairs"], results["ties"], results["validation_pairs"]) == (4, 1, 3)
    won, label = sigmoid(np.array([0.6, 0.2, 1.5, 1.5])), np.array([1, 0.5, 0, 1])
    assert results["log_likelihood"] == pytest.approx(np.mean(label * np.log(won) + (1 - label) * np.log(1 - won)))


def test_pick_a_pic_needs_its_validation_split(run, data):
    pick_a_pic(data / "data" / "test_unique-00000-of-00001.parquet", [(160, 100, 1.0, True)])
    assert "validation_unique" in run("pickapic", refused=True)


# GenAI-Bench: decisive votes; and four ways


def write_parquet(path, rows, features):
    path.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_list(rows, features=Features(features)).to_parquet(path)


GENAI_COLUMNS = ("prompt", "left_model", "left_image", "right_model", "right_image", "vote_type")


def test_genai_bench(run, data):
    votes = [
        (200, 100, "leftvote"),  # right
        (200, 100, "rightvote"),  # wrong
        (100, 100, "leftvote"),  # equal, wrong
        (100, 100, "tievote"),  # the third way, right
        (200, 100, "tievote"),  # wrong, four ways
        (100, 100, "bothbad_vote"),  # never right, four ways
        (200, 100, "novote"),
    ]
    rows = [
        dict(zip(GENAI_COLUMNS, (f"prompt {index % 2}", "m", grey(a), "n", grey(b), vote), strict=True))
        for index, (a, b, vote) in enumerate(votes)
    ]
    for row in rows:
        for side in ("left_image", "right_image"):
            row[side] = {"bytes": row[side], "path": None}
    features = {name: Image() if name.endswith("image") else Value("string") for name in GENAI_COLUMNS}
    write_parquet(data / "image_generation" / "test_v1-00000-of-00001.parquet", rows, features)
    (data / "video_generation").mkdir()
    (data / "video_generation" / "test_v1-00000-of-00001.parquet").write_bytes(b"not to be read")
    results = run("genai-bench")
    assert results["accuracy"] == pytest.approx(1 / 3)
    assert results["four_way_accuracy"] == pytest.approx(2 / 6)
    assert (results["pairs"], results["ties"], results["used"]) == (6, 3, 3)
    assert results["failed"][0]["name"] == "test_v1-00000-of-00001.parquet, row 6"
    assert "vote_type: expected one of leftvote" in results["failed"][0]["error"]


# MJ-Bench: by category


def test_mj_bench(run, data):
    pairs = [("alignment", 200, 100, 0), ("alignment", 100, 200, 0), ("safety", 200, 100, 0), ("safety", 100, 100, 0)]
    features = {"caption": Value("string"), "image0": Image(), "image1": Image(), "label": Value("int64")}
    features |= {name: Value("string") for name in ("category", "subcategory", "model")}
    for name in ("alignment", "safety"):
        rows = [
            {"caption": "a cat", "image0": {"bytes": grey(a)}, "image1": {"bytes": grey(b)}, "label": label}
            | {"category": category, "subcategory": "s", "model": "m"}
            for category, a, b, label in pairs
            if category == name
        ]
        write_parquet(data / "data" / f"{name}-00000-of-00001.parquet", rows, features)
    results = run("mj-bench")
    assert results["accuracy"] == 2 / 4
    measured = {name: (found["accuracy"], found["pairs"]) for name, found in results["categories"].items()}
    assert measured == {"alignment": (0.5, 2), "safety": (0.5, 2)}


# Multimodal RewardBench 2

MMRB2 = [("A", 200, 100), ("B", 200, 100), ("B", 100, 200)]


def check_mmrb2(results):
    assert results["accuracy"] == pytest.approx(2 / 3)
    assert results["size_differences"] == {"pairs": -997}


def mmrb2_rows(image):
    return [
        {"pair_id": str(index), "prompt_text": "a cat", "chosen": chosen, "human_annotations": [5, 5, 4]}
        | {"response_a_images": [image(f"{index}a", a)], "response_b_images": [image(f"{index}b", b)]}
        for index, (chosen, a, b) in enumerate(MMRB2)
    ]


def test_mmrb2_parquet(run, data):
    features = {"pair_id": Value("string"), "prompt_text": Value("string"), "chosen": Value("string")}
    features |= {"human_annotations": List(Value("int64"))}
    features |= {f"response_{side}_images": List(Image()) for side in "ab"}
    rows = mmrb2_rows(lambda name, level: {"bytes": grey(level), "path": None})
    write_parquet(data / "t2i" / "test-00000-of-00001.parquet", rows, features)
    check_mmrb2(run("mmrb2"))


@pytest.mark.parametrize("wrap", [list, lambda rows: {"pairs": rows}])
def test_mmrb2_json(run, write_json, write_greys, wrap):
    greys = {}

    def image(name, level):
        greys[f"images/{name}.jpg"] = level
        return f"images/{name}.jpg"

    write_json(wrap(mmrb2_rows(image)), "t2i.json")
    write_greys(greys)
    check_mmrb2(run("mmrb2"))


# Preference data of your own


@pytest.mark.parametrize("embed", [False, True])
def test_pairs_as_training_writes_them(run, data, tmp_path, embed):
    """Targets are shares of votes: the expected agreement with a voter is 0.8 + 0.3 + 0.5 of 3."""

    def image(name, level):
        if embed:
            return {"bytes": grey(level), "path": None}
        (tmp_path / name).write_bytes(grey(level))
        return {"bytes": None, "path": str(tmp_path / name)}

    rows = [
        {"prompt": f"prompt {index}", "image_a": image(f"{index}a", a), "image_b": image(f"{index}b", b)}
        | {"target": target, "weight": 1.0, "source": "votes"}
        for index, (a, b, target) in enumerate([(200, 100, 0.8), (100, 200, 0.7), (200, 100, 0.5)])
    ]
    write_pairs(data, Dataset.from_list(rows, features=PAIR_FEATURES), [])
    results = run("pairs")
    assert results["accuracy"] == pytest.approx(1.6 / 3)
    assert results["best_reachable_accuracy"] == pytest.approx(2 / 3)
    assert (results["prompts"], results["used"], results["failures"]) == (3, 3, 0)


def test_a_pair_with_an_impossible_target_is_reported(run, data):
    cell = {"bytes": grey(100), "path": None}
    rows = [
        {"prompt": "a cat", "image_a": cell, "image_b": cell, "target": target, "weight": 1.0, "source": "votes"}
        for target in (1.0, 1.5)
    ]
    write_pairs(data, Dataset.from_list(rows, features=PAIR_FEATURES), [])
    (failure,) = run("pairs")["failed"]
    assert "row 1" in failure["name"]
    assert "1.5" in failure["error"]
