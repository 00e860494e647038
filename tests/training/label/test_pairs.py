"""Pairs of a source, by their contents: what is missing, equal or repeated."""

import shutil
from pathlib import Path

import pytest

from training.label.pairs import collect_pairs, read_pairs, record_pairs
from training.preference_data.candidates import Candidates, load_images, load_paired_images, pair_images


def candidates_of(manifest):
    return pair_images(*load_images(str(manifest)), None, 0)


def names(pairs):
    return {frozenset(path.rpartition("/")[2] for path in (pair.image_a, pair.image_b)) for pair in pairs}


def test_all_pairs_of_a_prompt(manifest, tmp_path):
    found = collect_pairs(candidates_of(manifest), tmp_path / "out")
    expected = {("red", "darkred"), ("red", "orange"), ("darkred", "orange"), ("blue", "navy")}
    assert names(found.pairs) == {frozenset(f"{color}.png" for color in pair) for pair in expected}
    assert found.pairs[0].prompt == "a <b>red</b> & quiet square"
    assert (found.duplicates, found.failures) == (0, [])


def test_missing_pictures_cost_no_others(manifest, tmp_path):
    (manifest.parent / "red.png").unlink()
    found = collect_pairs(candidates_of(manifest), tmp_path / "out")
    assert names(found.pairs) == {frozenset({"darkred.png", "orange.png"}), frozenset({"blue.png", "navy.png"})}
    assert [failure["name"].rpartition("/")[2] for failure in found.failures] == ["red.png"]
    assert found.failures[0]["error"].startswith("image: expected a file")
    for path in manifest.parent.glob("*.png"):
        path.unlink()
    with pytest.raises(ValueError, match="source: expected a pair of different pictures"):
        collect_pairs(candidates_of(manifest), tmp_path / "out")


def test_a_pair_that_comes_twice_is_one_pair(manifest, tmp_path):
    """In the other order, and under another name."""
    before = collect_pairs(candidates_of(manifest), tmp_path / "out").pairs
    shutil.copy(manifest.parent / "navy.png", manifest.parent / "copy.png")
    lines = manifest.read_text().splitlines()
    manifest.write_text("\n".join([lines[0], lines[-1], *lines[1:-1], lines[-1].replace("navy", "copy")]) + "\n")
    found = collect_pairs(candidates_of(manifest), tmp_path / "out")
    assert {pair.key for pair in found.pairs} == {pair.key for pair in before}
    assert found.duplicates == 1
    # The copy and its original are no pair.
    assert [failure["error"] for failure in found.failures] == ["images: expected two, got the same one twice"]


def test_pictures_of_a_data_set_become_files(manifest, tmp_path):
    images = candidates_of(manifest).images
    cells = [{"bytes": Path(cell["path"]).read_bytes(), "path": "x.png"} for cell in images["image"]]
    embedded = images.remove_columns("image").add_column("image", cells)
    plain = candidates_of(manifest)
    found = collect_pairs(Candidates(embedded, plain.first, plain.second, []), tmp_path / "out").pairs
    expected = collect_pairs(plain, tmp_path / "out").pairs
    assert [pair.key for pair in found] == [pair.key for pair in expected]
    for one, other in zip(found, expected, strict=True):
        assert Path(one.image_a).read_bytes() == Path(other.image_a).read_bytes()
    assert len(list((tmp_path / "out" / "pictures").iterdir())) == 5


def test_preference_pairs_are_voted_on_again(manifest, tmp_path):
    annotations = manifest.parent / "all.json"
    annotations.write_text('[{"prompt": "p", "path1": "red.png", "path2": "blue.png"}]')
    found = collect_pairs(load_paired_images(str(annotations), "hpdv3", None), tmp_path / "out")
    assert names(found.pairs) == {frozenset({"red.png", "blue.png"})}


def test_pairs_of_an_earlier_start_stay(tmp_path, make_pairs):
    pairs = make_pairs(4)
    record_pairs(tmp_path, pairs[:2])
    record_pairs(tmp_path, [pairs[1]._replace(image_a="/moved.png"), pairs[2]])
    assert list(read_pairs(tmp_path)) == ["p0", "p1", "p2"]
    assert read_pairs(tmp_path)["p1"].image_a == "/moved.png"


def test_a_folder_without_pairs(tmp_path):
    with pytest.raises(ValueError, match="out: expected a folder with pairs"):
        read_pairs(tmp_path)
