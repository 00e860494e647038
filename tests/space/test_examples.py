"""The examples show what they are said to show. If the embedded model has changed: `python -m space.make_examples`."""

import re

import pytest

from space.make_examples import KINDS
from tests.space.places import EXAMPLES
from views import is_near_tie


@pytest.mark.parametrize("index", range(len(KINDS)))
def test_a_pair_is_what_its_title_says(judge, examples, index):
    kind, example = KINDS[index], examples["pairs"][index]
    images = [EXAMPLES / name for name in example["images"]]
    result = judge.scorer.compare(prompt=example["prompt"], images=images)
    truth = float(re.search(r"probability (\d\.\d\d)\.", example["note"]).group(1))
    assert example["title"] == kind.title
    assert kind.truth[0] <= truth <= kind.truth[1]
    assert kind.model[0] <= result.win_probability <= kind.model[1]
    assert is_near_tie(result.win_probability) == (kind.name == "tie")


def test_examples_are_small_and_there(examples):
    names = [name for example in examples["pairs"] + examples["groups"] for name in example["images"]]
    assert len(set(names)) == len(names) == 8 + 16
    assert all((EXAMPLES / name).stat().st_size < 10_000 for name in names)


def test_captions_can_be_read(judge, examples):
    for caption in examples["captions"]:
        judge.checked_prompt(caption)
