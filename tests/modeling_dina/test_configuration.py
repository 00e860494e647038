"""Configurations survive a round trip and refuse what cannot be built, naming the field."""

import pytest
from huggingface_hub.errors import StrictDataclassError

from modeling_dina import DinaConfig


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
