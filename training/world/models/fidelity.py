"""How well the generator follows captions, by the world's own measure of pictures."""

from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusion3Pipeline

from training.world.groups import draw_description
from training.world.latents import decode
from training.world.models.generated import sample_latents
from training.world.scenes import Description, arrange, draw
from training.world.seeds import Seed
from training.world.utility import decompose, fidelity, true_utility

FAITHFUL = 0.8  # fidelity above which a picture shows what its caption says
GUIDANCE_SCALE, STEPS, BATCH_SIZE = 3.0, 20, 250


def kind(description: Description) -> str:
    """What a caption names: one thing, equal things, two things with a relation, or several things."""
    if description.relation:
        return "relation"
    if len(description.things) == 1:
        return "one thing"
    return "equal things" if len(set(description.things)) == 1 else "several things"


def measure_generator(pipeline: StableDiffusion3Pipeline, captions: int) -> dict[str, Any]:
    """
    Sample one picture for each of a number of fresh captions, and measure it.

    Returns:
        "kinds": for each kind of caption, the number of "captions" and the share of "faithful" pictures; "utility":
        the mean true utility; "rendered_utility": that of pictures rendered for the same captions.
    """
    descriptions = [draw_description(Seed.TEST_GENERATOR, index) for index in range(captions)]
    latents = [
        sample_latents(
            pipeline,
            [each.caption for each in descriptions[start : start + BATCH_SIZE]],
            guidance_scale=GUIDANCE_SCALE,
            seed=Seed.TEST_GENERATOR + start,
            steps=STEPS,
        )
        for start in range(0, captions, BATCH_SIZE)
    ]
    pictures = list(zip(descriptions, decode(pipeline, torch.cat(latents)), strict=True))
    kinds: dict[str, list[bool]] = {}
    for description, picture in pictures:
        is_faithful = fidelity(description, decompose(picture).regions) > FAITHFUL
        kinds.setdefault(kind(description), []).append(is_faithful)
    rendered = [
        true_utility(description, draw(arrange(description, np.random.default_rng((Seed.TEST_GENERATOR, index, 1)))))
        for index, description in enumerate(descriptions)
    ]
    return {
        "kinds": {name: {"captions": len(each), "faithful": float(np.mean(each))} for name, each in kinds.items()},
        "utility": float(np.mean([true_utility(*each) for each in pictures])),
        "rendered_utility": float(np.mean(rendered)),
    }
