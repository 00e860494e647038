"""Feature extractors: the first blocks of a diffusers transformer, with the outputs of selected blocks. There is one
class per model family, selected by `config.backbone_type`. Each is built from a configuration alone and contains only
weights that affect the reward."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from diffusers import SD3Transformer2DModel
from diffusers.models.modeling_utils import get_parameter_dtype
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from .weights_dina import allocate


class Features(NamedTuple):
    """The outputs of a backbone that the head uses.

    Attributes:
        visual: tokens [B, V, width] of each layer in `config.visual_layers`.
        text: tokens [B, T, width] of each layer in `config.text_layers`.
        conditioning: the backbone's time-text embedding [B, width].
    """

    visual: list[torch.Tensor]
    text: list[torch.Tensor]
    conditioning: torch.Tensor


class SD3Backbone(nn.Module):
    """The first `num_layers` blocks of an `SD3Transformer2DModel` (Stable Diffusion 3 and 3.5)."""

    transformer_class = SD3Transformer2DModel
    # transformers' gradient_checkpointing_enable() sets both.
    gradient_checkpointing = False
    _gradient_checkpointing_func: Callable

    def __init__(self, config):
        super().__init__()
        whole = config.transformer_config
        if not whole.get("pos_embed_max_size"):
            raise ValueError("transformer_config: expected a positive 'pos_embed_max_size', got none")
        # The last block of an SD3Transformer2DModel has no text output. Therefore one more block is built and then
        # dropped, so that the last remaining block is like the original one.
        built = min(config.num_layers + 1, whole["num_layers"])
        transformer = SD3Transformer2DModel.from_config({**whole, "num_layers": built})
        self.pos_embed = transformer.pos_embed
        self.time_text_embed = transformer.time_text_embed
        self.context_embedder = transformer.context_embedder
        self.transformer_blocks = transformer.transformer_blocks[: config.num_layers]
        self.visual_layers = list(config.visual_layers)
        self.text_layers = list(config.text_layers)
        self.transformer_config = whole

    @staticmethod
    def token_width(config) -> int:
        """Width of the tokens and of the time-text embedding."""
        return config.transformer_config["num_attention_heads"] * config.transformer_config["attention_head_dim"]

    def forward(
        self,
        noisy_latents: torch.Tensor,
        timestep: torch.Tensor,
        prompt_embeds: torch.Tensor,
        pooled_prompt_embeds: torch.Tensor,
    ) -> Features:
        """
        Args:
            noisy_latents: [B, C, H, W].
            timestep: [B], in [0, 1000].
            prompt_embeds: [B, L, D].
            pooled_prompt_embeds: [B, P].
        """
        dtype = compute_dtype(self)
        if self.pos_embed.proj.weight.dtype != dtype:
            _upcast_outside_casting(self, dtype)
        visual = self.pos_embed(noisy_latents.to(dtype)).contiguous()
        conditioning = self.time_text_embed(timestep, pooled_prompt_embeds.to(dtype))
        text = self.context_embedder(prompt_embeds.to(dtype))

        visual_states, text_states = [visual], [text]
        for block in self.transformer_blocks:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                text, visual = self._gradient_checkpointing_func(block, visual, text, conditioning)
            else:
                text, visual = block(hidden_states=visual, encoder_hidden_states=text, temb=conditioning)
            visual_states.append(visual)
            text_states.append(text)
        return Features(
            visual=[visual_states[layer] for layer in self.visual_layers],
            text=[text_states[layer] for layer in self.text_layers],
            conditioning=conditioning,
        )

    def check_inputs(self, latents_name, latents, prompt_embeds, pooled_prompt_embeds) -> None:
        """Raise a ValueError that names the argument if this backbone does not support its shape."""
        whole = self.transformer_config
        patch, limit = whole["patch_size"], whole["patch_size"] * whole["pos_embed_max_size"]
        if latents.ndim != 4 or latents.shape[1] != whole["in_channels"]:
            raise ValueError(f"{latents_name}: expected [B, {whole['in_channels']}, H, W], got {list(latents.shape)}")
        if not len(latents):
            raise ValueError(f"{latents_name}: expected at least one sample, got {list(latents.shape)}")
        height, width = latents.shape[-2:]
        if height % patch or width % patch or not 0 < height <= limit or not 0 < width <= limit:
            raise ValueError(
                f"{latents_name}: expected a height and width that are multiples of {patch} up to {limit}, "
                f"got {height} x {width}"
            )
        batch = latents.shape[0]
        if prompt_embeds.ndim != 3 or prompt_embeds.shape[::2] != (batch, whole["joint_attention_dim"]):
            raise ValueError(
                f"prompt_embeds: expected [{batch}, L, {whole['joint_attention_dim']}], "
                f"got {list(prompt_embeds.shape)}"
            )
        expected = (batch, whole["pooled_projection_dim"])
        if pooled_prompt_embeds is None or pooled_prompt_embeds.shape != expected:
            got = None if pooled_prompt_embeds is None else list(pooled_prompt_embeds.shape)
            raise ValueError(f"pooled_prompt_embeds: expected {list(expected)}, got {got}")


def compute_dtype(module: nn.Module) -> torch.dtype:
    """The floating-point dtype that a module computes in, independent of how its weights are stored.

    This is the dtype of the first parameter that allows arithmetic, since quantised layers also contain other dtypes.
    If there is none, it is the dtype to which diffusers' layerwise casting converts the weights.

    Raises:
        ValueError: all weights are stored in a dtype without arithmetic and are not cast.
    """
    for parameter in module.parameters():
        if parameter.is_floating_point() and parameter.dtype.itemsize > 1:
            return parameter.dtype
    dtype = get_parameter_dtype(module)
    if not dtype.is_floating_point or dtype.itemsize == 1:
        raise ValueError(
            f"backbone: expected weights in float32, float16 or bfloat16, or layerwise casting, got {dtype}"
        )
    return dtype


def _upcast_outside_casting(module: nn.Module, dtype: torch.dtype) -> None:
    """Convert to `dtype`, in place, all float8 tensors that layerwise casting does not cover."""
    for part in module.modules():
        registry = getattr(part, "_diffusers_hook", None)
        if registry is None or registry.get_hook("layerwise_casting") is None:
            for tensor in (*part.parameters(recurse=False), *part.buffers(recurse=False)):
                if tensor.is_floating_point() and tensor.dtype.itemsize == 1:
                    tensor.data = tensor.data.to(dtype)


BACKBONES: dict[str, type[SD3Backbone]] = {"sd3": SD3Backbone}


def backbone_class(backbone_type: str) -> type[SD3Backbone]:
    """The backbone class of a model family; raises a ValueError for an unknown family."""
    if backbone_type not in BACKBONES:
        raise ValueError(f"backbone_type: expected one of {sorted(BACKBONES)}, got {backbone_type!r}")
    return BACKBONES[backbone_type]


def build_backbone(config) -> SD3Backbone:
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


def merge_lora(backbone: nn.Module) -> None:
    """Merge every LoRA layer into its base weight, in place, and replace it by the plain layer."""
    for name, module in list(backbone.named_modules()):
        if isinstance(module, BaseTunerLayer):
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


def read_transformer_config(
    backbone_type: str, source: str, revision: str | None = None, **hub
) -> tuple[dict, str | None]:
    """Read the configuration of the transformer in a diffusers folder or Hub repository, and the repository's commit.
    `hub` has further options of diffusers' loaders, such as `cache_dir` or `token`.

    Raises:
        ValueError: the configuration is not that of a transformer of this family.
        OSError: there is no configuration, or the Hub cannot be reached.
    """
    transformer_class = backbone_class(backbone_type).transformer_class
    config, _, commit = transformer_class.load_config(
        source, revision=revision, subfolder="transformer", return_unused_kwargs=True, return_commit_hash=True, **hub
    )
    if config.get("_class_name") != transformer_class.__name__:
        raise ValueError(
            f"{source}: expected the configuration of a {transformer_class.__name__}, got {config.get('_class_name')}"
        )
    return {key: value for key, value in config.items() if not key.startswith("_")}, commit


__all__ = [
    "BACKBONES",
    "Features",
    "SD3Backbone",
    "allocate_backbone",
    "backbone_class",
    "build_backbone",
    "compute_dtype",
    "freeze_base",
    "is_adapter_key",
    "load_base_weights",
    "merge_lora",
    "read_transformer_config",
]
