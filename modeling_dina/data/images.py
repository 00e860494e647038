"""Images in the form of `datasets.Image(decode=False)`."""

import io

from PIL import Image

from modeling_dina.images_dina import load_image, read_image


def open_image(cell: dict, name: str = "image") -> Image.Image:
    """
    Decode an image like `modeling_dina.images_dina.load_image`.

    Args:
        cell: {"bytes", "path"}, as in `datasets.Image(decode=False)`; the path is read if "bytes" is None.
        name: name of the image in errors.

    Returns:
        A PIL image of mode "RGB".

    Raises:
        ValueError: the image is missing or unusable.
    """
    if not cell or (cell["bytes"] is None and cell["path"] is None):
        raise ValueError(f"{name}: expected bytes or a path, got neither")
    if cell["bytes"] is None:
        return load_image(cell["path"], name)
    if cell["path"]:
        name = f"{name} ({cell['path']})"
    return read_image(io.BytesIO(cell["bytes"]), name)
