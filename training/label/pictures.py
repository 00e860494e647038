"""Pictures as the page shows them: decoded as for scoring, so that people and the model see the same, and without file
names and metadata, which could tell where a picture comes from."""

import io
from functools import lru_cache

from modeling_dina.images_dina import load_image

CACHED = 64  # pictures


@lru_cache(maxsize=CACHED)
def encoded_picture(path: str) -> bytes:
    """A picture file as PNG bytes.

    Raises:
        ValueError: the file is missing or no picture.
    """
    content = io.BytesIO()
    # A local page: speed matters more than size.
    load_image(path).save(content, "PNG", compress_level=1)
    return content.getvalue()
