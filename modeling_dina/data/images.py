"""Images in the cells of a data set, decoded as the scorer decodes them."""

import io
import warnings

from PIL import Image

from modeling_dina.images_dina import FORMATS, load_image


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
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(cell["bytes"]), formats=FORMATS)
    except Exception as error:
        raise ValueError(f"{name}: expected a picture of {', '.join(FORMATS)}; cannot open it: {error}") from error
    return load_image(image, name)
