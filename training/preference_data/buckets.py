"""A few sizes for images of any shape, so that batches fill up: nothing is cropped and no image is left out."""

import math
from collections.abc import Sequence

from modeling_dina.images_dina import fit_size

# Landscape ratios that cameras and generators use, and enough between them that up to 2:1 the nearest one changes an
# image's proportions by no more than about 6 %.
_LANDSCAPE = (1, 9 / 8, 5 / 4, 4 / 3, 3 / 2, 5 / 3, 16 / 9, 2, 7 / 3, 3, 4)
ASPECTS = (*(1 / ratio for ratio in reversed(_LANDSCAPE[1:])), *_LANDSCAPE)


def bucket_size(
    sizes: Sequence[tuple[int, int]], *, multiple: int, max_pixels: int, max_side: float = math.inf
) -> tuple[int, int]:
    """
    The one size to which all images of a comparison are resized.

    Its aspect is the one of `ASPECTS` nearest, on a logarithmic scale, to the geometric mean of the images' aspects.
    Its area is `max_pixels`, halved as often as brings it nearest to the largest image, so that small images are not
    blown up and few sizes occur. Its sides are those that a scorer would give an image of this aspect and area.

    Args:
        sizes: (width, height) of each image.
        multiple: sides are multiples of it.
        max_pixels: largest area.
        max_side: longest side.

    Returns:
        (width, height) in pixels.
    """
    log_aspect = sum(math.log(width / height) for width, height in sizes) / len(sizes)
    aspect = min(ASPECTS, key=lambda candidate: abs(math.log(candidate) - log_aspect))
    halvings = max(0, round(math.log2(max_pixels / max(width * height for width, height in sizes))))
    height = math.sqrt(max_pixels / 2**halvings / aspect)
    return fit_size(height * aspect, height, multiple=multiple, max_pixels=max_pixels, max_side=max_side)
