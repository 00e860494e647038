"""DiNa-LRM: a diffusion-native latent reward model."""

import sys
from importlib import import_module
from typing import TYPE_CHECKING

from .auto_classes import register

if TYPE_CHECKING:
    from .configuration_dina import DinaConfig
    from .modeling_dina import DinaEnsembleOutput, DinaRewardModel, DinaRewardOutput
    from .scoring_dina import DinaScorer

_HOMES = {
    "DinaConfig": "configuration_dina",
    "DinaEnsembleOutput": "modeling_dina",
    "DinaRewardModel": "modeling_dina",
    "DinaRewardOutput": "modeling_dina",
    "DinaScorer": "scoring_dina",
}

__all__ = ["DinaConfig", "DinaEnsembleOutput", "DinaRewardModel", "DinaRewardOutput", "DinaScorer"]


def __getattr__(name: str):
    """Import a public name on first use, so that `dina --help` does not have to import torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


register(sys.modules[__name__], "dina", config="DinaConfig", model="DinaRewardModel")
