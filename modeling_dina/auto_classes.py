"""Registers this package's classes with transformers' `AutoConfig` and `AutoModel`, in any order of imports, without
importing transformers or torch: the Auto classes get names, which they resolve on first use."""

import sys
from collections.abc import Callable, Mapping
from importlib.machinery import PathFinder
from types import ModuleType
from typing import Any


def register(package: ModuleType, model_type: str, config: str, model: str) -> None:
    """Add a configuration class and a model class, by name, to the mappings of `AutoConfig` and `AutoModel`:
    immediately if transformers has already loaded a mapping, otherwise as soon as it does.

    Args:
        package: module that has both classes as attributes.
        model_type: model type of the configuration class.
        config, model: names of the two classes.
    """

    def enter_config(auto: ModuleType) -> None:
        auto.CONFIG_MAPPING_NAMES[model_type] = config
        auto.CONFIG_MAPPING._modules[model_type] = package

    def enter_model(auto: ModuleType) -> None:
        auto.MODEL_MAPPING_NAMES[model_type] = model
        auto.MODEL_MAPPING._reverse_config_mapping[config] = model_type
        auto.MODEL_MAPPING._modules[model_type] = package

    entries = {
        "transformers.models.auto.configuration_auto": enter_config,
        "transformers.models.auto.modeling_auto": enter_model,
    }
    for module in entries.keys() & sys.modules.keys():
        entries.pop(module)(sys.modules[module])
    if entries:
        sys.meta_path.insert(0, _AfterImport(entries))


class _AfterImport:
    """An import hook that calls a function with a module directly after its import."""

    def __init__(self, calls: Mapping[str, Callable[[ModuleType], None]]):
        self.calls = calls

    def find_spec(self, fullname, path=None, target=None):
        """The module's usual specification, with a loader that calls the function after executing the module."""
        if fullname not in self.calls:
            return None
        spec: Any = PathFinder.find_spec(fullname, path, target)
        if spec is not None:
            execute = spec.loader.exec_module
            spec.loader.exec_module = lambda module: (execute(module), self.calls[fullname](module))
        return spec


__all__ = ["register"]
