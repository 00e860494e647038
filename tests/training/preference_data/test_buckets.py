"""Every image gets a size of the model's kind, near its own proportions, and few sizes occur."""

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from training.preference_data.buckets import bucket_size

SD3 = {"multiple": 16, "max_pixels": 1024**2, "max_side": 16 * 192}
size = st.tuples(st.integers(1, 5000), st.integers(1, 5000))


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        ([(1024, 1024)], (1024, 1024)),
        ([(4000, 4000)], (1024, 1024)),
        ([(512, 512)], (512, 512)),
        ([(768, 768)], (720, 720)),  # half the area: 724.1
        ([(1000, 1000)], (1024, 1024)),
        ([(1920, 1080)], (1360, 768)),  # 16:9: 1365.3 x 768
        ([(1080, 1920)], (768, 1360)),
        ([(1024, 1024), (512, 512)], (1024, 1024)),
        ([(2000, 1000), (1000, 2000)], (1024, 1024)),
        ([(5000, 10)], (1024 // math.isqrt(2**4) * 2, 128)),  # 4:1, an area of 2^16
    ],
)
def test_sizes_worked_by_hand(images, expected):
    assert bucket_size(images, **SD3) == expected


@given(st.lists(size, min_size=1, max_size=2))
@example([(1, 1), (193, 386)])  # half way between two ratios
def test_sizes_are_within_the_limits_and_depend_on_no_order(images):
    width, height = bucket_size(images, **SD3)
    assert width % 16 == height % 16 == 0
    assert min(width, height) >= 16
    assert max(width, height) <= SD3["max_side"]
    assert width * height <= SD3["max_pixels"]
    assert bucket_size(images[::-1], **SD3) == (width, height)
    assert bucket_size([image[::-1] for image in images], **SD3) == (height, width)


@given(st.integers(700, 3000), st.floats(0.5, 2))
def test_proportions_change_little(side, aspect):
    image = round(side * math.sqrt(aspect)), round(side / math.sqrt(aspect))
    width, height = bucket_size([image], **SD3)
    # The ratios are at most 1.125 apart, and sides of at least 480 are rounded to multiples of 16.
    assert abs(math.log(width / height * image[1] / image[0])) < math.log(1.125) / 2 + 0.04


def test_few_sizes_occur():
    rng = np.random.default_rng(0)
    images = rng.integers(600, 2500, (5000, 2)).tolist()
    assert len({bucket_size([image], **SD3) for image in images}) <= 2 * 21
