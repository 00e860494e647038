"""A self-contained model folder with random weights: a stock diffusers SD3 pipeline and a reward model beside it."""

import numpy as np
import pytest
from families import save_tiny_folder
from PIL import Image

from modeling_dina.scoring_dina import DinaScorer


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_tiny_folder("sd3", folder)
    return folder


@pytest.fixture(scope="session")
def scorer(folder):
    return DinaScorer.from_pretrained(folder)


@pytest.fixture(scope="session")
def images():
    """Six smooth random RGB images of three sizes."""
    sizes = [(64, 64), (64, 64), (80, 48), (200, 100), (80, 48), (64, 64)]
    coarse = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), dtype=np.uint8)
    return [
        Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
        for pixels, size in zip(coarse, sizes, strict=True)
    ]


@pytest.fixture
def files(images, tmp_path):
    """The same images as PNG files."""
    paths = [tmp_path / f"{index}.png" for index in range(len(images))]
    for image, path in zip(images, paths, strict=True):
        image.save(path)
    return paths
