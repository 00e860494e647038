"""The embedded default on real image files: it agrees with annotators, reads its prompt, and loads by itself."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from PIL import Image

from modeling_dina import DinaScorer
from modeling_dina.remote_code import remote_code_files
from tests.processes import Worker, run_code
from training.world.groups import GROUP_SIZE, Groups, pairwise_accuracy
from training.world.models.text import MAX_LENGTH
from training.world.utility import decompose

ROOT = Path(__file__).parents[1]
EMBEDDED = ROOT / "modeling_dina" / "tiny"
EXAMPLES = [ROOT / "space" / "examples" / name for name in ("clear_1.png", "clear_2.png")]
PROMPT = "a red circle and a blue square"
GROUPS = 30


@pytest.fixture(scope="module")
def scorer():
    return DinaScorer.from_pretrained(EMBEDDED, batch_size=60)


@pytest.fixture(scope="module")
def groups(tmp_path_factory):
    """Prompts, image files and utilities of groups that no training or test set of the build has."""
    folder = tmp_path_factory.mktemp("images")
    drawn = Groups.draw(range(GROUPS), 1234)
    paths = [folder / f"{index}.png" for index in range(GROUPS * GROUP_SIZE)]
    for path, picture in zip(paths, np.concatenate(drawn.pictures), strict=True):
        Image.fromarray(picture).save(path)
    return np.repeat(drawn.captions, GROUP_SIZE).tolist(), paths, drawn.utilities


def test_agrees_with_annotators_and_reads_the_prompt(scorer, groups):
    prompts, paths, utilities = groups
    scores = scorer.score(prompts=prompts, images=paths).scores.view(GROUPS, GROUP_SIZE).numpy()
    right = pairwise_accuracy(scores, utilities)
    assert right["ratio"] > 0.85
    others = prompts[GROUP_SIZE:] + prompts[:GROUP_SIZE]
    scores = scorer.score(prompts=others, images=paths).scores.view(GROUPS, GROUP_SIZE).numpy()
    assert pairwise_accuracy(scores, utilities)["accuracy"] < right["accuracy"] - 0.1


@pytest.mark.slow
def test_scores_do_not_depend_on_company(scorer, groups):
    prompts, paths, _ = (part[:12] for part in groups)
    together = scorer.score(prompts=prompts, images=paths).scores
    backwards = scorer.score(prompts=prompts[::-1], images=paths[::-1]).scores.flip(0)
    alone = [scorer.score(prompts=[p], images=[i]).scores for p, i in zip(prompts, paths, strict=True)]
    in_fives = DinaScorer(scorer.model, scorer.pipeline, batch_size=5).score(prompts=prompts, images=paths).scores
    for other in (backwards, torch.cat(alone), in_fives):
        torch.testing.assert_close(other, together, atol=1e-5, rtol=0)


def test_compares_the_examples_on_the_command_line(tmp_path):
    plot = tmp_path / "comparison.png"
    command = ["compare", *EXAMPLES, "--prompt", PROMPT, "--json", "--plot", plot]
    printed, _ = Worker("tests.dina", *command, environment={}).communicate()
    result = json.loads(printed.splitlines()[-1])
    assert result["win_probability"] > 0.5
    assert result["scores"][0] > result["scores"][1]
    assert min(Image.open(plot).size) > 300


def test_the_code_beside_the_weights_is_a_copy_of_the_package_s():
    """`make code` brings it up to date."""
    assert not [path for path in (ROOT / "modeling_dina").rglob("*") if path.is_symlink()]
    assert sorted(EMBEDDED.glob("*.py")) == [EMBEDDED / path.name for path in remote_code_files()]
    for path in remote_code_files():
        assert (EMBEDDED / path.name).read_bytes() == path.read_bytes(), f"{path.name} has changed: run `make code`"


def test_loads_and_scores_alike_where_the_package_cannot_be_imported(scorer, tmp_path):
    """The code beside the weights is this package's own, and enough."""
    code = """
import sys
sys.modules["modeling_dina"] = None
from transformers import AutoModel
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules"), type(model)
print(model.scorer().score(prompts=[sys.argv[2]], images=[sys.argv[3]]).scores.item())
"""
    printed = run_code(code, EMBEDDED, PROMPT, EXAMPLES[0], folder=tmp_path)
    expected = scorer.score(prompts=[PROMPT], images=[EXAMPLES[0]]).scores.item()
    assert float(printed[-1]) == pytest.approx(expected, abs=1e-6)


def test_generates_pictures_that_show_shapes():
    pipeline = StableDiffusion3Pipeline.from_pretrained(EMBEDDED)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        ["a large red circle"] * 4,
        height=64,
        width=64,
        guidance_scale=3.0,
        num_inference_steps=16,
        max_sequence_length=MAX_LENGTH,
        generator=torch.Generator().manual_seed(0),
    ).images
    regions = [decompose(np.asarray(image)).regions for image in images]
    assert sum(any(region.color_fit["red"] > 0.5 for region in found) for found in regions) >= 3


def test_stays_small():
    """Weights, tokenizers and card; the code is the package's own."""
    files = [path for path in EMBEDDED.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")]
    assert sum(path.stat().st_size for path in files) <= 25e6
    assert not {path.suffix for path in files} & {".bin", ".pt", ".pth", ".ckpt", ".pkl"}
