"""The same rows from every kind of source, from any row on."""

import io
import json
import pickle
import tarfile

import datasets
import pandas as pd
import pytest
import torch

from modeling_dina.data.latents import pack
from modeling_dina.dataset.decoding import Decoder
from modeling_dina.dataset.rows import Chunk, Row, Unit
from modeling_dina.dataset.sources import LatentSource, open_source
from tests.loopback_hub import File, Repo

PROMPTS = ["a cat", "a dog", "a cat", "the sea", "two red cubes", "a dog"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))


def manifest_of_paths(folder, files, suffix):
    path = folder / f"rows{suffix}"
    table = pd.DataFrame({"key": list("abcdef"), "prompt": PROMPTS, "image": [file.name for file in files]})
    if suffix == ".parquet":
        table.to_parquet(path, row_group_size=2)
    elif suffix == ".csv":
        table.to_csv(path, index=False)
    else:
        table.to_json(path, orient="records", lines=True)
    return path


def csv(folder, files):
    return manifest_of_paths(folder, files, ".csv")


def jsonl(folder, files):
    return manifest_of_paths(folder, files, ".jsonl")


def parquet(folder, files):
    return manifest_of_paths(folder, files, ".parquet")


def parquet_with_bytes(folder, files):
    path = folder / "bytes.parquet"
    rows = {"key": list("abcdef"), "prompt": PROMPTS, "image": [file.read_bytes() for file in files]}
    pd.DataFrame(rows).to_parquet(path, row_group_size=4)
    return path


def image_folder(folder, files):
    rows = {"file_name": [file.name for file in files], "prompt": PROMPTS, "key": list("abcdef")}
    pd.DataFrame(rows).to_csv(folder / "metadata.csv", index=False)
    return folder


def parquet_folder(folder, files):
    """A data set of two files with a column of type Image."""
    features = datasets.Features(
        {"image": datasets.Image(), "caption": datasets.Value("string"), "key": datasets.Value("string")}
    )
    (folder / "files" / "data").mkdir(parents=True)
    for number, part in enumerate((slice(0, 4), slice(4, 6))):
        rows = {"image": [str(file) for file in files[part]], "caption": PROMPTS[part], "key": list("abcdef"[part])}
        data = datasets.Dataset.from_dict(rows, features=features)
        data.to_parquet(folder / "files" / "data" / f"train-{number:05d}-of-00002.parquet")
    return folder / "files"


