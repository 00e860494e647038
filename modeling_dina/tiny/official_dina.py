"""Reader of the published DiNa-LRM layout: `config.json` (with `model` and `training`), `checkpoint/backbone_lora/`,
`checkpoint/rm_head.pt` or `checkpoint/full_model.pt`. There is no writer."""

import json
import math
import os
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch
from huggingface_hub import snapshot_download
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers.utils import cached_file
from transformers.utils.hub import extract_commit_hash

from .backbone_dina import BACKBONES, is_adapter_key
from .conditioning_dina import Location

# Files of the layout; all others of a repository are not downloaded.
FILES = ("config.json", "checkpoint/rm_head.pt", "checkpoint/full_model.pt", "checkpoint/backbone_lora/adapter_*")

# Settings of PEFT that determine which modules have a LoRA.
PLACEMENT = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
# Settings of PEFT that `DinaConfig.lora` can express, and those that do not affect a trained adapter.
EXPRESSED = {"r", "lora_alpha", "use_rslora", *PLACEMENT}
IRRELEVANT = {
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "lora_dropout", "megatron_core", "peft_version"),
    *("qalora_group_size", "revision", "runtime_config", "task_type"),
}
# Values of other settings that describe a plain adapter. Other initialisations also change the base weights.
PLAIN = {
    "bias": ("none", None),
    "init_lora_weights": (True, False, None, "eva", "gaussian", "orthogonal"),
    "peft_type": ("LORA", None),
}


class OfficialCheckpoint(NamedTuple):
    """A published checkpoint, converted to the names of this package.

    Attributes:
        location: the folder or Hub repository, with the commit, that the checkpoint was read from.
        config: fields of `DinaConfig` that the checkpoint determines, which excludes those of the backbone.
        base_model: Hub id of the diffusion model that the checkpoint was trained on.
        head: state dict of the head.
        adapter: state dict of the LoRA layers; empty if there are none.
        lora: PEFT's settings of the adapter; None if there is none.
        backbone: state dict of the backbone's base weights; empty if they are those of `base_model`.
    """

    location: Location
    config: dict[str, Any]
    base_model: str
    head: dict[str, torch.Tensor]
    adapter: dict[str, torch.Tensor]
    lora: dict[str, Any] | None
    backbone: dict[str, torch.Tensor]


def is_official(source: str, revision: str | None = None, subfolder: str = "", **hub) -> bool:
    """Whether the `config.json` of a folder or Hub repository has the published layout: a section `model` and no
    `model_type`. False if there is no such file; arguments are as in `read_official`."""
    path = _config_path(source, revision, subfolder, hub)
    if path is None:
        return False
    try:
        settings = json.loads(Path(path).read_text("utf-8"))
    except ValueError:
        return False
    return isinstance(settings, dict) and isinstance(settings.get("model"), dict) and "model_type" not in settings


def read_official(source: str | Path, revision: str | None = None, subfolder: str = "", **hub) -> OfficialCheckpoint:
    """Read a checkpoint in the published layout. Of a Hub repository, only `FILES` are downloaded, at one commit.

    Args:
        source: a local folder or a Hub id.
        revision: branch, tag or commit on the Hub.
        subfolder: folder of the checkpoint inside `source`.
        hub: options of the Hub's loaders, such as `cache_dir` or `token`.

    Raises:
        OSError: a file is missing, or the Hub cannot be reached.
        ValueError: a file does not have this layout, or a setting is not supported by this package.
    """
    root, location = _local_copy(str(source), revision, subfolder, hub)
    config, base_model, settings = _read_settings(root)
    weights = root / "checkpoint"

    adapter, lora, backbone = {}, None, {}
    if (weights / "full_model.pt").is_file():
        whole = _load_tensors(weights / "full_model.pt")
        head = _below(whole, "query_tokens")
        below = _below(whole, *(each.marker for each in BACKBONES.values() if each.marker))
        adapter = {key: value for key, value in below.items() if is_adapter_key(key)}
        lora = (settings.get("lora_config") or {}) if adapter else None
        backbone = {key.replace(".base_layer.", "."): value for key, value in below.items() if key not in adapter}
        # All weights of this backbone may have been trained, so no pretrained model can replace it later.
        config["base_model"] = config["base_revision"] = None
    else:
        head = _load_tensors(weights / "rm_head.pt")
        if settings.get("use_lora"):
            lora, adapter = _read_adapter(weights / "backbone_lora")
    adapter = {key: value for key, value in adapter.items() if _block(key) < config["num_layers"]}
    return OfficialCheckpoint(location, config, base_model, head, adapter, lora, backbone)


def official_fields(folder: str | Path) -> tuple[dict[str, Any], str]:
    """The fields of `DinaConfig` that a local checkpoint determines, and the Hub id of its diffusion model."""
    return _read_settings(Path(folder))[:2]


