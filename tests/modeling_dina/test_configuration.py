"""Configurations survive a round trip and refuse what cannot be built, naming the field."""

import math
import re

import pytest
from huggingface_hub.errors import StrictDataclassError

from modeling_dina import DinaConfig, DinaRewardModel


def test_defaults_are_the_released_model():
    config = DinaConfig()
    assert config.transformer_config["num_attention_heads"] * config.transformer_config["attention_head_dim"] == 1536
    assert (config.num_layers, list(config.visual_layers), list(config.text_layers)) == (12, [4, 8, 12], [4, 8, 12])
    assert (config.variance_slope, config.variance_floor) == (2.0, 0.05)


def test_defaults_are_not_shared_between_configs():
    DinaConfig().transformer_config["num_layers"] = 1
    assert DinaConfig().transformer_config["num_layers"] == 24


def test_round_trip(tiny_config, tmp_path):
    config = DinaConfig(**tiny_config, lora={"rank": 2, "alpha": 4, "targets": ["to_q"]}, temperature=2)
    config.save_pretrained(tmp_path)
    assert DinaConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("changes", "name", "came"),
    [
        ({"visual_layers": [1, 4]}, "visual_layers", "[1, 4]"),
        ({"text_layers": [-1]}, "text_layers", "[-1]"),
        ({"visual_layers": [3, 1]}, "visual_layers", "[3, 1]"),
        ({"visual_layers": []}, "visual_layers", "[]"),
        ({"visual_layers": [1, 2]}, "num_layers", "3"),
        ({"num_layers": 5}, "num_layers", "5"),
        ({"num_layers": 4, "text_layers": [4]}, "text_layers", "[4]"),
        ({"transformer_config": {}}, "transformer_config", "None"),
        ({"head_width": 30}, "head_width", "30"),
        ({"num_queries": 0}, "num_queries", "0"),
        ({"head_dropout": 1.0}, "head_dropout", "1.0"),
        ({"lora": {"r": 4}}, "lora", "['r']"),
        ({"default_sigmas": [0.5, 1.2]}, "default_sigmas", "[0.5, 1.2]"),
        ({"default_sigmas": []}, "default_sigmas", "[]"),
        ({"ensemble_mode": "median"}, "ensemble_mode", "'median'"),
        ({"variance_floor": 0}, "variance_floor", "0"),
        ({"variance_slope": -1}, "variance_slope", "-1"),
        ({"score_std": 0.0}, "score_std", "0.0"),
        ({"adapter_only": True}, "base_model", "None"),
        ({"num_layers": "three"}, "num_layers", "three"),
    ],
)
def test_refusals_name_the_field_and_what_came(tiny_config, changes, name, came):
    with pytest.raises(StrictDataclassError) as error:
        DinaConfig(**{**tiny_config, **changes})
    assert name in str(error.value)
    assert came in str(error.value)


def test_another_models_file_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="model_type: expected 'dina', got 'bert'"):
        DinaConfig.from_pretrained(tmp_path)


NOT_FINITE = [
    (name, value)
    for name in ("variance_slope", "variance_floor", "score_mean", "score_std", "temperature")
    for value in (math.nan, math.inf)
]


@pytest.mark.parametrize(
    ("name", "value"), [*NOT_FINITE, ("lora", {"rank": 2, "alpha": math.nan, "targets": ["to_q"]})]
)
def test_numbers_must_be_finite(tiny_config, name, value):
    with pytest.raises(
        StrictDataclassError, match=f"{name}: expected .*, got .*{'nan' if value != math.inf else 'inf'}"
    ):
        DinaConfig(**tiny_config, **{name: value})


WAYS_TO_CHANGE = {
    "attribute": lambda config, folder, name, value: setattr(config, name, value),
    "update": lambda config, folder, name, value: config.update({name: value}),
    "from_dict": lambda config, folder, name, value: DinaConfig.from_dict(config.to_dict(), **{name: value}),
    "from_pretrained": lambda config, folder, name, value: DinaConfig.from_pretrained(folder, **{name: value}),
    "model": lambda config, folder, name, value: DinaRewardModel.from_pretrained(folder, **{name: value}),
}


@pytest.mark.parametrize("way", WAYS_TO_CHANGE)
@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", -1), ("default_num_draws", 0), ("score_mean", math.inf), ("visual_layers", [1, 4])],
)
def test_a_changed_field_is_checked_like_a_given_one(tiny_model, tmp_path, way, name, value):
    tiny_model.save_pretrained(tmp_path)
    config = tiny_model.config
    before = config.to_dict()
    with pytest.raises(StrictDataclassError, match=f"{name}: expected .*, got {re.escape(str(value))}"):
        WAYS_TO_CHANGE[way](config, tmp_path, name, value)
    assert config.to_dict() == before


def test_a_list_changed_in_place_is_checked_by_the_model(tiny_config):
    config = DinaConfig(**tiny_config)
    config.visual_layers.append(4)
    with pytest.raises(StrictDataclassError, match=r"visual_layers: .*got \[1, 3, 4\]"):
        DinaRewardModel(config)


def test_fields_that_depend_on_one_another_change_together(tiny_config, tiny_model, tmp_path):
    fewer = {"num_layers": 2, "visual_layers": [1, 2]}
    config = DinaConfig(**tiny_config)
    with pytest.raises(StrictDataclassError, match=r"num_layers: expected 2, .*got 3; DinaConfig\.update"):
        config.visual_layers = [1, 2]
    config.update(fewer)
    assert (config.num_layers, config.visual_layers) == (2, [1, 2])

    tiny_model.save_pretrained(tmp_path)
    loaded, unused = DinaConfig.from_pretrained(tmp_path, **fewer, stray=1, return_unused_kwargs=True)
    assert (loaded.num_layers, loaded.visual_layers) == (2, [1, 2])
    assert "stray" in unused
    assert not fewer.keys() & unused.keys()
