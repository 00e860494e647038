"""Reader of the published DiNa-LRM layout: `config.json` (with `model` and `training`), `checkpoint/backbone_lora/`,
`checkpoint/rm_head.pt` or `checkpoint/full_model.pt`. There is no writer."""

import json
import re
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file

from .backbone_dina import BACKBONES, is_adapter_key


class OfficialCheckpoint(NamedTuple):
    """A published checkpoint, converted to the names of this package.

    Attributes:
        config: fields of `DinaConfig` that the checkpoint determines, which excludes those of the backbone.
        base_model: Hub id of the diffusion model that the checkpoint was trained on.
        head: state dict of the head.
        adapter: state dict of the LoRA layers; empty if there are none.
        backbone: state dict of the backbone's base weights; empty if they are those of `base_model`.
    """

    config: dict[str, Any]
    base_model: str
    head: dict[str, torch.Tensor]
    adapter: dict[str, torch.Tensor]
    backbone: dict[str, torch.Tensor]


def read_official(checkpoint_dir: str | Path) -> OfficialCheckpoint:
    """Read a checkpoint folder in the published layout.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file does not have this layout, or a setting is not supported by this package.
    """
    root = Path(checkpoint_dir)
    settings = json.loads((root / "config.json").read_text()).get("model")
    if not isinstance(settings, dict):
        raise ValueError(f"checkpoint_dir: expected a config.json with a 'model' section, got none in {root}")
    try:
        config = _translate(settings)
    except KeyError as error:
        raise ValueError(f"{root / 'config.json'}: expected {error} in its 'model' section, got none") from None
    weights = root / "checkpoint"

    adapter, backbone = {}, {}
    lora = settings.get("lora_config") or {}
    if (weights / "full_model.pt").is_file():
        whole = _load_tensors(weights / "full_model.pt")
        head = _below(whole, "query_tokens")
        below = _below(whole, *(each.marker for each in BACKBONES.values()))
        adapter = {key: value for key, value in below.items() if is_adapter_key(key)}
        backbone = {key.replace(".base_layer.", "."): value for key, value in below.items() if key not in adapter}
        # All weights of this backbone may have been trained, so no pretrained model can replace it later.
        config["base_model"] = config["base_revision"] = None
    else:
        head = _load_tensors(weights / "rm_head.pt")
        if settings.get("use_lora"):
            lora = json.loads((weights / "backbone_lora" / "adapter_config.json").read_text())
            saved = load_file(weights / "backbone_lora" / "adapter_model.safetensors")
            adapter = {_injected_name(key): value for key, value in saved.items()}

    adapter = {key: value for key, value in adapter.items() if _block(key) < config["num_layers"]}
    if adapter:
        config["lora"] = _translate_lora(lora, adapter)
    return OfficialCheckpoint(config, settings["backbone_model_id"], head, adapter, backbone)


def _translate(settings: dict[str, Any]) -> dict[str, Any]:
    """Translate the `model` section of the configuration to fields of `DinaConfig`."""
    head = settings["reward_head"]
    expected = {"use_text_features": True, "use_t_embed": True}
    for name, value in expected.items():
        if settings.get(name, value) != value:
            raise ValueError(f"model.{name}: expected {value}, got {settings[name]}")
    if head.get("out_dim", 1) != 1:
        raise ValueError(f"model.reward_head.out_dim: expected 1, got {head['out_dim']}")
    visual, text = settings["visual_head_idx"], settings["text_head_idx"]
    return {
        # The layout may count blocks after the last layer that the head uses; they do not affect the score.
        "num_layers": max(*visual, *text),
        "visual_layers": visual,
        "text_layers": text,
        "head_width": head["width"] if head["width"] > 0 else None,
        "num_queries": head["num_queries"],
        "num_attention_heads": head["num_attn_heads"],
        "head_dropout": head["dropout"],
        "project_in": head["use_proj_in"],
        "logistic": settings["use_logistic"],
    }


def _translate_lora(lora: dict[str, Any], adapter: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Translate PEFT's settings to `DinaConfig.lora`, with the target modules taken from the weights."""
    for name in ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern"):
        if lora.get(name):
            raise ValueError(f"lora: expected a plain adapter, got {name}={lora[name]}")
    modules = {key.split(".lora_")[0] for key in adapter}
    targets = sorted({re.sub(r"^.*\.(attn2?|attention)\.", "", module) for module in modules})
    return {"rank": lora["r"], "alpha": lora["lora_alpha"], "targets": targets}


def _load_tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, UnpicklingError) as error:
        raise ValueError(f"{path}: expected a state dict of tensors, got what torch cannot load: {error}") from error


def _below(weights: dict[str, torch.Tensor], *markers: str) -> dict[str, torch.Tensor]:
    """The weights of a state dict that share the prefix of the weight with one of the names `markers`, without that
    prefix."""
    prefixes = [key.removesuffix(marker) for marker in markers for key in weights if key.endswith(marker)]
    if len(prefixes) != 1:
        raise ValueError(f"full_model.pt: expected one weight named …{' or …'.join(markers)}, got {len(prefixes)}")
    prefix = prefixes[0]
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}


def _injected_name(key: str) -> str:
    """Translate a key of a PEFT adapter file to the name of that weight in the backbone."""
    return re.sub(r"\.(lora_[AB])\.weight$", r".\1.default.weight", key.removeprefix("base_model.model."))


def _block(key: str) -> int:
    match = re.match(r"(?:transformer_blocks|layers)\.(\d+)\.", key)
    return int(match[1]) if match else -1


__all__ = ["OfficialCheckpoint", "read_official"]
