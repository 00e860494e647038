"""Safe decoding of image files and PIL images to upright 8-bit sRGB, and the size at which they are scored."""

import io
import math
import os
import warnings
from typing import IO

import numpy as np
from PIL import Image, ImageCms, ImageOps, features

# Common raster formats that Pillow decodes in process. EPS is left out because Pillow runs Ghostscript on it. Formats
# without a signature (TGA), with several sizes (ICO), for textures (DDS) and rare ones (JPEG 2000) are left out
# because every further decoder is one more that a hostile file can select. Some builds of Pillow lack AVIF.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "PPM", "TIFF", *(("AVIF",) if features.check("avif") else ()))

_SRGB = ImageCms.createProfile("sRGB")


def load_image(image: str | os.PathLike | Image.Image, name: str = "image") -> Image.Image:
    """
    Decode an image and convert it to what a viewer would show: apply the EXIF orientation and an embedded colour
    profile, composite transparency on white, and scale 16-bit grey to 8 bits.

    Args:
        image: a path, or a PIL image (left unchanged).
        name: name of the argument in error messages.

    Returns:
        A new PIL image of mode "RGB".

    Raises:
        ValueError: the file is missing, is not an image of `FORMATS`, is damaged, has more than
            `PIL.Image.MAX_IMAGE_PIXELS` pixels or more than one frame, or has a mode without a defined white.
        TypeError: `image` is neither a path nor a PIL image.
    """
    if isinstance(image, Image.Image):
        return _decode(image, name)
    if not isinstance(image, str | os.PathLike):
        raise TypeError(f"{name}: expected a path or a PIL image, got {type(image).__name__}")
    path = os.fspath(image)
    if not os.path.isfile(path):
        problem = "which is not a file" if os.path.exists(path) else "which does not exist"
        raise ValueError(f"{name}: expected an image file, got {path}, {problem}")
    return read_image(path, f"{name} ({path})")


def read_image(file: str | IO[bytes], name: str) -> Image.Image:
    """As `load_image`, from the path of a file that is there or from a stream of encoded bytes."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            opened = Image.open(file, formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{name}: refused before decoding. {error}") from error
    except Exception as error:
        raise ValueError(f"{name}: expected a picture of {', '.join(FORMATS)}; cannot open it: {error}") from error
    with opened:
        return _decode(opened, name)


def _decode(image: Image.Image, name: str) -> Image.Image:
    try:
        image.load()
        return _to_rgb(image)
    # Decoders raise many types of exceptions on damaged bytes: OSError, SyntaxError, struct.error …
    except Exception as error:
        raise ValueError(f"{name}: cannot be used: {str(error) or type(error).__name__}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if 0 in image.size:
        raise ValueError(f"expected at least one pixel, got {image.width} x {image.height}")
    # The other frames of an MPO (a JPEG from a phone or a stereo camera) are views of the same scene.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise ValueError("expected a single still image, got an animation or several pages")
    is_sixteen_bit = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    profile = image.info.get("icc_profile")
    image = ImageOps.exif_transpose(image)
    if is_sixteen_bit:
        if image.has_transparency_data:
            raise ValueError("expected 8 bits or no transparency, got 16-bit grey with a transparent value")
        image = Image.fromarray(np.round(np.asarray(image) / 257).astype(np.uint8))
    if image.mode in ("I", "F", "LAB"):
        raise ValueError(f"expected grey, RGB or CMYK, got mode {image.mode}, which does not say what is white")

    alpha = None
    if image.has_transparency_data:
        image = image.convert("LA" if image.mode == "La" else "RGBA")
        alpha = image.getchannel("A")
    image = _to_srgb(image if image.mode in ("L", "RGB", "CMYK") else image.convert("RGB"), profile)
    if alpha is None:
        return image
    on_white = Image.new("RGB", image.size, "white")
    on_white.paste(image, mask=alpha)
    return on_white


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            return ImageCms.buildTransform(source, _SRGB, image.mode, "RGB").apply(image)
        except (ImageCms.PyCMSError, OSError) as error:
            # Viewers ignore a damaged profile, or one of another colour space, and assume sRGB.
            warnings.warn(f"An embedded colour profile cannot be applied and is ignored: {error}", stacklevel=2)
    return image.convert("RGB")


def fit_size(
    width: float, height: float, *, multiple: int, max_pixels: int, max_side: float = math.inf
) -> tuple[int, int]:
    """
    The size nearest to `width` x `height` whose sides are multiples of `multiple`, after shrinking in proportion to at
    most `max_pixels` pixels and at most `max_side` per side. Only the rounding can enlarge an image.

    Returns:
        (width, height) in pixels.
    """
    scale = min(1.0, math.sqrt(max_pixels / (width * height)), max_side / max(width, height))
    columns, rows = (max(1, round(side * scale / multiple)) for side in (width, height))
    # Rounding both sides up may exceed the limit.
    while columns * rows * multiple**2 > max_pixels and max(columns, rows) > 1:
        columns, rows = (columns - 1, rows) if columns > rows else (columns, rows - 1)
    return columns * multiple, rows * multiple
