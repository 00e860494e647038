"""Models, a scorer and images that the tests of the package share."""

import pytest


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A self-contained model folder with random weights."""
    from tests.families import save_tiny_folder

    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_tiny_folder("sd3", folder)
    return folder


@pytest.fixture(scope="session")
def scorer(folder):
    from modeling_dina import DinaScorer

    return DinaScorer.from_pretrained(folder)


@pytest.fixture(scope="session")
def images():
    """Six smooth random RGB images of three sizes."""
    import numpy as np
    from PIL import Image

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
