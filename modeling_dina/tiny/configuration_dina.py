"""Configuration of a DiNa latent reward model: which diffusion transformer it reads, where it taps it, and how a
reward is drawn from those features."""

import copy
import math
from dataclasses import field, fields
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig

ENSEMBLE_MODES = ("features", "mean", "precision")

# The whole transformer of stabilityai/stable-diffusion-3.5-medium.
SD35_MEDIUM_TRANSFORMER: dict[str, Any] = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "out_channels": 16,
    "pos_embed_max_size": 384,
    "dual_attention_layers": list(range(13)),
    "qk_norm": "rms_norm",
}
SD35_SCHEDULER: dict[str, Any] = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "num_train_timesteps": 1000,
    "shift": 3.0,
}


@strict
class DinaConfig(PreTrainedConfig):
    r"""
    The defaults describe DiNa-LRM on Stable Diffusion 3.5 Medium (arXiv 2602.11146).

    A field that is set later is checked like one given here. Fields that depend on one another are set together:
    `config.update({"num_layers": 8, "visual_layers": [4, 8], "text_layers": [8]})`.

    Args:
        backbone_type: family of the diffusion transformer; a key of `backbone_dina.BACKBONES`.
        transformer_config: the diffusers configuration of the *whole* original transformer. The reward model keeps
            its first `num_layers` blocks.
        num_layers: blocks kept; the deepest tap.
        visual_layers, text_layers: blocks whose output tokens the head reads. 0 is the embedded input.
        head_width: width of the head; None takes the backbone's token width. A multiple of 4 and of
            `num_attention_heads`.
        num_queries: learnt queries of the head.
        num_attention_heads: attention heads of the head (the backbone's own are in `transformer_config`).
        head_dropout: dropout probability inside the head, in [0, 1).
        project_in: project tokens to `head_width` also where the widths already agree.
        logistic: squash raw scores into (0, 1) by a logistic function.
        lora: `{"rank": int, "alpha": number, "targets": [module name suffixes]}`, a LoRA adapter on the backbone, or
            None.
        scheduler_config: the diffusers configuration of the scheduler whose noise levels the backbone knows.
        variance_slope: k in the likelihood's variance k sigma^2 + floor (arXiv 2602.11146).
        variance_floor: sigma_u^2 of the same formula: 0.05 in the released code, 0.01 in the paper.
        default_sigmas: noise levels of `reward` when none are given, each in [0, 1].
        default_num_draws: noise draws at each level when none are given.
        ensemble_mode: how levels are combined: "features", "mean" or "precision".
        score_mean, score_std: calibration: every score is `(raw - score_mean) / score_std`. At 0 and 1 scores are raw.
        temperature: calibration: standard deviations of the likelihood are multiplied by it.
        conditioning_source: where VAE, text encoders and tokenizers come from: a Hub id, an absolute path, or a path
            relative to the weights ("." is the folder or the Hub repository and revision that the weights came from).
        conditioning_revision, conditioning_subfolder: of a `conditioning_source` on the Hub: its branch, tag or
            commit, and the folder in it.
        conditioning: the text encoders and the VAE that the model was trained with, as
            `conditioning_dina.describe_conditioning` records them. A pipeline that differs is refused. None: unknown.
        max_sequence_length: text tokens the conditioning pipeline keeps.
        base_model, base_revision: the pretrained diffusion model this one was made from.
        adapter_only: true of a checkpoint that holds only the LoRA and the head and takes everything else from
            `base_model`. Set by `save_pretrained(..., adapter_only=True)`; a loaded model is always whole.
    """

    model_type = "dina"

    backbone_type: str = "sd3"
    transformer_config: dict = field(default_factory=lambda: dict(SD35_MEDIUM_TRANSFORMER))
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
    scheduler_config: dict = field(default_factory=lambda: dict(SD35_SCHEDULER))
    variance_slope: float | int = 2.0
    variance_floor: float | int = 0.05
    default_sigmas: list[float | int] | tuple[float | int, ...] = (0.2, 0.5, 0.7)
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
    def from_dict(cls, config_dict, **kwargs):
        """As the inherited method, which would read another model's file as this one's defaults."""
        if config_dict.get("model_type") != cls.model_type:
            raise ValueError(f"model_type: expected {cls.model_type!r}, got {config_dict.get('model_type')!r}")
        # The inherited method would set them one by one, and some are valid only together.
        own = {name: kwargs.pop(name) for name in _own_fields(cls) & kwargs.keys()}
        return super().from_dict({**config_dict, **own}, **kwargs)

    def __setattr__(self, name, value):
        # A field's first value comes from the constructor, which checks all fields when it has set them.
        if name in self.__dict__ and name in _own_fields(type(self)):
            self.update({name: value})
        else:
            super().__setattr__(name, value)

    def update(self, config_dict: dict[str, Any]) -> None:
        """Change several fields together.

        Raises:
            StrictDataclassError: naming the field that would not be valid; then nothing has changed.
        """
        changed = copy.copy(self)
        for name, value in config_dict.items():
            super(DinaConfig, changed).__setattr__(name, value)
        changed.validate()
        self.__dict__.update(changed.__dict__)

    def validate_layers(self):
        """Taps must lie on kept blocks, and every kept block must serve a tap."""
        depth = self.transformer_config.get("num_layers")
        if not isinstance(depth, int):
            raise ValueError(f"transformer_config: expected an integer under 'num_layers', got {depth!r}")
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
                f"num_layers: expected {deepest}, the deepest tap, got {self.num_layers}; "
                "DinaConfig.update changes both together"
            )
        if depth in self.text_layers:
            raise ValueError(
                f"text_layers: the original transformer's last block ({depth}) has no text output to tap, "
                f"got {list(self.text_layers)}"
            )

    def validate_head(self):
        """Ranges of the head's own numbers."""
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
        if self.lora is not None and set(self.lora) != {"rank", "alpha", "targets"}:
            raise ValueError(f"lora: expected the keys 'rank', 'alpha' and 'targets', got {sorted(self.lora)}")
        if self.lora is not None and not (self.lora["rank"] > 0 and math.isfinite(self.lora["alpha"])):
            raise ValueError(f"lora: expected a positive 'rank' and a finite 'alpha', got {self.lora}")

    def validate_reward(self):
        """Ranges of likelihood, ensemble and calibration."""
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
            raise ValueError("base_model: an adapter-only checkpoint must name its base, got None")


def _require_positive(config: DinaConfig, *names: str) -> None:
    for name in names:
        if not 0 < getattr(config, name) < math.inf:
            raise ValueError(f"{name}: expected a finite positive number, got {getattr(config, name)}")


def _own_fields(config_class: type[DinaConfig]) -> set[str]:
    return {each.name for each in fields(config_class)} - {each.name for each in fields(PreTrainedConfig)}


__all__ = ["ENSEMBLE_MODES", "DinaConfig"]
