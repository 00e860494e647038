"""Images as people have them: every mode, damaged, hostile; and the size they are scored at."""

import contextlib
import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms

from modeling_dina.data.images import open_image
from modeling_dina.images_dina import fit_size, load_image

RED, WHITE = (255, 0, 0), (255, 255, 255)


@pytest.fixture
def save(tmp_path):
    def save(image, name, **options):
        path = tmp_path / name
        image.save(path, **options)
        return path

    return save


def half_red_half_clear(mode="RGBA"):
    image = Image.new("RGBA", (8, 8), (*RED, 255))
    image.paste((0, 0, 0, 0), (4, 0, 8, 8))
    return image.convert(mode)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.bmp", "a.gif", "a.ppm", "a.tiff", "a.avif"])
def test_every_format_gives_rgb(save, name):
    path = save(Image.new("RGB", (16, 16), (200, 30, 40)), name)
    image = load_image(path)
    assert (image.mode, image.size) == ("RGB", (16, 16))
    np.testing.assert_allclose(np.asarray(image), np.broadcast_to((200, 30, 40), (16, 16, 3)), atol=5)
    assert np.array_equal(load_image(str(path)), image)
    with Image.open(path) as opened:
        assert np.array_equal(load_image(opened), image)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "RGBa", "La", "CMYK", "YCbCr", "HSV"])
def test_white_is_white_in_every_mode(mode):
    source = Image.new("RGBA" if "a" in mode or "A" in mode else "RGB", (4, 4), "white")
    source = source.convert("LA").convert("La") if mode == "La" else source.convert(mode)
    image = load_image(source)
    assert image.mode == "RGB"
    assert set(image.get_flattened_data()) == {WHITE}
    assert source.mode == mode


@pytest.mark.parametrize("mode", ["RGBA", "PA", "RGBa"])
def test_transparency_shows_white(mode):
    image = load_image(half_red_half_clear(mode))
    assert image.getpixel((0, 0)) == RED
    assert image.getpixel((7, 7)) == WHITE


def test_transparent_palette_and_colour_key(save):
    image = load_image(save(half_red_half_clear(), "a.gif"))
    assert (image.getpixel((0, 0)), image.getpixel((7, 7))) == (RED, WHITE)
    image = load_image(save(half_red_half_clear(), "a.avif"))
    np.testing.assert_allclose((image.getpixel((0, 0)), image.getpixel((7, 7))), (RED, WHITE), atol=8)
    keyed = Image.new("RGB", (8, 8), RED)
    keyed.paste((0, 0, 255), (4, 0, 8, 8))
    image = load_image(save(keyed, "a.png", transparency=(0, 0, 255)))
    assert (image.getpixel((0, 0)), image.getpixel((7, 7))) == (RED, WHITE)


def test_sixteen_bits_keep_their_tones(save):
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    for name in ("a.png", "a.tiff"):
        image = np.asarray(load_image(save(Image.fromarray(ramp), name)))
        np.testing.assert_allclose(image[..., 0], ramp / 257, atol=0.51)
    with pytest.raises(ValueError, match="got mode F"):
        load_image(save(Image.fromarray(ramp.astype(np.float32)), "f.tiff"))


