"""Images in the cells of a data set, decoded as the scorer decodes them."""

import io

from PIL import Image

from modeling_dina.images_dina import load_image, read_image


def open_image(cell: dict, name: str = "image") -> Image.Image:
    """
    Decodes an image as `modeling_dina.images_dina.load_image` does.

    Args:
        cell: {"bytes", "path"}, as `datasets.Image(decode=False)` gives it; the path is read where bytes are None.
        name: what errors call it.

    Returns:
        A PIL image of mode "RGB".

    Raises:
        ValueError: there is no image, or one that cannot be used.
    """
    if not cell or (cell["bytes"] is None and cell["path"] is None):
        raise ValueError(f"{name}: expected bytes or a path, got neither")
    if cell["bytes"] is None:
        return load_image(cell["path"], name)
    if cell["path"]:
        name = f"{name} ({cell['path']})"
    return read_image(io.BytesIO(cell["bytes"]), name)
