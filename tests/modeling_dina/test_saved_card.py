"""A model's card goes where the model goes, and no further than it is true."""

import pytest

from modeling_dina import DinaRewardModel

CARD = "---\nlicense: apache-2.0\n---\n\nAccuracy 0.9.\n\n![Accuracy](accuracy.png) ![Elsewhere](https://a/b.png)\n"


@pytest.fixture
def folder(tiny_model, tmp_path):
    """Of a model with a card and its picture, and one file more."""
    tiny_model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model" / "README.md").exists()
    for name, text in {"README.md": CARD, "accuracy.png": "picture", "notes.txt": "mine"}.items():
        (tmp_path / "model" / name).write_text(text)
    return tmp_path / "model"


def test_saved_again(folder, tmp_path):
    DinaRewardModel.from_pretrained(folder).save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "README.md").read_text() == CARD
    assert (tmp_path / "again" / "accuracy.png").read_text() == "picture"
    assert not (tmp_path / "again" / "notes.txt").exists()


def test_saved_in_place(folder):
    DinaRewardModel.from_pretrained(folder).save_pretrained(folder)
    assert (folder / "README.md").read_text() == CARD


@pytest.mark.parametrize("change", ["weights", "config", "shards"])
def test_not_with_another_model(folder, tmp_path, change):
    model = DinaRewardModel.from_pretrained(folder)
    options = {}
    if change == "weights":
        next(model.head.parameters()).data += 1
    elif change == "config":
        model.config.temperature = 2.0
    else:
        # The same numbers, but nothing says so byte for byte.
        options = {"max_shard_size": "20KB"}
    model.save_pretrained(tmp_path / "again", **options)
    assert not (tmp_path / "again" / "README.md").exists()


def test_a_card_that_is_there_stays(folder, tmp_path):
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "README.md").write_text("mine")
    DinaRewardModel.from_pretrained(folder).save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "README.md").read_text() == "mine"


def test_pushed(folder, connected_hub):
    DinaRewardModel.from_pretrained(folder).push_to_hub("owner/name", private=True)
    repo = connected_hub.repos["owner/name"]
    files = repo.commits[repo.main].files
    assert files["README.md"].content.decode() == CARD
    assert files["accuracy.png"].content == b"picture"
