"""Files that people and programs send: which of them are opened, and how."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

import gradio as gr
from gradio.exceptions import InvalidPathError
from gradio_client.utils import is_file_obj_with_meta, is_http_url_like, traverse
from PIL import Image

from modeling_dina.images_dina import load_image

from .limits import MAX_FILE_BYTES, MAX_IMAGE_PIXELS, MAX_RANKED, MIN_RANKED, shortened

# How Pillow ends its refusal of too many pixels: most who read it only have a good camera.
PILLOWS_SUSPICION = ", could be decompression bomb DOS attack."


class UploadsOnly(gr.Blocks):
    """Blocks that take files as uploads and never fetch an address for a caller, which Gradio would do without a
    limit on its size."""

    async def preprocess_data(self, block_fn, inputs, *args, **kwargs):
        """As the inherited method, which fetches addresses, and refuses paths outside the upload folder."""
        traverse(inputs, _refuse_address, is_file_obj_with_meta)
        try:
            return await super().preprocess_data(block_fn, inputs, *args, **kwargs)
        except InvalidPathError as error:
            # Its message tells of folders here.
            raise _refusal("a path") from error


def _refuse_address(file: dict) -> dict:
    if is_http_url_like(file["path"]):
        raise _refusal(f"an address, {shortened(file['path'])}")
    return file


def _refusal(got: str) -> gr.Error:
    return gr.Error(f"picture: expected an uploaded file, got {got}", print_exception=False)


def limit_decoding() -> None:
    """Has Pillow refuse pictures of more than `MAX_IMAGE_PIXELS` before it decodes them, in the whole process."""
    Image.MAX_IMAGE_PIXELS = MAX_IMAGE_PIXELS


def uploaded_path(upload, name: str) -> str:
    """The path of an upload as Gradio hands it on: a dictionary that says it is a file.

    Gradio has checked the paths of those, and of nothing else: any other dictionary could name any file of the host.
    """
    if upload is None:
        raise ValueError(f"{name}: expected a picture, got none")
    if not is_file_obj_with_meta(upload):
        raise ValueError(f"{name}: expected an uploaded file, got {shortened(upload)}")
    return upload["path"]


def opened_image(upload, name: str) -> Image.Image:
    """An upload as an upright RGB image.

    Raises:
        ValueError: it is missing, too large, or no picture. The message has the file's name and not its folder, which
            is the host's business.
    """
    path = uploaded_path(upload, name)
    try:
        size = os.path.getsize(path)
        if size > MAX_FILE_BYTES:
            raise ValueError(f"{name}: expected at most {_megabytes(MAX_FILE_BYTES)}, got {_megabytes(size)}")
        return load_image(path, name)
    except (ValueError, OSError) as error:
        message = str(error).replace(path, Path(path).name).removesuffix(PILLOWS_SUSPICION)
        raise ValueError(message) from error


def opened_images(uploads: Sequence | None) -> list[Image.Image]:
    """The pictures of a ranking, as `opened_image`."""
    uploads = uploads or []
    if not MIN_RANKED <= len(uploads) <= MAX_RANKED:
        raise ValueError(f"pictures: expected {MIN_RANKED} to {MAX_RANKED}, got {len(uploads)}")
    return [opened_image(upload, f"picture {place}") for place, upload in enumerate(uploads, start=1)]


def _megabytes(count: int) -> str:
    return f"{math.ceil(count / 2**20 * 10) / 10:g} MB"
