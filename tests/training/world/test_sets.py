"""Every set that made the shipped weights and the committed results is still drawn to the byte.

Each set is held by the first digits of three SHA-256 sums: of its captions, of the bytes of its pictures, and of its
utilities to four digits.
"""

import hashlib
import json

import numpy as np
import pytest
from diffusers import AutoencoderKL

from model_card.benchmarks.world import read_world
from modeling_dina.cli import EMBEDDED_MODEL
from training.align.prompts import Prompts
from training.align.world import EVALUATION_SEED, PROMPT_SEED
from training.world import preferences
from training.world.annotators import vote
from training.world.data import Pictures
from training.world.preferences import ANNOTATORS, FIRST, SECOND
from training.world.scenes import sample_description

GROUPS = 4


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
        (10, False, ("e52fdcc061", "2dbbe5e662", "d3f82f3c83"), "c77a37050c"),
        (20, False, ("1c796e5fca", "c5db327abf", "4d1687b53e"), "82ab0aa786"),
        (21, True, ("1ad77bb57d", "308ae76bca", "77d10b99ee"), "1194f5f861"),
        (23, False, ("97ab85cd51", "0b5b39c1af", "f08bbb9c19"), "4e44f313b5"),
        (50, False, ("ece8f0a26a", "e3a0e9340d", "476684e4d6"), "2d7f141143"),
        (51, False, ("44e7f06394", "59124457e6", "2719dc7a23"), "14b20303c4"),
        (52, True, ("b89605bb3c", "dfbe177012", "1c6135d599"), "7b0751731d"),
    ],
)
def test_rendered_groups(vae, tmp_path, monkeypatch, seed, held_out, expected, votes):
    pictures, encode = [], preferences.encode
    monkeypatch.setattr(
        preferences, "encode", lambda vae, images, **options: pictures.extend(images) or encode(vae, images, **options)
    )
    tensors, captions = preferences.rendered_groups(tmp_path, vae, groups=GROUPS, seed=seed, held_out=held_out)
    utilities = tensors["utilities"].numpy()
    assert digests(captions, pictures, utilities) == expected
    shares = vote(utilities[:, FIRST], utilities[:, SECOND], ANNOTATORS, np.random.default_rng(0))
    assert digest((ANNOTATORS * shares).round().astype(int).tolist()) == votes


def test_benchmark():
    preferences = read_world(GROUPS)
    items, pairs = preferences.items, preferences.pairs()
    found = digests([item.prompt for item in items], [np.asarray(item.open()) for item in items], pairs.label)
    assert found == ("d2d850e8b5", "25e1c5e370", "0601273b1c")
    assert set(pairs.category[:6]) == {"seen combinations"}
    assert set(pairs.category[6:12]) == {"held-out combinations"}


@pytest.mark.parametrize(
    ("seed", "spoilt", "expected"),
    [
        (1, 0.4, ("5119931c55", "fdcf1f5729")),
        (2, 0.4, ("7f5a249318", "3d7e4eccec")),
        (3, 0.1, ("8ce87f07e1", "6a66fcc0c7")),
    ],
)
def test_single_pictures(seed, spoilt, expected):
    drawn = [Pictures(seed=seed, size=1000, spoilt=spoilt).draw(index) for index in range(8)]
    assert digests([text.caption for text, _ in drawn], [image for _, image in drawn], [])[:2] == expected


@pytest.mark.parametrize(("seed", "expected"), [(11, "9a4408187b"), (22, "275aec89f9")])
def test_captions_of_generated_groups(seed, expected):
    captions = [sample_description(np.random.default_rng((seed, index))).caption for index in range(8)]
    assert digest(captions) == expected


def test_captions_of_the_tokenizer():
    rng = np.random.default_rng(0)
    assert digest([sample_description(rng).caption for _ in range(5000)]) == "46ac05a100"


def test_prompts_of_alignment():
    assert digest(Prompts("world", EVALUATION_SEED).batch(0, 8, 2)) == "f32384bb32"
    assert digest(Prompts("world", (PROMPT_SEED, 0)).batch(0, 8)) == "c9279d41a2"
    assert digest(Prompts("world", (PROMPT_SEED, 1)).batch(0, 8)) == "0936f9d0d1"
