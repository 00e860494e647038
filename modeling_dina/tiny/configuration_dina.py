"""Configuration of a DiNa latent reward model: its diffusion transformer, the layers whose features it uses, its
reward head and its likelihood."""

import copy
import math
from dataclasses import field, fields
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig

from .backbone_base_dina import Dimensions
from .backbone_dina import backbone_class
from .noising_dina import DEFAULT_LEVELS
from .presets_dina import PRESETS, SD35_MEDIUM

ENSEMBLE_MODES = ("features", "mean", "precision")

# Fields of single families, which are written to config.json only where they differ from their defaults.
FAMILY_FIELDS = ("timestep_scale",)


def _preset_value(name: str):
    return lambda: copy.deepcopy(PRESETS[SD35_MEDIUM][name])


@strict
class DinaConfig(PreTrainedConfig):
    r"""
    The defaults describe DiNa-LRM on Stable Diffusion 3.5 Medium (arXiv 2602.11146). `DinaConfig.preset` describes a
    reward model on another published diffusion model.

    Fields are also checked when they are set later. Fields that depend on one another must be set together:
    `config.update({"num_layers": 8, "visual_layers": [4, 8], "text_layers": [8]})`.

    Args:
        backbone_type: family of the diffusion transformer; a key of `backbone_dina.BACKBONES`.
        transformer_config: diffusers configuration of the *whole* original transformer, of which the reward model
            uses the first `num_layers` blocks.
        num_layers: number of blocks, of all kinds; equal to the highest of `visual_layers` and `text_layers`.
        visual_layers, text_layers: numbers of the blocks whose output tokens the head uses. 0 is the embedded input.
        head_width: width of the head, a multiple of 4 and of `num_attention_heads`; None uses the backbone's token
            width.
        num_queries: number of learnt queries in the head.
        num_attention_heads: number of attention heads in the head; those of the backbone are in `transformer_config`.
        head_dropout: dropout probability inside the head, in [0, 1).
        project_in: project tokens to `head_width` even if the widths are equal.
        logistic: map raw scores to (0, 1) by the logistic function.
        lora: `{"rank": int, "alpha": number, "targets": [module name suffixes]}`, the LoRA adapter of the
            backbone, or None. "exclude", which may be omitted, lists suffixes of names of modules without LoRA.
        scheduler_config: diffusers configuration of the scheduler that defines the backbone's noise levels.
        timestep_scale: factor from the noise level and the guidance scale to the arguments of FLUX.1's embeddings:
            1000 as in diffusers, 1 in the published reward models on FLUX.1. Other families have 1000.
        variance_slope: k in the likelihood's variance k sigma^2 + floor (arXiv 2602.11146).
        variance_floor: the floor in this formula, sigma_u^2 in the paper: 0.05 in the released code, 0.01 in the
            paper.
        default_sigmas: default noise levels of `reward`, each in [0, 1]. Models on a variance-preserving path have by
            default the levels at which the signal-to-noise ratio is that of 0.2, 0.5 and 0.7 of a rectified flow.
        default_num_draws: default number of noise draws at each level.
        ensemble_mode: how levels are combined: "features", "mean" or "precision".
        score_mean, score_std: calibration of scores: `(raw - score_mean) / score_std`. With 0 and 1 scores are raw.
        temperature: calibration of the likelihood: factor on its standard deviation.
        conditioning_source: source of the VAE, text encoders and tokenizers: a Hub id, an absolute path, or a path
            relative to the weights ("." is the folder, or the Hub repository and revision, of the weights).
        conditioning_revision, conditioning_subfolder: branch, tag or commit of a `conditioning_source` on the Hub, and
            the folder in it.
        conditioning: the text encoders and the VAE that the model was trained with, as recorded by
            `conditioning_dina.describe_conditioning`. A pipeline that differs is an error. None means unknown.
        max_sequence_length: maximum number of text tokens of the T5 encoder or the language model.
        base_model, base_revision: the pretrained diffusion model whose blocks form the backbone.
        adapter_only: True for a checkpoint with only the LoRA and the head, which takes all other weights from
            `base_model`. Set by `save_pretrained(..., adapter_only=True)`; False for every loaded model.
    """

    model_type = "dina"

    backbone_type: str = "sd3"
    transformer_config: dict = field(default_factory=_preset_value("transformer_config"))
    num_layers: int = 12
    visual_layers: list[int] | tuple[int, ...] = (4, 8, 12)
    text_layers: list[int] | tuple[int, ...] = (4, 8, 12)
    head_width: int | None = None
    num_queries: int = 4
    num_attention_heads: int = 8
    head_dropout: float | int = 0.0
    project_in: bool = False
    logistic: bool = False
    lora: dict | None = None
    scheduler_config: dict = field(default_factory=_preset_value("scheduler_config"))
    timestep_scale: float | int = 1000.0
    variance_slope: float | int = 2.0
    variance_floor: float | int = 0.05
    default_sigmas: list[float | int] | tuple[float | int, ...] = DEFAULT_LEVELS
    default_num_draws: int = 1
    ensemble_mode: str = "features"
    score_mean: float | int = 0.0
    score_std: float | int = 1.0
    temperature: float | int = 1.0
    conditioning_source: str | None = None
    conditioning_revision: str | None = None
    conditioning_subfolder: str = ""
    conditioning: dict | None = None
    max_sequence_length: int = 128
    base_model: str | None = None
    base_revision: str | None = None
    adapter_only: bool = False

    @classmethod
    def preset(cls, name: str, **fields) -> "DinaConfig":
        """
        Create the configuration of a reward model on a published diffusion model, with the default layers of its
        family.

        ```python
        >>> config = DinaConfig.preset("flux1-dev", head_width=1536)
        ```

        Args:
            name: a key of `presets_dina.PRESETS`, such as "sd3.5-medium", "flux1-dev" or "qwen-image".
            fields: fields that differ.

        Raises:
            ValueError: there is no such preset.
        """
        if name not in PRESETS:
            raise ValueError(f"name: expected one of {sorted(PRESETS)}, got {name!r}")
        preset = copy.deepcopy(PRESETS[name])
        preset |= backbone_class(preset["backbone_type"]).default_fields(preset["transformer_config"])
        return cls(**preset | fields)

    @property
    def dimensions(self) -> Dimensions:
        """Sizes that the transformer determines, such as the channels of latents and the width of text embeddings."""
        return backbone_class(self.backbone_type).describe(self.transformer_config)

    def to_dict(self) -> dict[str, Any]:
        """Like the inherited method, without `FAMILY_FIELDS` that have their defaults."""
        values = super().to_dict()
        defaults = {name: getattr(type(self), name) for name in FAMILY_FIELDS}
        return {name: value for name, value in values.items() if name not in defaults or value != defaults[name]}

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """Like the inherited method, but refuses the configuration of another model type instead of using defaults."""
        if config_dict.get("model_type") != cls.model_type:
            raise ValueError(f"model_type: expected {cls.model_type!r}, got {config_dict.get('model_type')!r}")
        # The inherited method sets fields one by one, but some are valid only together.
        own = {name: kwargs.pop(name) for name in _own_fields(cls) & kwargs.keys()}
        return super().from_dict({**config_dict, **own}, **kwargs)

    def __setattr__(self, name, value):
        # The constructor sets the first value of a field, and checks all fields at its end.
        if name in self.__dict__ and name in _own_fields(type(self)):
            self.update({name: value})
        else:
            super().__setattr__(name, value)

    def update(self, config_dict: dict[str, Any]) -> None:
        """Change several fields together.

        Raises:
            StrictDataclassError: a field would be invalid; then no field is changed.
        """
        changed = copy.copy(self)
        for name, value in config_dict.items():
            super(DinaConfig, changed).__setattr__(name, value)
        changed.validate()
        self.__dict__.update(changed.__dict__)

    def validate_layers(self):
        """The layers must be among the first `num_layers` blocks, and the last block must be one of them. A family may
        have further rules."""
        backbone = backbone_class(self.backbone_type)
        depth = backbone.depth(self.transformer_config)
        if not 0 <= self.num_layers <= depth:
            raise ValueError(f"num_layers: expected 0 to the transformer's {depth} blocks, got {self.num_layers}")
        for name in ("visual_layers", "text_layers"):
            layers = list(getattr(self, name))
            if not layers or layers != sorted(set(layers)) or not 0 <= layers[0] <= layers[-1] <= self.num_layers:
                raise ValueError(
                    f"{name}: expected rising layer numbers between 0 (the embedded input) and "
                    f"num_layers={self.num_layers}, got {layers}; DinaConfig.update changes both together"
                )
        deepest = max(*self.visual_layers, *self.text_layers)
        if deepest < self.num_layers:
            raise ValueError(
                f"num_layers: expected {deepest}, the highest visual or text layer, got {self.num_layers}; "
                "DinaConfig.update changes both together"
            )
        backbone.check_config(self)

    def validate_head(self):
        """Check the ranges of the head's and the LoRA's fields."""
        _require_positive(self, "num_queries", "num_attention_heads")
        if not 0 <= self.head_dropout < 1:
            raise ValueError(f"head_dropout: expected a probability in [0, 1), got {self.head_dropout}")
        if self.head_width is not None and (
            self.head_width <= 0 or self.head_width % 4 or self.head_width % self.num_attention_heads
        ):
            raise ValueError(
                f"head_width: expected a positive multiple of 4 and of num_attention_heads="
                f"{self.num_attention_heads}, got {self.head_width}"
            )
        if self.lora is not None and set(self.lora) - {"exclude"} != {"rank", "alpha", "targets"}:
            raise ValueError(
                "lora: expected the keys 'rank', 'alpha' and 'targets', and possibly 'exclude', "
                f"got {sorted(self.lora)}"
            )
        if self.lora is not None and not (self.lora["rank"] > 0 and math.isfinite(self.lora["alpha"])):
            raise ValueError(f"lora: expected a positive 'rank' and a finite 'alpha', got {self.lora}")

    def validate_reward(self):
        """Check the ranges of the likelihood's, the ensemble's and the calibration's fields."""
        _require_positive(self, "variance_floor", "score_std", "temperature", "default_num_draws")
        _require_positive(self, "max_sequence_length")
        if not 0 <= self.variance_slope < math.inf:
            raise ValueError(f"variance_slope: expected a finite number of at least 0, got {self.variance_slope}")
        if not math.isfinite(self.score_mean):
            raise ValueError(f"score_mean: expected a finite number, got {self.score_mean}")
        if not self.default_sigmas or not all(0 <= sigma <= 1 for sigma in self.default_sigmas):
            raise ValueError(f"default_sigmas: expected noise levels in [0, 1], got {list(self.default_sigmas)}")
        if self.ensemble_mode not in ENSEMBLE_MODES:
            raise ValueError(f"ensemble_mode: expected one of {ENSEMBLE_MODES}, got {self.ensemble_mode!r}")
        if self.adapter_only and self.base_model is None:
            raise ValueError("base_model: expected a folder or Hub id for an adapter-only checkpoint, got None")


def _require_positive(config: DinaConfig, *names: str) -> None:
    for name in names:
        if not 0 < getattr(config, name) < math.inf:
            raise ValueError(f"{name}: expected a finite positive number, got {getattr(config, name)}")


def _own_fields(config_class: type[DinaConfig]) -> set[str]:
    return {each.name for each in fields(config_class)} - {each.name for each in fields(PreTrainedConfig)}


__all__ = ["ENSEMBLE_MODES", "DinaConfig"]
