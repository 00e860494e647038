"""Size buckets: images of any shape are resized to a few sizes, without cropping, so that they can share batches."""

import math
from collections.abc import Sequence
from typing import Any

from modeling_dina.images_dina import fit_size

# Landscape ratios of cameras and generators, and intermediate ones, so that up to 2:1 the nearest ratio changes an
# image's proportions by at most about 6 %.
RATIOS = (1, 9 / 8, 5 / 4, 4 / 3, 3 / 2, 5 / 3, 16 / 9, 2, 7 / 3, 3, 4)


def bucket_size(
    sizes: Sequence[tuple[int, int]], *, multiple: int, max_pixels: int, max_side: float = math.inf
) -> tuple[int, int]:
    """
    The common size to which all images of a comparison are resized.

    The ratio of the sides is the element of `RATIOS` nearest, on a logarithmic scale, to the geometric mean of the
    images' ratios. The area is `max_pixels` / 2^n, with n chosen to come nearest to the largest image, so that small
    images are not enlarged much and few sizes occur. The sides are those that a scorer uses for this ratio and area.

    Args:
        sizes: (width, height) of each image.
        multiple: number that divides both sides.
        max_pixels: maximum area.
        max_side: maximum side.

    Returns:
        (width, height) in pixels.
    """
    # Logarithms of sides, rather than of ratios, so that turned images have turned sizes in spite of rounding.
    log_ratio = sum(math.log(width) - math.log(height) for width, height in sizes) / len(sizes)
    ratio = min(RATIOS, key=lambda candidate: abs(math.log(candidate) - abs(log_ratio)))
    halvings = max(0, round(math.log2(max_pixels / max(width * height for width, height in sizes))))
    short = math.sqrt(max_pixels / 2**halvings / ratio)
    limits: dict[str, Any] = {"multiple": multiple, "max_pixels": max_pixels, "max_side": max_side}
    if log_ratio < 0:
        return fit_size(short, short * ratio, **limits)
    return fit_size(short * ratio, short, **limits)
