"""Descriptions and captions of the small world, and the layout and drawing of scenes.

All functions are pure functions of their arguments, which include the random generator.
"""

import colorsys
import dataclasses
import math
import re
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

IMAGE_SIZE = 64
# The index times 60 is the hue in degrees.
COLORS = ("red", "yellow", "green", "cyan", "blue", "purple")
SHAPES = ("circle", "square", "triangle", "star")
SIZES = ("small", "large")
# Unit vector from the second thing to the first, with x to the right and y down.
RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
COUNTS = {2: "two", 3: "three"}
# Respects in which one description can differ from another.
RESPECTS = ("color", "shape", "number", "size", "relation", "swap colors")
# Combinations of colour and shape that are held out from training, to test compositional generalisation.
HELD_OUT = frozenset({("yellow", "star"), ("blue", "triangle"), ("green", "circle"), ("purple", "square")})
# Range of the radius, in pixels, of the circle around a shape.
RADII = {"small": (6.0, 7.5), "large": (10.5, 12.0)}
SUPERSAMPLING = 4


@dataclass(frozen=True)
class Thing:
    """A shape named by a caption; `size` is None if the caption gives no size."""

    color: str
    shape: str
    size: str | None = None

    def __str__(self) -> str:
        return " ".join(filter(None, (self.size, self.color, self.shape)))


@dataclass(frozen=True)
class Description:
    """The content of a picture: one to three things, and optionally the relation of the first to the second."""

    things: tuple[Thing, ...]
    relation: str | None = None

    @property
    def held_out(self) -> bool:
        """Whether any thing is a held-out combination of colour and shape."""
        return any((thing.color, thing.shape) in HELD_OUT for thing in self.things)

    @property
    def caption(self) -> str:
        """The prompt for a generator or a reward model."""
        things = self.things
        if len(things) > 1 and len(set(things)) == 1:
            return f"{COUNTS[len(things)]} {things[0]}s"
        named = [f"a {thing}" for thing in things]
        if self.relation:
            return f"{named[0]} {self.relation} {named[1]}"
        return ", ".join(named[:-1]) + f" and {named[-1]}" if len(named) > 1 else named[0]


def describe(caption: str) -> Description:
    """Parse a caption.

    Raises:
        ValueError: `caption` is not a caption of the small world.
    """
    for count, word in COUNTS.items():
        if caption.startswith(f"{word} ") and caption.endswith("s"):
            return Description((_thing(caption.removeprefix(f"{word} ").removesuffix("s"), caption),) * count)
    for relation in RELATIONS:
        if f" {relation} " in caption:
            return Description(_things(caption.split(f" {relation} "), caption), relation)
    return Description(_things(re.split(", | and ", caption), caption))


def _things(named: list[str], caption: str) -> tuple[Thing, ...]:
    return tuple(_thing(each.removeprefix("a "), caption) for each in named)


def _thing(text: str, caption: str) -> Thing:
    *size, color, shape = ["", *text.split(" ")][-3:]
    if color not in COLORS or shape not in SHAPES or size[0] not in ("", *SIZES):
        raise ValueError(f"prompt: expected a caption of the small world, got {caption!r}")
    return Thing(color, shape, size[0] or None)


@dataclass(frozen=True)
class Placed:
    """A thing in a picture: its centre and radius in pixels, rotation in radians, and RGB colour in [0, 255]."""

    thing: Thing
    x: float
    y: float
    radius: float
    turn: float
    rgb: tuple[int, int, int]


@dataclass(frozen=True)
class Scene:
    """The input of `draw`: placed things, and a grey gradient (both ends in [0, 255], angle in radians)."""

    placed: tuple[Placed, ...]
    background: tuple[float, float, float]


def sample_thing(rng: np.random.Generator, held_out: bool = False, sized: bool = True) -> Thing:
    """A random thing, from the held-out combinations if `held_out`, otherwise from the others."""
    combinations = [(c, s) for c in COLORS for s in SHAPES if ((c, s) in HELD_OUT) == held_out]
    color, shape = combinations[rng.integers(len(combinations))]
    size = SIZES[rng.integers(2)] if sized and rng.random() < 0.5 else None
    return Thing(color, shape, size)


def sample_description(rng: np.random.Generator, held_out: bool = False) -> Description:
    """A random description; if `held_out`, its first thing is a held-out combination."""
    kind = rng.choice(4, p=(0.3, 0.2, 0.35, 0.15))
    if kind == 0:
        return Description((sample_thing(rng, held_out),))
    if kind == 1:
        return Description((sample_thing(rng, held_out, sized=False),) * int(rng.integers(2, 4)))
    if kind == 2:
        first, second = _distinct(rng, 2, held_out, sized=True)
        return Description((first, second), list(RELATIONS)[rng.integers(4)])
    return Description(_distinct(rng, int(rng.integers(2, 4)), held_out, sized=False))


def _distinct(rng: np.random.Generator, count: int, held_out: bool, sized: bool) -> tuple[Thing, ...]:
    things = [sample_thing(rng, held_out, sized)]
    while len(things) < count:
        thing = sample_thing(rng, False, sized)
        if all((thing.color, thing.shape) != (other.color, other.shape) for other in things):
            things.append(thing)
    return tuple(things)