# AVIF is lossy.
@pytest.mark.parametrize(("name", "tolerance"), [("a.png", 0), ("a.avif", 8)])
def test_orientation_is_applied(save, name, tolerance):
    image = Image.new("RGB", (8, 4), "black")
    image.paste(WHITE, (0, 0, 4, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: left becomes top
    upright = load_image(save(image, name, exif=exif))
    assert upright.size == (4, 8)
    np.testing.assert_allclose(upright.getpixel((0, 0)), WHITE, atol=tolerance)
    np.testing.assert_allclose(upright.getpixel((0, 7)), (0, 0, 0), atol=tolerance)


@pytest.mark.parametrize(("name", "tolerance"), [("a.png", 2), ("a.avif", 5)])
def test_colour_profile_is_applied(save, name, tolerance):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    # The same profile with its red and blue primaries exchanged: what it calls red is blue.
    swapped = srgb.replace(b"rXYZ", b"tmp!").replace(b"bXYZ", b"rXYZ").replace(b"tmp!", b"bXYZ")
    for profile, shown in ((srgb, RED), (swapped, (0, 0, 255))):
        path = save(Image.new("RGB", (4, 4), RED), name, icc_profile=profile)
        np.testing.assert_allclose(load_image(path).getpixel((0, 0)), shown, atol=tolerance)


@pytest.mark.parametrize("profile", [b"not a profile", b"\0" * 400])
def test_useless_colour_profile_warns(save, profile):
    path = save(Image.new("RGB", (4, 4), RED), "a.png", icc_profile=profile)
    with pytest.warns(UserWarning, match="colour profile"):
        assert load_image(path).getpixel((0, 0)) == RED


def test_phone_jpeg_with_a_second_view_is_one_picture(save):
    first = Image.new("RGB", (16, 16), RED)
    path = save(first, "a.mpo", save_all=True, append_images=[Image.new("RGB", (16, 16), WHITE)])
    assert load_image(path.rename(path.with_suffix(".jpg"))).getpixel((0, 0))[1] < 10


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.tiff", "a.avif"])
def test_several_frames_are_refused(save, name):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    path = save(frames[0], name, save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match=r"image \(.*\): .*expected a single still image"):
        load_image(path)


def bomb_png(width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 10_000_000, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [10_000, 100_000])
def test_decompression_bomb_is_refused(tmp_path, side):
    path = tmp_path / "bomb.png"
    path.write_bytes(bomb_png(side, side))
    with pytest.raises(ValueError, match=r"refused before decoding\..*decompression bomb"):
        load_image(path)
    for cell in ({"bytes": path.read_bytes(), "path": None}, {"bytes": None, "path": str(path)}):
        with pytest.raises(ValueError, match=r"images\[1\].*refused before decoding\..*decompression bomb"):
            open_image(cell, "images[1]")


def test_not_an_image(tmp_path):
    with pytest.raises(ValueError, match=r"images\[1\]: expected an image file, got .*none.png, which does not exist"):
        load_image(tmp_path / "none.png", name="images[1]")
    with pytest.raises(ValueError, match="not a file"):
        load_image(tmp_path)
    with pytest.raises(TypeError, match="expected a path or a PIL image, got ndarray"):
        load_image(np.zeros((8, 8, 3)))
    for name, content in (("a.png", b""), ("b.jpg", b"hello"), ("c.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match="expected a picture of PNG, JPEG"):
            load_image(tmp_path / name)
    with pytest.raises(ValueError, match="got 0 x 4"):
        load_image(Image.new("RGB", (0, 4)))


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.gif", "a.tiff", "a.bmp", "a.avif"])
def test_damaged_bytes_never_escape_as_another_error(tmp_path, name):
    noise = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "jpeg" if name == "a.jpg" else name[2:])
    whole = buffer.getvalue()
    path = tmp_path / name
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cannot"):
        load_image(path)
    rng = np.random.default_rng(1)
    for _ in range(60):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), 6):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with contextlib.suppress(ValueError):  # bytes that still make a picture are fine
                load_image(path)


def test_an_error_without_a_message_is_named():
    class Damaged(Image.Image):
        def load(self):
            raise MemoryError

    with pytest.raises(ValueError, match="cannot be used: MemoryError"):
        load_image(Damaged())


@given(
    width=st.integers(1, 20_000),
    height=st.integers(1, 20_000),
    multiple=st.sampled_from([8, 16, 32]),
    side=st.integers(2, 64),
)
def test_fit_size_holds_its_limits(width, height, multiple, side):
    max_pixels, max_side = (side * multiple) ** 2, 3 * side * multiple
    fitted = fit_size(width, height, multiple=multiple, max_pixels=max_pixels, max_side=max_side)
    assert all(length % multiple == 0 and multiple <= length <= max_side for length in fitted)
    assert fitted[0] * fitted[1] <= max_pixels
    assert fitted[0] <= width + multiple
    assert fitted[1] <= height + multiple


@pytest.mark.parametrize(
    ("size", "expected"),
    [((512, 512), (512, 512)), ((500, 515), (496, 512)), ((3000, 2000), (1248, 832)), ((3, 4000), (16, 3072))],
)
def test_fit_size_examples(size, expected):
    assert fit_size(*size, multiple=16, max_pixels=1024**2, max_side=3072) == expected
