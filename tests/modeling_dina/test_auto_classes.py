"""`import modeling_dina` is enough for transformers' Auto classes, in whatever order things are imported, and costs no
import of transformers or torch."""

import subprocess
import sys
from types import ModuleType

import pytest
import torch
from transformers import AutoConfig, AutoModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.models.auto import configuration_auto, modeling_auto

from modeling_dina import DinaConfig, DinaRewardModel
from modeling_dina.auto_classes import register

# stdin is closed: a question about trust would be an error.
FROM_THE_PACKAGE = """
import sys
import modeling_dina
import modeling_dina.cli
assert not {"torch", "transformers"} & set(sys.modules)
import peft  # which imports AutoModel while it is itself half loaded
from transformers import AutoConfig, AutoModel
for options in ({}, {"trust_remote_code": True}):
    assert type(AutoConfig.from_pretrained(sys.argv[1], **options)) is modeling_dina.DinaConfig
    assert type(AutoModel.from_pretrained(sys.argv[1], **options)) is modeling_dina.DinaRewardModel
"""

REMOTE_CODE_FIRST = """
import sys
from transformers import AutoConfig, AutoModel
config = AutoConfig.from_pretrained(sys.argv[1], trust_remote_code=True)
assert type(config).__module__.startswith("transformers_modules"), type(config)
remote = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
assert type(remote).__module__.startswith("transformers_modules"), type(remote)
import modeling_dina
assert type(AutoModel.from_pretrained(sys.argv[1])) is modeling_dina.DinaRewardModel
assert type(AutoModel.from_config(config, trust_remote_code=True)) is type(remote)
"""


@pytest.mark.slow
@pytest.mark.parametrize("code", [FROM_THE_PACKAGE, REMOTE_CODE_FIRST])
def test_orders_of_import(tiny_model, tmp_path, code):
    tiny_model.save_pretrained(tmp_path)
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


def test_from_config_and_from_pretrained(tiny_config, tiny_model, tmp_path):
    assert type(AutoModel.from_config(AutoConfig.for_model("dina", **tiny_config))) is DinaRewardModel
    tiny_model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, trust_remote_code=False)
    assert type(loaded) is DinaRewardModel
    assert torch.equal(loaded.head.head.weight, tiny_model.head.head.weight)


def test_remote_code_stays_usable_beside_the_package(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    remote = get_class_from_dynamic_module("modeling_dina.DinaRewardModel", str(tmp_path)).from_pretrained(tmp_path)
    assert type(remote).__module__.startswith("transformers_modules")
    assert type(AutoModel.from_config(remote.config)) is DinaRewardModel


def test_transformers_may_be_imported_before(monkeypatch):
    """The mappings exist already: a class of another name is entered in them at once, and imported only on use."""
    for names in (configuration_auto.CONFIG_MAPPING_NAMES, modeling_auto.MODEL_MAPPING_NAMES):
        monkeypatch.setitem(names, "dina_too", "restored afterwards")
    reverse = modeling_auto.MODEL_MAPPING._reverse_config_mapping
    monkeypatch.setitem(reverse, "DinaTooConfig", "restored afterwards")

    class DinaTooConfig(DinaConfig):
        model_type = "dina_too"

    class DinaTooModel(DinaRewardModel):
        config_class = DinaTooConfig

    package = ModuleType("dina_too")
    hooks = list(sys.meta_path)
    register(package, "dina_too", config="DinaTooConfig", model="DinaTooModel")
    assert sys.meta_path == hooks
    assert "dina_too" in configuration_auto.CONFIG_MAPPING
    package.DinaTooConfig, package.DinaTooModel = DinaTooConfig, DinaTooModel
    assert configuration_auto.CONFIG_MAPPING["dina_too"] is DinaTooConfig
    assert modeling_auto.MODEL_MAPPING[DinaTooConfig] is DinaTooModel
