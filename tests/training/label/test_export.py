"""Votes as preference data: targets and weights by hand, names only if asked for, and training on the result."""

from pathlib import Path

import datasets
import pytest
from PIL import Image
from typer.testing import CliRunner

from modeling_dina.options import EMBEDDED_MODEL
from training import encode_latents
from training.label import export
from training.label.export import export_votes
from training.label.pairs import Pair, record_pairs
from training.label.push import VotePusher
from training.label.votes import VoteFile
from training.preference_data.latents import read_latents
from training.preference_data.schema import PAIR_FEATURES
from training.preference_data.sources import load_pairs

VOTES = (
    *("annegret p0 left a", "annegret p1 tie a", "annegret p2 skip a", "annegret p0 right a"),
    *("bob p0 left a", "bob p1 left b", "bob p3 both_bad a"),
    "eve p0 left b",
)
# Annegret is undecided about p0 (0.5), Bob prefers a (1), Eve prefers b (0); a tie (0.5) and a vote for b (0).
TARGETS = {"p0": ((0.5 + 1 + 0) / 3, 3.0), "p1": ((0.5 + 0) / 2, 2.0), "p3": (0.5, 1.0)}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))


@pytest.fixture
def folder(tmp_path, write_votes):
    """A folder with votes on pairs of pictures of unlike sizes, and with other files as a session leaves them."""
    (tmp_path / "images").mkdir()
    pairs = []
    for index in range(4):
        paths = [str(tmp_path / "images" / f"{index}{side}.png") for side in "ab"]
        for path, size in zip(paths, ((64, 64), (96, 48)), strict=True):
            Image.new("RGB", size, (index * 60, 0, 0)).save(path)
        pairs.append(Pair(f"p{index}", "a red circle", *paths))
    out = tmp_path / "votes"
    file = VoteFile(out)
    for vote in write_votes(*VOTES):
        file.vote(vote)
    file.close()
    record_pairs(out, pairs)
    return out


def run(*arguments):
    return CliRunner().invoke(export.app, [str(argument) for argument in arguments], catch_exceptions=False)


def test_soft_targets_with_weights(folder):
    ran = run(folder)
    assert ran.exit_code == 0, ran.output
    assert "3 rows" in ran.stderr
    pairs = load_pairs(str(folder))
    assert pairs.features == PAIR_FEATURES
    assert [(row["target"], row["weight"]) for row in pairs] == [pytest.approx(each) for each in TARGETS.values()]
    assert [Path(row["image_a"]["path"]).name for row in pairs] == ["0a.png", "1a.png", "3a.png"]
    assert set(pairs["source"]) == {"votes"}


def content(folder):
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def test_names_of_annotators_only_if_asked_for(folder):
    run(folder)
    assert b"annegret" not in content(folder / "data")
    run(folder, "--annotators")
    rows = datasets.load_dataset(str(folder), split="train").to_dict()
    assert rows["annotator"] == ["annegret", "bob", "eve", "annegret", "bob", "bob"]
    assert rows["target"] == [0.5, 1.0, 0.0, 0.5, 0.0, 0.5]
    assert set(rows["weight"]) == {1.0}
    assert load_pairs(str(folder)).features == PAIR_FEATURES


def test_pairs_without_pictures_are_reported(folder):
    (folder.parent / "images" / "1a.png").unlink()
    assert "2 rows" in run(folder).stderr
    assert '"name": "pair p1"' in (folder / "errors.jsonl").read_text()
    for path in (folder.parent / "images").iterdir():
        path.unlink()
    ran = run(folder)
    assert ran.exit_code == 2
    assert "votes: expected votes on pairs that can be read" in " ".join(ran.stderr.split())


def test_embedded_pictures_have_no_paths(folder, write_votes):
    from training.label.pairs import read_pairs

    dataset, _ = export_votes(write_votes(*VOTES), read_pairs(folder), embed=True)
    cell = dataset[0]["image_b"]
    assert cell["path"] is None
    assert cell["bytes"] == (folder.parent / "images" / "0b.png").read_bytes()


@pytest.mark.parametrize("annotators", [False, True])
def test_votes_are_encoded_for_training(folder, tmp_path, annotators):
    """Pictures of unlike sizes get latents of one size."""
    run(folder, *["--annotators"] * annotators)
    arguments = [str(folder), "--out", str(tmp_path / "latents"), "--model", EMBEDDED_MODEL, "--num-workers", "0"]
    ran = CliRunner().invoke(encode_latents.app, arguments, catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    latents = read_latents(tmp_path / "latents")
    assert sorted(latents["weight"]) == ([1.0] * 6 if annotators else [1.0, 2.0, 3.0])
    assert latents[0]["latents_a"].shape == latents[0]["latents_b"].shape


@pytest.mark.parametrize("annotators", [False, True])
def test_votes_are_pushed_to_a_private_data_set(connected_hub, folder, tmp_path, annotators):
    pusher = VotePusher(folder, "owner/votes", every=5, annotators=annotators)
    # The fifth change is an undo.
    for votes in (1, 2, 3, 4, 3, 4, 5, 6, 7):
        pusher.note(votes)
    report = pusher.finish(7)
    assert not report.failed
    # The first state may have been superseded before its upload began.
    assert set(report.pushed) | set(report.superseded) == {3, 7}
    repo = connected_hub.repos["datasets/owner/votes"]
    assert repo.private
    files = repo.files()
    assert set(files) == {".gitattributes", "README.md", "data/train-00000-of-00001.parquet"}
    (tmp_path / "pulled.parquet").write_bytes(files["data/train-00000-of-00001.parquet"])
    rows = datasets.Dataset.from_parquet(str(tmp_path / "pulled.parquet"))
    assert len(rows) == (6 if annotators else 3)
    assert all((b"annegret" in file) <= annotators for file in files.values())
    assert not any(str(tmp_path).encode() in file for file in files.values())
    # What was pushed is not taken for the data of the folder.
    run(folder)
    assert len(load_pairs(str(folder))) == 3


def test_a_hub_that_refuses_is_reported(connected_hub, folder):
    connected_hub.fail("commit", status=403)
    report = VotePusher(folder, "owner/votes", every=5, annotators=False).finish(8)
    assert report.failed.keys() == {8}


def test_nothing_is_pushed_without_votes(connected_hub, tmp_path):
    assert not VotePusher(tmp_path, "owner/votes", every=5, annotators=False).finish(0).pushed
    assert connected_hub.repos == {}