def webdataset(folder, files, describe=lambda prompt: ("txt", prompt.encode())):
    """Two shards of a WebDataset, with PNG and WebP images."""
    from PIL import Image

    (folder / "tars").mkdir()
    for number, part in enumerate((slice(0, 4), slice(4, 6))):
        with tarfile.open(folder / "tars" / f"{number:04d}.tar", "w") as tar:
            for key, file, prompt in zip("abcdef"[part], files[part], PROMPTS[part], strict=True):
                content, suffix = file.read_bytes(), "png"
                if key == "b":
                    buffer, suffix = io.BytesIO(), "webp"
                    Image.open(file).save(buffer, "WEBP", lossless=True)
                    content = buffer.getvalue()
                for name, data in ((suffix, content), describe(prompt)):
                    info = tarfile.TarInfo(f"{key}.{name}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return folder / "tars"


def webdataset_with_json(folder, files):
    return webdataset(folder, files, lambda prompt: ("json", json.dumps({"prompt": prompt, "width": 7}).encode()))


def read_all(source):
    return [row for piece in range(source.pieces) for row in source.read(piece, 0)]


KINDS = [csv, jsonl, parquet, parquet_with_bytes, image_folder, parquet_folder, webdataset, webdataset_with_json]


@pytest.mark.parametrize("make", KINDS)
def test_every_kind_has_the_same_rows(make, tmp_path, files, images, scorer):
    source = open_source(str(make(tmp_path, files)))
    rows = read_all(source)
    assert [row.key for row in rows] == list("abcdef")
    assert [row.prompt for row in rows] == PROMPTS
    assert source.lengths in (None, [6])
    json.dumps(source.identity)

    decoded = Decoder(scorer, source.has_latents)[Chunk(Unit(0, 0), 0, rows, True)]
    assert not decoded.errors
    pixels = {i: values for numbers, group in decoded.groups for i, values in zip(numbers, group, strict=True)}
    for number in (0, 1, 5):  # images of the size at which they are scored
        assert pixels[number].tolist() == torch.tensor(list(images[number].tobytes())).reshape(64, 64, 3).tolist()


@pytest.mark.parametrize("make", KINDS)
def test_reading_from_a_row_on(make, tmp_path, files):
    source = open_source(str(make(tmp_path, files)))
    for piece in range(source.pieces):
        whole = list(source.read(piece, 0))
        for start in range(1, len(whole) + 2):
            assert list(source.read(piece, start)) == whole[start:]


def test_a_data_set_on_the_hub_is_known_by_its_commit(connected_hub, tmp_path, files, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", connected_hub.url)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    repo = connected_hub.repos["datasets/owner/name"] = Repo(private=False)
    folder = parquet_folder(tmp_path, files)
    commits = []
    for title in ("first", "second"):
        paths = (folder / "data").iterdir()
        content = {path.name: File(path.read_bytes(), False) for path in paths}
        commits.append(repo.add(title, content | {"LICENSE": File(title.encode(), False)}))
        source = open_source("owner/name")
        assert source.identity["commits"] == commits[-1:]
        assert [row.key for row in read_all(source)] == list("abcdef")
    earlier = open_source("owner/name", revision=commits[0])
    assert earlier.identity["commits"] == commits[:1]
    assert [row.key for row in read_all(earlier)] == list("abcdef")
    assert open_source(str(folder)).identity["commits"] == []


def test_a_data_set_with_subsets(tmp_path, files):
    for name, rows in (("birds", files[:2]), ("cats", files[2:5])):
        (tmp_path / name).mkdir()
        content = [{"bytes": path.read_bytes(), "path": None} for path in rows]
        table = datasets.Dataset.from_dict({"prompt": [name] * len(rows), "image": content})
        table.cast_column("image", datasets.Image()).to_parquet(tmp_path / name / "part.parquet")
    configurations = [{"config_name": name, "data_files": f"{name}/*.parquet"} for name in ("birds", "cats")]
    (tmp_path / "README.md").write_text(f"---\nconfigs: {json.dumps(configurations)}\n---\n")
    cats = open_source(str(tmp_path), subset="cats")
    assert [row.prompt for row in read_all(cats)] == ["cats"] * 3
    assert cats.identity["subset"] == "cats"
    with pytest.raises(ValueError, match=r"(?s)source: .*birds"):
        open_source(str(tmp_path))


@pytest.mark.parametrize("option", ["image_column", "prompt_column", "subset", "revision"])
def test_options_that_a_source_does_not_have(tmp_path, cached_latents, option):
    (tmp_path / "rows.csv").write_text("prompt,image\na,b.png\n")
    for source in (tmp_path / "rows.csv", cached_latents[0]):
        with pytest.raises(ValueError, match=f"^{option}: expected none for .*, got some$"):
            open_source(str(source), **{option: "some"})


def test_decoders_can_be_sent_to_other_processes(scorer, files):
    decoder = pickle.loads(pickle.dumps(Decoder(scorer, False)))
    assert not decoder[Chunk(Unit(0, 0), 0, [Row("a", "a cat", str(files[0]))], True)].errors


def test_named_columns(tmp_path, files):
    rows = {"file_name": [file.name for file in files], "prompt": PROMPTS, "title": PROMPTS[::-1]}
    pd.DataFrame(rows).to_csv(tmp_path / "metadata.csv", index=False)
    assert [row.prompt for row in read_all(open_source(str(tmp_path), prompt_column="title"))] == PROMPTS[::-1]
    with pytest.raises(ValueError, match=r"prompt_column: expected one of .*title.*, got text"):
        open_source(str(tmp_path), prompt_column="text")
    with pytest.raises(ValueError, match=r"image_column: expected one of .*image.*, got picture"):
        open_source(str(tmp_path), image_column="picture")


def test_bad_files_in_tar_shards_are_errors_of_their_rows(tmp_path, files):
    """The rows after them are read."""
    bad = {"the sea": ("txt", b"\xff\xfe"), "two red cubes": ("json", b"{cut")}

    def describe(prompt):
        return bad.get(prompt, ("json", json.dumps({"prompt": prompt}).encode()))

    rows = read_all(open_source(str(webdataset(tmp_path, files, describe))))
    assert [row.key for row in rows] == list("abcdef")
    assert [row.prompt for row in rows] == ["a cat", "a dog", "a cat", None, None, "a dog"]
    assert "txt: expected UTF-8" in rows[3].error
    assert "json: expected JSON" in rows[4].error
    assert not any(row.error for row in (*rows[:3], rows[5]))


def test_groups_of_rows(tmp_path, files):
    rows = {"prompt": PROMPTS, "image": [file.name for file in files], "scene": [1, 1, 2, 2, 1, 2]}
    pd.DataFrame(rows).to_csv(tmp_path / "rows.csv", index=False)
    pd.DataFrame(rows).to_parquet(tmp_path / "rows.parquet")
    pd.DataFrame({**rows, "file_name": rows["image"]}).drop(columns="image").to_csv(tmp_path / "metadata.csv")
    for source in ("rows.csv", "rows.parquet", "."):
        read = read_all(open_source(str(tmp_path / source), group_column="scene"))
        assert [row.group for row in read] == list("112212"), source
        assert [row.group for row in read_all(open_source(str(tmp_path / source), group_column="prompt"))] == PROMPTS
        with pytest.raises(ValueError, match=r"group_column: expected one of .*scene.*, got place"):
            open_source(str(tmp_path / source), group_column="place")


def test_groups_in_tar_shards_and_latents(tmp_path, files, cached_latents):
    folder = webdataset(tmp_path, files, lambda prompt: ("json", json.dumps({"prompt": prompt, "size": 7}).encode()))
    assert [row.group for row in read_all(open_source(str(folder), group_column="size"))] == ["7"] * 6
    assert [row.group for row in read_all(open_source(str(folder), group_column="prompt"))] == PROMPTS
    source = open_source(str(cached_latents[0]), group_column="prompt")
    assert [row.group for row in read_all(source)] == [PROMPTS[i // 2] for i in range(6)]


def test_a_source_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="source: cannot load"):
        open_source(str(tmp_path / "nothing"))


@pytest.fixture
def cached_latents(tmp_path):
    """Folder of three pairs in two shards, as `training.encode_latents` writes them."""
    latents = torch.randn(3, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0)).half()
    (tmp_path / "latents" / "data").mkdir(parents=True)
    (tmp_path / "latents" / "encoding.json").write_text("{}")
    for number, part in enumerate((slice(0, 2), slice(2, 3))):
        rows = {"index": range(3)[part], "prompt": PROMPTS[part]}
        for side, name in enumerate(("latents_a", "latents_b")):
            rows[name] = [pack(each) for each in latents[part, side]]
        pd.DataFrame(rows).to_parquet(tmp_path / "latents" / "data" / f"train-{number:05d}-of-00002.parquet")
    return tmp_path / "latents", latents


def test_cached_latents(cached_latents, scorer):
    folder, latents = cached_latents
    source = open_source(str(folder))
    assert isinstance(source, LatentSource)
    assert (source.pieces, source.lengths) == (2, [4, 2])
    rows = read_all(source)
    assert [row.key for row in rows] == ["0-a", "0-b", "1-a", "1-b", "2-a", "2-b"]
    assert [row.prompt for row in rows] == [PROMPTS[i // 2] for i in range(6)]
    assert list(source.read(0, 1)) == rows[1:4]
    decoded = Decoder(scorer, source.has_latents)[Chunk(Unit(0, 0), 0, rows, True)]
    ((numbers, values),) = decoded.groups
    assert numbers == list(range(6))
    assert torch.from_numpy(values).equal(latents.flatten(0, 1))
