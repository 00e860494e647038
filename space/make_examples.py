"""Makes `examples/`: pairs and groups of pictures of the small world, chosen by the results of the embedded model.

Run it again when that model changes, from the root of a clone: `python -m space.make_examples`. The Space itself does
not use it.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from modeling_dina import DinaScorer
from modeling_dina.options import EMBEDDED_MODEL
from space.views import NEAR_TIE
from training.world.annotators import true_preference
from training.world.defects import spoil
from training.world.groups import candidates
from training.world.scenes import Description, Thing, arrange, draw
from training.world.seeds import Seed
from training.world.utility import true_utility

FOLDER = Path(__file__).parent / "examples"
LAYOUTS = 100
GROUP_SIZE = 8
CAPTIONS = (
    "two purple stars",
    "a large red circle",
    "three green triangles",
    "a red square and a cyan circle",
    "a large blue square left of a red star",
)

RED_CIRCLE, BLUE_SQUARE, GREEN_STAR = Thing("red", "circle"), Thing("blue", "square"), Thing("green", "star")
YELLOW_CIRCLE, CYAN_SQUARE, RED_STAR = Thing("yellow", "circle"), Thing("cyan", "square"), Thing("red", "star")


class Kind(NamedTuple):
    """A kind of example pair.

    Attributes:
        name: prefix of its files.
        title: text of its button.
        caption: the scene that the prompt describes.
        scenes: the scene that each picture shows.
        truth: bounds of an annotator's P(a is preferred).
        model: bounds of the model's P(a is preferred); the pair nearest to the middle is chosen.
        remark: a further sentence of the note.
    """

    name: str
    title: str
    caption: Description
    scenes: tuple[Description, Description]
    truth: tuple[float, float]
    model: tuple[float, float]
    remark: str = ""


KINDS = (
    Kind(
        "clear",
        "A clear win",
        Description((RED_CIRCLE, BLUE_SQUARE)),
        (Description((RED_CIRCLE, BLUE_SQUARE)), Description((GREEN_STAR, BLUE_SQUARE))),
        truth=(0.95, 1),
        model=(0.85, 1),
    ),
    Kind(
        "subtle",
        "A subtle one",
        Description((Thing("cyan", "star", "large"),)),
        (Description((Thing("cyan", "star", "small"),)), Description((Thing("cyan", "star", "large"),))),
        truth=(0.05, 0.35),
        model=(0.2, 0.42),
    ),
    Kind(
        "tie",
        "A near tie",
        Description((Thing("purple", "star"),) * 2),
        (Description((Thing("purple", "star"),) * 2),) * 2,
        truth=(0.47, 0.53),
        model=(0.5 - NEAR_TIE, 0.5 + NEAR_TIE),
    ),
    Kind(
        "wrong",
        "One it gets wrong",
        Description((YELLOW_CIRCLE, CYAN_SQUARE), "left of"),
        (Description((YELLOW_CIRCLE, CYAN_SQUARE), "left of"), Description((YELLOW_CIRCLE, CYAN_SQUARE), "right of")),
        truth=(0.9, 1),
        model=(0, 0.4),
        remark="The model does not understand “left of” yet.",
    ),
)


def main() -> None:
    """Writes the pictures and `examples.json`."""
    scorer = DinaScorer.from_pretrained(EMBEDDED_MODEL)
    pairs = [_write_pair(scorer, kind) for kind in KINDS]
    groups = [
        _write_group("attempts", "Eight attempts", Description((RED_CIRCLE, BLUE_SQUARE)), draw_attempts),
        _write_group("spoilt", "A picture and seven defects", Description((RED_STAR,)), draw_spoilt),
    ]
    examples = {"pairs": pairs, "groups": groups, "captions": CAPTIONS}
    (FOLDER / "examples.json").write_text(json.dumps(examples, indent=2, ensure_ascii=False) + "\n")


def _write_pair(scorer: DinaScorer, kind: Kind) -> dict:
    """Writes the layout that fits the kind best: its truth is within bounds, and the model's probability is nearest to
    the middle of its bounds."""
    fitting = []
    for seed in range(LAYOUTS):
        rng = np.random.default_rng((Seed.EXAMPLES, seed))
        images = [draw(arrange(description, rng)) for description in kind.scenes]
        truth = float(true_preference(*(true_utility(kind.caption, image) for image in images)))
        if kind.truth[0] <= truth <= kind.truth[1]:
            pictures = [Image.fromarray(image) for image in images]
            model = scorer.compare(prompt=kind.caption.caption, images=pictures).win_probability
            fitting.append((abs(model - sum(kind.model) / 2), seed, model, truth, images))
    _, _, model, truth, images = min(fitting)
    if not kind.model[0] <= model <= kind.model[1]:
        raise RuntimeError(f"{kind.name}: expected P(a) in {kind.model}, got {model} at best")
    note = f"Ground truth: a simulated annotator prefers A with probability {truth:.2f}. {kind.remark}".strip()
    return _write(kind.name, kind.title, note, kind.caption, images)


def _write_group(name: str, title: str, caption: Description, make: Callable) -> dict:
    images = make(caption, np.random.default_rng(Seed.EXAMPLES))
    best = 1 + int(np.argmax([true_utility(caption, image) for image in images]))
    return _write(name, title, f"Ground truth: picture {best} has the highest utility.", caption, images)


def draw_attempts(caption: Description, rng: np.random.Generator) -> list[np.ndarray]:
    """A faithful picture and seven candidates, in random order."""
    images = [draw(arrange(caption, rng)), *candidates(caption, GROUP_SIZE - 1, rng)]
    return [images[index] for index in rng.permutation(GROUP_SIZE)]


def draw_spoilt(caption: Description, rng: np.random.Generator) -> list[np.ndarray]:
    """A faithful picture, and the same with seven defects, in random order."""
    image = draw(arrange(caption, rng))
    images = [image, *(spoil(image, rng) for _ in range(GROUP_SIZE - 1))]
    return [images[index] for index in rng.permutation(GROUP_SIZE)]


def _write(name: str, title: str, note: str, caption: Description, images: list[np.ndarray]) -> dict:
    files = [f"{name}_{index}.png" for index in range(1, len(images) + 1)]
    for file, image in zip(files, images, strict=True):
        Image.fromarray(image).save(FOLDER / file, optimize=True)
    return {"title": title, "note": note, "prompt": caption.caption, "images": files}


if __name__ == "__main__":
    main()
