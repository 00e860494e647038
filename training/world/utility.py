"""The true utility of a picture for a caption, measured on its pixels by analysis by synthesis.

The picture is decomposed into coloured regions, which are compared with the caption. The distance of the picture from
a clean drawing of these regions is its defect. Because only pixels are used, the same measure applies to rendered and
to generated pictures.
"""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from training.world.scenes import COLORS, IMAGE_SIZE, RELATIONS, SHAPES, Description, Thing, outline

CHROMA_THRESHOLD = 0.22
MIN_REGION_AREA = 24  # pixels
SIZE_BOUNDARY = 9.0  # radius in pixels between small and large
EXTRA_PENALTY = 0.3
FULL_REGION_AREA = 60  # pixels from which an extra region counts fully
RELATION_SHARE = 0.3
# Root mean square distance from a clean drawing (pixels in [0, 1]) at which the quality is 1/e.
DEFECT_SCALE = 0.12
FIDELITY_WEIGHT = 4.0
QUALITY_WEIGHT = 2.0


@dataclass(frozen=True)
class Region:
    """A coloured region of a picture: centre, radius and area in pixels, and the fit of each name in [0, 1]."""

    x: float
    y: float
    radius: float
    area: float
    color_fit: dict[str, float]
    shape_fit: dict[str, float]


@dataclass(frozen=True)
class Decomposition:
    """The regions of a picture, and its root mean square distance from a clean drawing of them."""

    regions: tuple[Region, ...]
    defect: float


def true_utility(description: Description, image: np.ndarray) -> float:
    """Utility of an RGB uint8 image [64, 64, 3] for a description, about 0 (no match) to 6 (full match).

    `4 fidelity + 2 exp(-defect / 0.12)`: the first term measures the match with the description, the second the
    cleanness of the picture.
    """
    decomposition = decompose(image)
    return FIDELITY_WEIGHT * fidelity(description, decomposition.regions) + QUALITY_WEIGHT * quality(decomposition)


def quality(decomposition: Decomposition) -> float:
    """Cleanness of a picture, in [0, 1]: `exp(-defect / 0.12)`."""
    return math.exp(-decomposition.defect / DEFECT_SCALE)


def fidelity(description: Description, regions: tuple[Region, ...]) -> float:
    """Share of the description that the regions match, at most 1, minus 0.3 for each of up to two extra regions.

    Extra regions below 60 pixels count in proportion to their area, because a speck is not a shape.
    """
    things = description.things
    fits = np.array([[_fit(thing, region) for region in regions] for thing in things]).reshape(len(things), -1)
    rows, columns = linear_sum_assignment(fits, maximize=True)
    score = fits[rows, columns].sum() / len(things)
    if description.relation:
        related = 0.0
        if len(rows) == 2:
            (ux, uy), (first, second) = RELATIONS[description.relation], (regions[column] for column in columns)
            along = (first.x - second.x) * ux + (first.y - second.y) * uy
            across = abs((first.x - second.x) * uy + (first.y - second.y) * ux)
            # Without both things there is no relation, so it is weighted by the poorer fit.
            related = fits[rows, columns].min() / (1 + math.exp(-(along - across) / 3))
        score = (1 - RELATION_SHARE) * score + RELATION_SHARE * related
    extra = sum(min(1, region.area / FULL_REGION_AREA) for index, region in enumerate(regions) if index not in columns)
    return score - EXTRA_PENALTY * min(2, extra)


def _fit(thing: Thing, region: Region) -> float:
    fit = 0.2 + 0.4 * region.color_fit[thing.color] + 0.4 * region.shape_fit[thing.shape]
    if thing.size:
        large = 1 / (1 + math.exp(-(region.radius - SIZE_BOUNDARY) / 0.5))
        fit *= 0.7 + 0.3 * (large if thing.size == "large" else 1 - large)
    return fit


def decompose(image: np.ndarray) -> Decomposition:
    """Decompose an RGB uint8 image [64, 64, 3] into regions."""
    pixels = image.astype(np.float32) / 255
    chroma = pixels.max(-1) - pixels.min(-1)
    labels, count = ndimage.label(chroma > CHROMA_THRESHOLD)
    ideal = _background(pixels, labels == 0)
    regions = []
    sizes = np.bincount(labels.ravel())
    for index in range(1, count + 1):
        if sizes[index] >= MIN_REGION_AREA:
            region, template, rgb = _fit_region(pixels, labels == index)
            regions.append(region)
            ideal += template[..., None] * (rgb - ideal)
    return Decomposition(tuple(regions), float(np.sqrt(np.mean((pixels - ideal) ** 2))))


def _background(pixels: np.ndarray, free: np.ndarray) -> np.ndarray:
    """Least-squares plane through the pixels outside all regions; the mean colour if there are too few of them."""
    if free.sum() < 100:
        return np.broadcast_to(pixels.mean((0, 1)), pixels.shape).copy()
    design = _plane()
    solution, *_ = np.linalg.lstsq(design[free.ravel()], pixels[free], rcond=None)
    return (design @ solution).reshape(pixels.shape)


