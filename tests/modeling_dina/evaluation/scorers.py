"""Callables for `--scorer` whose scores can be worked out by hand."""

import os
import time
from pathlib import Path

import numpy as np

# Number of images in every call.
CALLS: list[int] = []


def brightness(prompts, images):
    """Mean grey value over 100: 2.0 for an image of grey 200."""
    CALLS.append(len(images))
    return [float(np.asarray(image.convert("L")).mean()) / 100 for image in images]


def slow_brightness(prompts, images):
    """As `brightness`, in 0.05 seconds, and with a line for every image in the file that LOG names."""
    with Path(os.environ["LOG"]).open("a") as log:
        log.writelines(f"{score}\n" for score in brightness(prompts, images))
    time.sleep(0.05)
    return brightness(prompts, images)


def not_a_number_for_black(prompts, images):
    return [np.nan if score == 0 else score for score in brightness(prompts, images)]


def too_few(prompts, images):
    return [1.0]


def out_of_memory_for_black(prompts, images):
    if 0 in brightness(prompts, images):
        raise MemoryError
    return brightness(prompts, images)


def broken(prompts, images):
    raise RuntimeError("no weights")