def describe_adapter(
    lora: dict[str, Any], adapter: dict[str, torch.Tensor], modules: Sequence[str]
) -> dict[str, Any] | None:
    """Describe an adapter as `DinaConfig.lora`, which names the modules with a LoRA exactly; None if there are none.

    They are those that PEFT selects by the adapter's settings. If the settings have no target modules, they are those
    that the weights contain.

    Args:
        lora: PEFT's settings of the adapter.
        adapter: state dict of the LoRA layers.
        modules: names of all modules of the backbone.

    Raises:
        ValueError: the adapter has a setting that `DinaConfig.lora` cannot express.
    """
    for name, value in lora.items():
        if name not in EXPRESSED | IRRELEVANT and (value not in PLAIN[name] if name in PLAIN else value):
            raise ValueError(f"lora: expected a plain adapter, got {name}={value}")
    if missing := {"r", "lora_alpha"} - set(lora):
        raise ValueError(f"lora: expected a rank 'r' and a scale 'lora_alpha', got no {sorted(missing)}")
    if lora.get("target_modules"):
        placement: dict[str, Any] = {name: lora.get(name) for name in PLACEMENT}
        peft = LoraConfig(**placement)
        adapted = {module for module in modules if check_target_module_exists(peft, module)}
    else:
        adapted = {key.split(".lora_")[0] for key in adapter}
    if not adapted:
        return None
    targets = sorted({_suffix(module) for module in adapted})
    # PEFT divides alpha by the rank, or by its square root if `use_rslora` is set.
    alpha = lora["lora_alpha"] * (math.sqrt(lora["r"]) if lora.get("use_rslora") else 1)
    described = {"rank": lora["r"], "alpha": alpha, "targets": targets}
    exclude = sorted(module for module in modules if _suffix(module) in targets and module not in adapted)
    return described | ({"exclude": exclude} if exclude else {})


def _suffix(module: str) -> str:
    """The last part of a module's name that is not a number, with the numbers after it."""
    found = re.search(r"[^.]*[^.\d][^.]*(\.\d+)*$", module)
    return found[0] if found else module


def _local_copy(source: str, revision: str | None, subfolder: str, hub: dict) -> tuple[Path, Location]:
    """The folder of a checkpoint, downloaded if it is on the Hub, and its location."""
    if os.path.isdir(source):
        root = Path(source, subfolder)
        return root, Location(str(root))
    path = _config_path(source, revision, subfolder, hub)
    if path is None:
        raise FileNotFoundError(f"{source}: expected a checkpoint with config.json, got none")
    commit = extract_commit_hash(path, None)
    patterns = [f"{subfolder}/{name}" if subfolder else name for name in FILES]
    download = {name: value for name, value in hub.items() if name != "proxies"}
    root = snapshot_download(source, revision=commit, allow_patterns=patterns, **download)
    return Path(root, subfolder), Location(source, commit, subfolder)


def _config_path(source: str, revision: str | None, subfolder: str, hub: dict) -> str | None:
    return cached_file(source, "config.json", revision=revision, subfolder=subfolder, **hub)


def _read_settings(root: Path) -> tuple[dict[str, Any], str, dict[str, Any]]:
    """The fields of `DinaConfig` and the base model in `config.json`, and its whole `model` section."""
    path = root / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected the configuration of a published checkpoint, got none")
    content = _read_json(path)
    settings = content.get("model") if isinstance(content, dict) else None
    if not isinstance(settings, dict):
        raise ValueError(f"checkpoint: expected a config.json with a 'model' section, got none in {root}")
    try:
        return _translate(settings), settings["backbone_model_id"], settings
    except KeyError as error:
        raise ValueError(f"{path}: expected {error} in its 'model' section, got none") from None


def _read_adapter(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """PEFT's settings of an adapter, and its state dict with names of the backbone."""
    settings, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    for path in (settings, weights):
        if not path.is_file():
            raise FileNotFoundError(f"{path}: expected a file of the published layout, got none")
    try:
        saved = load_file(weights)
    except SafetensorError as error:
        raise ValueError(f"{weights}: expected safetensors, got a file that cannot be read: {error}") from error
    return _read_json(settings), {_injected_name(key): value for key, value in saved.items()}


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


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON, got what cannot be read: {error}") from error


def _load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a pickled state dict without running its code. A large file is mapped into memory, not copied."""
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (RuntimeError, EOFError, UnpicklingError) as error:
        raise ValueError(f"{path}: expected a state dict of tensors, got what torch cannot load: {error}") from error
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise ValueError(f"{path}: expected a state dict of tensors, got {type(weights).__name__} of other values")
    return weights


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


__all__ = ["OfficialCheckpoint", "describe_adapter", "is_official", "official_fields", "read_official"]
