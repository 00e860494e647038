"""Every set that made the shipped weights and the committed results is still drawn to the byte.

Each set is held by the first digits of three SHA-256 sums: of its captions, of the bytes of its pictures, and of its
utilities to four digits.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from diffusers import AutoencoderKL, StableDiffusion3Pipeline
from PIL import Image

import training
from model_card.world_benchmark import read_world
from modeling_dina.options import EMBEDDED_MODEL
from space.make_examples import FOLDER, draw_attempts, draw_spoilt
from training.align.prompts import Prompts
from training.world.annotators import ANNOTATORS
from training.world.groups import FLAWS, Groups, cast_votes, draw_description, draw_flawed
from training.world.latents import encode, rendered_groups
from training.world.models.generated import generated_groups
from training.world.models.pictures import Pictures
from training.world.scenes import Description, Thing, sample_description
from training.world.seeds import Seed
from training.world.utility import true_utility

COUNT = 4


def digest(content) -> str:
    """Ten digits of the hash of bytes, or of what JSON can hold."""
    return hashlib.sha256(content if isinstance(content, bytes) else json.dumps(content).encode()).hexdigest()[:10]


def digests(captions, pictures, utilities) -> tuple[str, str, str]:
    values = np.asarray(utilities, float).round(4).ravel().tolist()
    return digest(list(captions)), digest(np.stack(list(pictures)).tobytes()), digest(values)


@pytest.fixture(scope="module")
def vae():
    return AutoencoderKL.from_pretrained(EMBEDDED_MODEL, subfolder="vae")


@pytest.mark.parametrize(
    ("seed", "held_out", "expected", "votes"),
    [
        (Seed.RENDERED, False, ("e52fdcc061", "2dbbe5e662", "d3f82f3c83"), "c77a37050c"),
        (Seed.TEST_SEEN, False, ("1c796e5fca", "c5db327abf", "4d1687b53e"), "82ab0aa786"),
        (Seed.TEST_HELD_OUT, True, ("1ad77bb57d", "308ae76bca", "77d10b99ee"), "1194f5f861"),
        (Seed.VALIDATION, False, ("97ab85cd51", "0b5b39c1af", "f08bbb9c19"), "4e44f313b5"),
        (Seed.STUDY_TRAIN, False, ("ece8f0a26a", "e3a0e9340d", "476684e4d6"), "2d7f141143"),
        (Seed.STUDY_SEEN, False, ("44e7f06394", "59124457e6", "2719dc7a23"), "14b20303c4"),
        (Seed.STUDY_HELD_OUT, True, ("b89605bb3c", "dfbe177012", "1c6135d599"), "7b0751731d"),
    ],
)
def test_rendered_groups(seed, held_out, expected, votes):
    groups = Groups.draw(range(COUNT), seed, held_out)
    assert digests(groups.captions, np.concatenate(groups.pictures), groups.utilities) == expected
    shares = cast_votes(groups.utilities.astype(np.float32))
    assert digest((ANNOTATORS * shares).round().astype(int).tolist()) == votes


def test_stored_groups_are_those_that_were_drawn(vae, tmp_path):
    drawn = Groups.draw(range(COUNT), Seed.TEST_HELD_OUT, held_out=True)
    for _ in range(2):  # written, then read
        stored = rendered_groups(tmp_path, vae, groups=COUNT, seed=Seed.TEST_HELD_OUT, held_out=True)
        assert stored.captions == drawn.captions
        assert (np.stack(stored.pictures) == drawn.pictures).all()
        assert (stored.utilities == drawn.utilities.astype(np.float32)).all()
        assert (stored.latents.flatten(0, 1) == encode(vae, np.concatenate(drawn.pictures))).all()


def test_benchmark():
    preferences = read_world(COUNT)
    items, pairs = preferences.items, preferences.pairs()
    found = digests([item.prompt for item in items], [np.asarray(item.open()) for item in items], pairs.label)
    assert found == ("d2d850e8b5", "25e1c5e370", "0601273b1c")
    assert set(pairs.category[:6]) == {"seen combinations"}
    assert set(pairs.category[6:12]) == {"held-out combinations"}


@pytest.mark.parametrize(
    ("seed", "defect_share", "expected"),
    [
        (Seed.AUTOENCODER, 0.4, ("5119931c55", "fdcf1f5729")),
        (Seed.LATENT_SCALE, 0.4, ("7f5a249318", "3d7e4eccec")),
        (Seed.GENERATOR, 0.1, ("8ce87f07e1", "6a66fcc0c7")),
    ],
)
def test_single_pictures(seed, defect_share, expected):
    drawn = [Pictures(seed, defect_share).draw(index) for index in range(8)]
    assert digests([text.caption for text, _ in drawn], [image for _, image in drawn], [])[:2] == expected


@pytest.mark.parametrize("flaw", FLAWS)
def test_flaws_make_pictures_worse(flaw):
    """By the mean true utility of a few pairs; a single mild defect can leave the measured utility unchanged."""
    falls = []
    for index in range(6):
        description, clean, flawed = draw_flawed(Seed.FLAWS, index, flaw)
        assert not description.held_out
        falls.append(true_utility(description, clean) - true_utility(description, flawed))
    assert np.mean(falls) > 0.1


@pytest.mark.parametrize(("seed", "expected"), [(Seed.GENERATED, "9a4408187b"), (Seed.TEST_GENERATED, "275aec89f9")])
def test_captions_of_generated_groups(seed, expected):
    assert digest([draw_description(seed, index).caption for index in range(8)]) == expected


def test_generated_groups(tmp_path):
    """Two batches, the second with guidance. Sampling rounds differently on other machines, so not to the byte."""
    pipeline = StableDiffusion3Pipeline.from_pretrained(EMBEDDED_MODEL)
    groups = generated_groups(tmp_path, pipeline, groups=3, seed=Seed.TEST_GENERATED, batch_size=2)
    assert groups.captions == [draw_description(Seed.TEST_GENERATED, index).caption for index in range(3)]
    expected = [[0.734, -0.318, -0.185, 0.847], [0.205, -0.188, 0.155, -0.099], [0.273, 0.154, -0.452, 0.461]]
    assert groups.latents[:, :, 0, 0, 0].numpy() == pytest.approx(np.array(expected), abs=0.02)
    assert groups.utilities.mean(axis=1) == pytest.approx([3.23, 2.95, 3.37], abs=0.2)


def test_captions_of_the_tokenizer():
    rng = np.random.default_rng(Seed.TOKENIZER_AND_VOTES)
    assert digest([sample_description(rng).caption for _ in range(5000)]) == "46ac05a100"


def test_prompts_of_alignment():
    assert digest(Prompts("world", Seed.ALIGNMENT_EVALUATION).batch(0, 8, 2)) == "f32384bb32"
    assert digest(Prompts("world", (Seed.ALIGNMENT_PROMPTS, 0)).batch(0, 8)) == "469e49585c"


def test_examples_of_the_space():
    circle, square, star = Thing("red", "circle"), Thing("blue", "square"), Thing("red", "star")
    for name, things, make in (("attempts", (circle, square), draw_attempts), ("spoilt", (star,), draw_spoilt)):
        for index, picture in enumerate(make(Description(things), np.random.default_rng(Seed.EXAMPLES)), 1):
            assert (np.asarray(Image.open(FOLDER / f"{name}_{index}.png")) == picture).all()


def test_configuration_of_the_embedded_default():
    config = Path(training.__file__).parent / "configs" / "small_world.yaml"
    data = yaml.safe_load(config.read_text())
    assert data["train_data"] == [f"world:2000:{int(Seed.RENDERED)}"]
    assert data["validation_data"] == [f"world:256:{int(Seed.VALIDATION)}"]
