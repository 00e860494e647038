"""DiNa-LRM: a diffusion-native latent reward model."""

from .configuration_dina import DinaConfig
from .modeling_dina import DinaEnsembleOutput, DinaRewardModel, DinaRewardOutput

__all__ = ["DinaConfig", "DinaEnsembleOutput", "DinaRewardModel", "DinaRewardOutput"]
