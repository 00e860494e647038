"""The registry of model families, and the weights of backbones: random, pretrained, and those of LoRA adapters."""

from collections.abc import Mapping
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.utils import cached_file

from .backbone_base_dina import Backbone
from .backbone_flux_dina import FluxBackbone
from .backbone_pixart_dina import PixArtBackbone
from .backbone_qwenimage_dina import QwenImageBackbone
from .backbone_sd3_dina import SD3Backbone
from .backbone_unet_dina import SDBackbone, SDXLBackbone
from .backbone_zimage_dina import ZImageBackbone
from .weights_dina import allocate

BACKBONES: dict[str, type[Backbone]] = {
    "sd3": SD3Backbone,
    "flux": FluxBackbone,
    "zimage": ZImageBackbone,
    "qwenimage": QwenImageBackbone,
    "sd": SDBackbone,
    "sdxl": SDXLBackbone,
    "pixart": PixArtBackbone,
}


def backbone_class(backbone_type: str) -> type[Backbone]:
    """The backbone class of a model family; raises a ValueError for an unknown family."""
    if backbone_type not in BACKBONES:
        raise ValueError(f"backbone_type: expected one of {sorted(BACKBONES)}, got {backbone_type!r}")
    return BACKBONES[backbone_type]


def build_backbone(config) -> Backbone:
    """Build the backbone of a config with random weights, and with LoRA layers if the config has any."""
    backbone = backbone_class(config.backbone_type)(config)
    if config.lora is not None:
        adapter = LoraConfig(
            r=config.lora["rank"],
            lora_alpha=config.lora["alpha"],
            target_modules=list(config.lora["targets"]),
            exclude_modules=list(config.lora.get("exclude", ())),
        )
        inject_adapter_in_model(adapter, backbone)
    return backbone


def allocate_backbone(backbone: nn.Module, dtype: torch.dtype) -> None:
    """Give a backbone that was built on the meta device its memory: uninitialised base weights of type `dtype`, and
    LoRA layers in float32 that have no effect yet."""
    for module in backbone.modules():
        if isinstance(module, LoraLayer):
            for matrices in (module.lora_A, module.lora_B):
                allocate(matrices, torch.float32)
            for name in module.active_adapters:
                module.reset_lora_parameters(name, init_lora_weights=True)
    allocate(backbone, dtype)


def merge_lora(backbone: Backbone) -> None:
    """Merge every LoRA layer into its base weight, in place unless a generator shares it, and replace it by the plain
    layer."""
    for name, module in list(backbone.named_modules()):
        if isinstance(module, BaseTunerLayer):
            base: Any = module.get_base_layer()
            if backbone.is_shared:
                base.weight.data = base.weight.data.clone()
            module.merge()
            backbone.set_submodule(name, module.get_base_layer())
    backbone.requires_grad_(True)


def freeze_base(backbone: nn.Module) -> None:
    """Make only the LoRA layers trainable."""
    for name, parameter in backbone.named_parameters():
        # A quantiser may store the adapter as integers, which cannot have gradients.
        parameter.requires_grad_(is_adapter_key(name) and parameter.is_floating_point())


def is_adapter_key(key: str) -> bool:
    """Whether a key of a backbone's state dict belongs to a LoRA weight, not to a base weight."""
    return ".lora_" in key


@torch.no_grad()
def load_base_weights(backbone: nn.Module, weights: Mapping[str, torch.Tensor], origin: str) -> None:
    """Copy the matching part of a whole transformer's weights into the backbone, including the base of LoRA layers.

    Args:
        weights: state dict of the diffusers transformer; its later blocks and output layers are not read.
        origin: source of the weights, for error messages.

    Raises:
        ValueError: weights of the backbone are missing or have another shape; the message lists them.
    """
    base = {key: value for key, value in backbone.state_dict().items() if not is_adapter_key(key)}
    if any(value.is_meta for value in base.values()):
        raise ValueError(f"device_map: the weights of {origin} cannot be put into an offloaded backbone")
    wrong = []
    # The largest first: each is in memory twice while it is copied, which matters least while the rest is not loaded.
    for key in sorted(base, key=lambda key: base[key].nbytes, reverse=True):
        value = weights.get(key.replace(".base_layer.", "."))
        if value is None or value.shape != base[key].shape:
            got = None if value is None else list(value.shape)
            wrong.append(f"{key}: expected {list(base[key].shape)}, got {got}")
        else:
            base[key].copy_(value)
    if wrong:
        raise ValueError(f"{origin} lacks weights of the backbone:\n  " + "\n  ".join(sorted(wrong)))


