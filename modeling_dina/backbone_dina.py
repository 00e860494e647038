"""Feature extractors: the first blocks of a diffusers transformer, tapped. One small class a family, found by
`config.backbone_type`; each is built from a configuration alone and holds no weight that the reward does not read."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from diffusers import SD3Transformer2DModel
from diffusers.models.modeling_utils import get_parameter_dtype
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn


class Features(NamedTuple):
    """What a backbone hands to the head.

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
    # Both are set by transformers' gradient_checkpointing_enable().
    gradient_checkpointing = False
    _gradient_checkpointing_func: Callable

    def __init__(self, config):
        super().__init__()
        whole = config.transformer_config
        if not whole.get("pos_embed_max_size"):
            raise ValueError("transformer_config: expected a positive 'pos_embed_max_size', got none")
        # The last block of an SD3Transformer2DModel has no text output, so a shorter model's last block is not the
        # original's block of that number. One block more is built, and dropped.
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
        """Raise a ValueError that names the argument unless the shapes are ones this backbone reads."""
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
    """The floating dtype that a module computes in, however its weights are stored.

    That is the dtype of its first parameter in which arithmetic is possible: a quantised layer has others beside it.
    Where none is left, it is the dtype to which diffusers' layerwise casting brings the weights.

    Raises:
        ValueError: if all weights are stored in a dtype without arithmetic and nothing casts them.
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
    """Store in `dtype`, in place, what was brought to float8 as a whole but is left out by layerwise casting."""
    for part in module.modules():
        registry = getattr(part, "_diffusers_hook", None)
        if registry is None or registry.get_hook("layerwise_casting") is None:
            for tensor in (*part.parameters(recurse=False), *part.buffers(recurse=False)):
                if tensor.is_floating_point() and tensor.dtype.itemsize == 1:
                    tensor.data = tensor.data.to(dtype)


BACKBONES: dict[str, type[SD3Backbone]] = {"sd3": SD3Backbone}


def backbone_class(backbone_type: str) -> type[SD3Backbone]:
    """The class of a family; ValueError for one that has none."""
    if backbone_type not in BACKBONES:
        raise ValueError(f"backbone_type: expected one of {sorted(BACKBONES)}, got {backbone_type!r}")
    return BACKBONES[backbone_type]


def build_backbone(config) -> SD3Backbone:
    """The backbone of a config with its LoRA layers, if any, around the frozen base. Weights are random."""
    backbone = backbone_class(config.backbone_type)(config)
    if config.lora is not None:
        adapter = LoraConfig(
            r=config.lora["rank"], lora_alpha=config.lora["alpha"], target_modules=list(config.lora["targets"])
        )
        inject_adapter_in_model(adapter, backbone)
    return backbone


def merge_lora(backbone: nn.Module) -> None:
    """Fold every LoRA layer into the weight it adapts, in place, and put the plain layer in its stead."""
    for name, module in list(backbone.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            backbone.set_submodule(name, module.get_base_layer())
    backbone.requires_grad_(True)


def freeze_base(backbone: nn.Module) -> None:
    """Leave the LoRA layers alone trainable."""
    for name, parameter in backbone.named_parameters():
        # A quantiser may store the adapter in integers, which have no gradient.
        parameter.requires_grad_(is_adapter_key(name) and parameter.is_floating_point())


def is_adapter_key(key: str) -> bool:
    """Whether a backbone state-dict key is a LoRA weight rather than one of the base."""
    return ".lora_" in key


def load_base_weights(backbone: nn.Module, weights: dict[str, torch.Tensor], origin: str) -> None:
    """Copy the kept part of a whole transformer's weights into the backbone, under its LoRA layers if it has them.

    Args:
        weights: state dict of the diffusers transformer (later blocks and output layers are passed over).
        origin: where the weights come from, for the error.

    Raises:
        ValueError: naming every kept weight that is missing or has another shape.
    """
    base = {key: value for key, value in backbone.state_dict().items() if not is_adapter_key(key)}
    found = {key: weights.get(key.replace(".base_layer.", ".")) for key in base}
    wrong = [
        f"{key}: expected {list(base[key].shape)}, got {None if value is None else list(value.shape)}"
        for key, value in found.items()
        if value is None or value.shape != base[key].shape
    ]
    if wrong:
        raise ValueError(f"{origin} lacks weights of the backbone:\n  " + "\n  ".join(wrong))
    if any(value.is_meta for value in base.values()):
        raise ValueError(f"device_map: the weights of {origin} cannot be put into an offloaded backbone")
    backbone.load_state_dict(found, strict=False)


def read_transformer_config(
    backbone_type: str, source: str, revision: str | None = None, **hub
) -> tuple[dict, str | None]:
    """Configuration of the transformer in a diffusers folder or Hub repository, and the repository's commit. `hub` are
    further options of diffusers' loaders, such as `cache_dir` or `token`.

    Raises:
        ValueError: if what lies there is not a transformer of this family.
        OSError: if nothing lies there, or the Hub cannot be reached.
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


def read_transformer_weights(
    backbone_type: str, source: str, revision: str | None = None, dtype: torch.dtype = torch.float32, **hub
) -> dict[str, torch.Tensor]:
    """State dict of the whole transformer in a diffusers folder or Hub repository; `hub` as in
    `read_transformer_config`.

    Raises:
        ValueError: naming the weights that the checkpoint lacks.
    """
    transformer, info = backbone_class(backbone_type).transformer_class.from_pretrained(
        source, revision=revision, subfolder="transformer", torch_dtype=dtype, output_loading_info=True, **hub
    )
    if info["missing_keys"]:
        raise ValueError(f"{source} lacks weights of its transformer: {sorted(info['missing_keys'])}")
    return transformer.state_dict()


__all__ = [
    "BACKBONES",
    "Features",
    "SD3Backbone",
    "backbone_class",
    "build_backbone",
    "compute_dtype",
    "freeze_base",
    "is_adapter_key",
    "load_base_weights",
    "merge_lora",
    "read_transformer_config",
    "read_transformer_weights",
]
