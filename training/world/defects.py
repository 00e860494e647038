"""Defects of pictures of the small world, each a pure function of (image, severity, generator).

Images are RGB uint8 [64, 64, 3]; severity lies in (0, 1].
"""

import io

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from training.world.scenes import COLORS, IMAGE_SIZE


def blur(image: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian blur of 0.8 to 2.8 pixels."""
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(0.8 + 2 * severity)))


def noise(image: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """Grey noise in blocks of 4 x 4 pixels, with a standard deviation of 8 to 40 grey levels."""
    grains = rng.normal(0, 8 + 32 * severity, (IMAGE_SIZE // 4, IMAGE_SIZE // 4, 1))
    return _clip(image + grains.repeat(4, axis=0).repeat(4, axis=1))


def wrong_hue(image: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """Rotate all hues by 15 to 40 degrees, so that every colour lies between two colour names."""
    hue, saturation, value = Image.fromarray(image).convert("HSV").split()
    turn = (15 + 25 * severity) / 360 * 256 * rng.choice((-1, 1))
    hue = Image.fromarray(((np.asarray(hue).astype(float) + turn) % 256).astype(np.uint8))
    return np.asarray(Image.merge("HSV", (hue, saturation, value)).convert("RGB"))


def extra_blob(image: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """Add a coloured ellipse with a radius of 3 to 7 pixels, which the caption does not mention."""
    canvas = Image.fromarray(image)
    x, y = rng.uniform(6, IMAGE_SIZE - 6, 2)
    a, b = (3 + 4 * severity) * rng.uniform(0.7, 1.0, 2)
    ImageDraw.Draw(canvas).ellipse((x - a, y - b, x + a, y + b), fill=COLORS[rng.integers(len(COLORS))])
    return np.asarray(canvas)


def cut(image: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """Draw a grey bar, 4 to 12 pixels wide, across the picture."""
    image = image.copy()
    width = round(4 + 8 * severity)
    start = int(rng.integers(12, IMAGE_SIZE - 12 - width))
    bar = np.full((), int(np.median(image)), np.uint8)
    if rng.random() < 0.5:
        image[start : start + width] = bar
    else:
        image[:, start : start + width] = bar
    return image


def compression(image: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """JPEG compression with quality 12 to 2, which causes blocks and ringing."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=round(12 - 10 * severity))
    return np.asarray(Image.open(buffer))


def _clip(image: np.ndarray) -> np.ndarray:
    return np.clip(image, 0, 255).astype(np.uint8)


DEFECTS = (blur, noise, wrong_hue, extra_blob, cut, compression)


def spoil(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Apply one random defect of random severity."""
    defect = DEFECTS[rng.integers(len(DEFECTS))]
    return defect(image, rng.uniform(0.15, 1.0), rng)
