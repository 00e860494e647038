"""Generation under watch gives the pipeline's own pictures, and rewards of its own states."""

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from judge import Generator
from tests.space.places import ROOT

PROMPT = "two purple stars"


@pytest.fixture(scope="module")
def generator(judge):
    return Generator.beside(judge)


def test_pictures_are_those_of_the_stock_pipeline(generator):
    *_, last = generator.sample(PROMPT, 2, 3.0, 4, 7)
    pipeline = StableDiffusion3Pipeline.from_pretrained(ROOT / "modeling_dina" / "tiny")
    expected = pipeline(
        PROMPT,
        num_images_per_prompt=2,
        guidance_scale=3.0,
        num_inference_steps=4,
        max_sequence_length=14,
        generator=[torch.Generator().manual_seed(seed) for seed in (7, 8)],
    ).images
    assert [np.asarray(image).tolist() for image in last.pictures] == [
        np.asarray(image).tolist() for image in expected
    ]


def test_every_step_is_seen_and_rewarded(generator, judge):
    states = list(generator.sample(PROMPT, 3, 3.0, 8, 0))
    assert [state.step for state in states] == list(range(1, 9))
    assert [state.sigma for state in states] == sorted((state.sigma for state in states), reverse=True)
    assert states[-1].sigma == 0
    assert [state.step for state in states if state.pictures] == [1, 4, 7, 8]
    # At the end a state is the picture, up to the autoencoder: its reward at level 0 is nearly that of the picture.
    scores = judge.scorer.score(prompts=[PROMPT] * 3, images=states[-1].pictures, sigmas=[0.0], num_draws=1).scores
    torch.testing.assert_close(states[-1].scores, scores, atol=0.3, rtol=0)


def test_a_reader_that_leaves_stops_the_sampling(generator):
    states = generator.sample(PROMPT, 2, 1.0, 50, 0)
    assert next(states).step == 1
    states.close()
    assert len(list(generator.sample(PROMPT, 2, 1.0, 4, 0))) == 4


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("x" * 2000, 2, 3.0, 4, 0), "prompt"),
        ((PROMPT, 1, 3.0, 4, 0), "pictures"),
        ((PROMPT, 9, 3.0, 4, 0), "pictures"),
        ((PROMPT, 2, 0.5, 4, 0), "guidance"),
        ((PROMPT, 2, 3.0, 51, 0), "steps"),
        ((PROMPT, 2, 3.0, 4, -1), "seed"),
    ],
)
def test_what_is_out_of_bounds_is_refused(generator, arguments, name):
    with pytest.raises(ValueError, match=f"^{name}: expected "):
        next(generator.sample(*arguments))


def test_no_generator_where_the_folder_has_none(judge, monkeypatch):
    monkeypatch.setattr(judge.config, "conditioning_source", "elsewhere")
    assert Generator.beside(judge) is None


def test_the_generator_shares_what_the_scorer_holds(generator, judge):
    assert generator.pipeline.vae is judge.scorer.pipeline.vae
    assert generator.pipeline.text_encoder is judge.scorer.pipeline.text_encoder
    assert generator.pipeline.scheduler is not judge.scorer.pipeline.scheduler
    assert generator.judge is judge
