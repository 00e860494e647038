"""Every configuration field is explained on the command line."""

from dataclasses import fields

import pytest

from training.align.arguments import AlignArguments
from training.align.run import ALGORITHMS
from training.label.learning_curve import CurveArguments
from training.reward.trainer import RewardTrainingArguments
from training.train_reward import DataArguments, ModelArguments

CLASSES = (
    ModelArguments,
    DataArguments,
    RewardTrainingArguments,
    CurveArguments,
    AlignArguments,
    *(algorithm.Arguments for algorithm in ALGORITHMS.values()),
)
# Fields that are inherited from transformers' TrainingArguments are explained there.
OWN_FIELDS = [
    pytest.param(field, id=f"{each.__name__}.{field.name}")
    for each in CLASSES
    for field in fields(each)
    if field.name in each.__annotations__
]


@pytest.mark.parametrize("field", OWN_FIELDS)
def test_help_is_a_sentence(field):
    text = field.metadata.get("help", "")
    assert text[:1].isupper(), text
    assert text.endswith("."), text
    assert len(text.split()) >= 4, text