def share_base_weights(backbone: Backbone, transformer: nn.Module) -> int:
    """Replace the backbone's base weights that equal those of a whole transformer by these, without a copy, and freeze
    them. Modules, adapters and hooks of the transformer stay as they are.

    Args:
        transformer: the diffusers transformer, which may have adapters.

    Returns:
        The number of bytes that are now shared.
    """
    theirs = {
        key.replace(".base_layer.", "."): value
        for key, value in transformer.state_dict().items()
        if not is_adapter_key(key)
    }
    shared = 0
    for path, module in backbone.named_modules():
        for tensors in (module._parameters, module._buffers):
            for name, own in tensors.items():
                value = theirs.get(f"{path}.{name}".removeprefix(".").replace(".base_layer.", "."))
                if own is None or value is None or (own.shape, own.dtype) != (value.shape, value.dtype):
                    continue
                if torch.equal(own.to(value.device), value):
                    tensors[name] = (
                        nn.Parameter(value, requires_grad=False) if isinstance(own, nn.Parameter) else value
                    )
                    shared += value.nbytes
    backbone.is_shared = shared > 0
    return shared


def read_backbone_type(source: str, revision: str | None = None, **hub) -> str:
    """Read the family of the transformer in a diffusers folder or Hub repository; `hub` has further options of
    diffusers' loaders, such as `cache_dir` or `token`.

    Raises:
        ValueError: the configuration is not that of a transformer of a known family.
        OSError: there is no configuration, or the Hub cannot be reached.
    """
    where: dict[str, Any] = {"revision": revision, **hub}
    load_config = SD3Backbone.transformer_class.load_config  # that of every class
    config, error = {}, None
    try:
        config = load_config(source, subfolder="transformer", **where)
    except OSError as caught:
        error = caught
    # Without a folder `transformer`, the library reads a configuration beside it, such as that of a reward model.
    if not any(backbone.matches(config) for backbone in BACKBONES.values()):
        path = cached_file(
            source, "config.json", subfolder="unet", _raise_exceptions_for_missing_entries=False, **where
        )
        if path is not None:
            config = load_config(source, subfolder="unet", **where)
        elif error is not None:
            raise error
    for name, backbone in BACKBONES.items():
        if backbone.matches(config):
            return name
    known = sorted({backbone.transformer_class.__name__ for backbone in BACKBONES.values()})
    raise ValueError(f"{source}: expected the configuration of one of {known}, got {config.get('_class_name')}")


def read_transformer_config(
    backbone_type: str, source: str, revision: str | None = None, **hub
) -> tuple[dict, str | None]:
    """Read the configuration of the transformer in a diffusers folder or Hub repository, and the repository's commit;
    `hub` is as in `read_backbone_type`.

    Raises:
        ValueError: the configuration is not that of a transformer of this family.
        OSError: there is no configuration, or the Hub cannot be reached.
    """
    family = backbone_class(backbone_type)
    config, _, commit = family.transformer_class.load_config(
        source,
        revision=revision,
        subfolder=family.component,
        return_unused_kwargs=True,
        return_commit_hash=True,
        **hub,
    )
    if not family.matches(config):
        raise ValueError(
            f"{source}: expected the configuration of a {family.transformer_class.__name__}, "
            f"got {config.get('_class_name')} of another family than {backbone_type!r}"
        )
    return {key: value for key, value in config.items() if not key.startswith("_")}, commit


__all__ = [
    "BACKBONES",
    "allocate_backbone",
    "backbone_class",
    "build_backbone",
    "freeze_base",
    "is_adapter_key",
    "load_base_weights",
    "merge_lora",
    "read_backbone_type",
    "read_transformer_config",
    "share_base_weights",
]