@cache
def _plane() -> np.ndarray:
    ramp = np.linspace(-0.5, 0.5, IMAGE_SIZE, dtype=np.float32)
    y, x = np.meshgrid(ramp, ramp, indexing="ij")
    return np.stack([x, y, np.ones_like(x)], axis=-1).reshape(-1, 3)


def _fit_region(pixels: np.ndarray, mask: np.ndarray) -> tuple[Region, np.ndarray, np.ndarray]:
    """Fit a region to a mask; returns the region, the coverage of a clean drawing of it, and its colour."""
    area = float(mask.sum())
    rows, columns = np.nonzero(mask)
    x, y = columns.mean() + 0.5, rows.mean() + 0.5
    # The rim is blended with the background, so the colour is the median of the interior.
    inside = ndimage.binary_erosion(mask)
    rgb = np.median(pixels[inside if inside.any() else mask], axis=0)
    templates = {shape: coverage(shape, x, y, math.sqrt(area / _unit_area(shape))) for shape in SHAPES}
    overlaps = np.array([np.minimum(mask, t).sum() / np.maximum(mask, t).sum() for t in templates.values()])
    # Square and circle of equal area overlap by 0.83, so a fit is meaningful only relative to the others.
    relative = np.exp((overlaps - overlaps.max()) / 0.05)
    sound = np.clip((overlaps.max() - 0.5) / 0.35, 0, 1)
    best = SHAPES[int(overlaps.argmax())]
    region = Region(
        x=x,
        y=y,
        radius=math.sqrt(area / _unit_area(best)),
        area=area,
        color_fit=_color_fit(rgb),
        shape_fit=dict(zip(SHAPES, (sound * relative / relative.sum()).tolist(), strict=True)),
    )
    return region, templates[best], rgb


def _color_fit(rgb: np.ndarray) -> dict[str, float]:
    """Fit of each colour name: 1 within 12 degrees of its hue, decreasing to 0 at 50 degrees."""
    red, green, blue = (float(value) for value in rgb)
    hue = math.degrees(math.atan2(math.sqrt(3) * (green - blue), 2 * red - green - blue))
    fits = {}
    for index, name in enumerate(COLORS):
        away = abs((hue - 60 * index + 180) % 360 - 180)
        fits[name] = min(1.0, max(0.0, (50 - away) / 38))
    return fits


@cache
def _unit_area(shape: str) -> float:
    x, y = np.array(outline(shape)).T
    return 0.5 * abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))))


@cache
def _centroid(shape: str) -> float:
    """Distance of the centre of mass below the centre of the surrounding circle, in radii."""
    x, y = np.array(outline(shape)).T
    cross = x * np.roll(y, -1) - np.roll(x, -1) * y
    return float(((y + np.roll(y, -1)) * cross).sum() / (3 * cross.sum()))


@cache
def _edges(shape: str) -> tuple[np.ndarray, np.ndarray]:
    corners = np.array(outline(shape), np.float32)
    return corners, np.roll(corners, -1, axis=0)


def coverage(shape: str, x: float, y: float, radius: float) -> np.ndarray:
    """Coverage of each pixel, in [0, 1], by an upright shape with its centre of mass at (x, y), float32 [64, 64]."""
    y = y - _centroid(shape) * radius
    canvas = np.zeros((IMAGE_SIZE, IMAGE_SIZE), np.float32)
    rows, columns = (slice(max(0, int(c - radius - 1)), int(c + radius + 2)) for c in (y, x))
    grid = np.arange(IMAGE_SIZE, dtype=np.float32) + 0.5
    dx, dy = np.meshgrid((grid[columns] - x) / radius, (grid[rows] - y) / radius)
    inside_by = 1 - np.hypot(dx, dy) if shape == "circle" else _signed_distance(shape, dx, dy)
    canvas[rows, columns] = np.clip(inside_by * radius + 0.5, 0, 1)
    return canvas


def _signed_distance(shape: str, dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """Distance to a polygon's border, positive inside, in radii of the surrounding circle."""
    a, b = _edges(shape)
    px, py = dx[..., None] - a[:, 0], dy[..., None] - a[:, 1]
    ex, ey = (b - a).T
    along = np.clip((px * ex + py * ey) / (ex**2 + ey**2), 0, 1)
    distance = np.hypot(px - along * ex, py - along * ey).min(-1)
    # A point is inside if a ray to the right crosses the border an odd number of times.
    crosses = (a[:, 1] <= dy[..., None]) != (b[:, 1] <= dy[..., None])
    reach = (px * ey - py * ex) * np.sign(ey) < 0
    return np.where((crosses & reach).sum(-1) % 2 == 1, distance, -distance)