def arrange(description: Description, rng: np.random.Generator) -> Scene:
    """Place things without overlap and according to the relation. Position, rotation, tint and grey are random."""
    things = description.things
    background = (*rng.uniform(90, 235, 2), rng.uniform(0, 2 * math.pi))
    # Three things fit only if those without a given size are small.
    sizes = [thing.size or SIZES[rng.integers(2) if len(things) < 3 else 0] for thing in things]
    radii = np.array([rng.uniform(*RADII[size]) for size in sizes])
    centres = _sample_centres(description.relation, radii, rng)
    placed = [
        Placed(thing, x, y, radius, rng.uniform(-0.15, 0.15), _tint(thing.color, rng))
        for thing, (x, y), radius in zip(things, centres.tolist(), radii.tolist(), strict=True)
    ]
    return Scene(tuple(placed), background)


def _sample_centres(relation: str | None, radii: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Centres [things, 2] in pixels, by rejection sampling of many layouts at a time."""
    first, second = np.triu_indices(len(radii), 1)
    margin = radii[:, None] + 2
    while True:
        layouts = rng.uniform(margin, IMAGE_SIZE - margin, (128, len(radii), 2))
        between = layouts[:, first] - layouts[:, second]
        fits = (np.hypot(*np.moveaxis(between, -1, 0)) > radii[first] + radii[second] + 3).all(axis=1)
        if relation:
            ux, uy = RELATIONS[relation]
            along = between[:, 0] @ (ux, uy)
            fits &= (along > 14) & (np.abs(between[:, 0] @ (uy, ux)) < 0.6 * along)
        if fits.any():
            return layouts[fits.argmax()]


def _tint(color: str, rng: np.random.Generator) -> tuple[int, int, int]:
    hue = (COLORS.index(color) / 6 + rng.uniform(-6, 6) / 360) % 1
    red, green, blue = colorsys.hsv_to_rgb(hue, rng.uniform(0.8, 1.0), rng.uniform(0.7, 0.95))
    return round(255 * red), round(255 * green), round(255 * blue)


def edit(description: Description, rng: np.random.Generator) -> Description:
    """A description that differs from the given one in one respect.

    It contains a held-out combination only if the given description contains one.
    """
    while True:
        edited = edit_once(description, rng)
        if edited is not None and (description.held_out or not edited.held_out):
            return edited


def edit_once(description: Description, rng: np.random.Generator, respect: str | None = None) -> Description | None:
    """
    A description that differs from the given one in one respect, also by a held-out combination.

    Args:
        description: description to change.
        rng: random generator, which also chooses the thing to change.
        respect: one of `RESPECTS`; None chooses one.

    Returns:
        The changed description, or None if it cannot be changed in this respect.
    """
    things = list(description.things)
    index = int(rng.integers(len(things)))
    thing = things[index]
    possible = ["color", "shape", "number"]
    if thing.size:
        possible.append("size")
    if description.relation:
        possible.append("relation")
    if len(things) == 2 and things[0].color != things[1].color and things[0].shape != things[1].shape:
        possible.append("swap colors")
    chosen = possible[rng.integers(len(possible))] if respect is None else respect
    if chosen not in possible:
        return None
    match chosen:
        case "color":
            things[index] = dataclasses.replace(thing, color=_other(COLORS, thing.color, rng))
        case "shape":
            things[index] = dataclasses.replace(thing, shape=_other(SHAPES, thing.shape, rng))
        case "size":
            things[index] = dataclasses.replace(thing, size=_other(SIZES, thing.size, rng))
        case "number" if len(things) == 3 or (len(things) == 2 and rng.random() < 0.5):
            del things[index]
        case "number":
            things.append(things[0] if len(set(things)) == 1 else sample_thing(rng))
        case "swap colors":
            a, b = things
            things = [dataclasses.replace(a, color=b.color), dataclasses.replace(b, color=a.color)]
        case "relation":
            return Description(tuple(things), _other(tuple(RELATIONS), description.relation, rng))
    return Description(tuple(things), description.relation if len(things) == 2 else None)


def _other(values: tuple[str, ...], value: str | None, rng: np.random.Generator) -> str:
    rest = [candidate for candidate in values if candidate != value]
    return rest[rng.integers(len(rest))]


def outline(shape: str, turn: float = 0.0) -> list[tuple[float, float]]:
    """Corners of a shape in the unit circle, with y down. A circle is a polygon with 48 corners."""
    if shape == "star":
        corners = [(1.0 if i % 2 == 0 else 0.45, math.pi * i / 5) for i in range(10)]
    else:
        sides, start = {"circle": (48, 0.0), "square": (4, math.pi / 4), "triangle": (3, 0.0)}[shape]
        corners = [(1.0, start + 2 * math.pi * i / sides) for i in range(sides)]
    return [(r * math.sin(angle + turn), -r * math.cos(angle + turn)) for r, angle in corners]


def draw(scene: Scene) -> np.ndarray:
    """Draw a scene, anti-aliased, RGB uint8 [64, 64, 3]."""
    start, end, angle = scene.background
    ramp = np.linspace(-0.5, 0.5, IMAGE_SIZE)
    slope = np.add.outer(math.sin(angle) * ramp, math.cos(angle) * ramp) / math.sqrt(2)
    grey = ((start + end) / 2 + (end - start) * slope).astype(np.uint8)
    side = IMAGE_SIZE * SUPERSAMPLING
    canvas = Image.fromarray(grey).convert("RGB").resize((side, side))
    pen = ImageDraw.Draw(canvas)
    for item in scene.placed:
        corners = [
            (SUPERSAMPLING * (item.x + item.radius * x), SUPERSAMPLING * (item.y + item.radius * y))
            for x, y in outline(item.thing.shape, item.turn)
        ]
        pen.polygon(corners, fill=item.rgb)
    return np.asarray(canvas.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BOX))
