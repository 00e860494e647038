"""Which files are opened, and why others are refused."""

import os

import pytest
from PIL import Image

from judge import MAX_FILE_BYTES


@pytest.fixture(scope="module")
def inputs():
    """The module, which takes seconds to import."""
    import inputs

    return inputs


def upload(path):
    return {"path": str(path), "meta": {"_type": "gradio.FileData"}}


def test_a_picture_is_opened(inputs, tmp_path):
    Image.new("RGBA", (5, 3), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    image = inputs.opened_image(upload(tmp_path / "clear.png"), "image A")
    assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", (5, 3), (255, 255, 255))


@pytest.mark.parametrize("sent", ["/etc/hostname", {"path": "/etc/hostname"}, 5, []])
def test_only_what_gradio_calls_a_file_is_opened(inputs, sent):
    with pytest.raises(ValueError, match="image A: expected an uploaded file, got "):
        inputs.opened_image(sent, "image A")


def test_a_missing_picture_is_refused(inputs):
    with pytest.raises(ValueError, match="image A: expected a picture, got none"):
        inputs.opened_image(None, "image A")


def test_the_message_has_the_file_and_not_its_folder(inputs, tmp_path):
    (tmp_path / "note.png").write_text("hello")
    with pytest.raises(ValueError, match=r"note\.png") as refusal:
        inputs.opened_image(upload(tmp_path / "note.png"), "image A")
    assert str(tmp_path) not in str(refusal.value)
    with pytest.raises(ValueError, match=r"gone\.png") as refusal:
        inputs.opened_image(upload(tmp_path / "gone.png"), "image A")
    assert str(tmp_path) not in str(refusal.value)


def test_too_many_bytes_are_refused_unread(inputs, tmp_path):
    (tmp_path / "huge.png").write_bytes(os.urandom(MAX_FILE_BYTES + 1))
    with pytest.raises(ValueError, match=r"^image A: expected .* 8 MB, got 8\.1 MB"):
        inputs.opened_image(upload(tmp_path / "huge.png"), "image A")


def test_too_many_pixels_are_refused_undecoded(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    Image.new("1", (4097, 4096)).save(tmp_path / "wide.png")
    inputs.limit_decoding()
    with pytest.raises(ValueError, match=r"refused before decoding.*exceeds limit of 16777216 pixels$"):
        inputs.opened_image(upload(tmp_path / "wide.png"), "image A")


@pytest.mark.parametrize("count", [0, 1, 17])
def test_a_ranking_has_two_to_sixteen(inputs, tmp_path, count):
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=f"pictures: expected 2 to 16, got {count}"):
        inputs.opened_images([upload(tmp_path / "a.png")] * count)


def test_pictures_of_a_ranking_are_named_by_place(inputs, tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="picture 2: expected a picture, got none"):
        inputs.opened_images([upload(tmp_path / "a.png"), None])
