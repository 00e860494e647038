"""What the feature extractors of all model families have in common. A backbone is the first blocks of a diffusers
transformer. It is built from a configuration alone and contains only weights that affect the reward."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from diffusers.models.modeling_utils import get_parameter_dtype
from torch import nn

# The projections of a joint attention to visual and text tokens, and those of self- and cross-attention.
JOINT_LORA_TARGETS = (
    *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
    *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
)
CROSS_LORA_TARGETS = (
    *("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0"),
    *("attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0"),
)


class Features(NamedTuple):
    """The outputs of a backbone that the head uses.

    Attributes:
        visual: tokens [B, V, width] of each layer in `config.visual_layers`; V and width may differ between layers.
        text: tokens [B, T, width] of each layer in `config.text_layers`.
        conditioning: the backbone's time embedding [B, conditioning width].
        text_mask: bool [B, T], False for text tokens that only pad the batch; None if there are none.
    """

    visual: list[torch.Tensor]
    text: list[torch.Tensor]
    conditioning: torch.Tensor
    text_mask: torch.Tensor | None = None

    def chunk(self, count: int) -> list["Features"]:
        """The features of `count` batches of one size that were computed as one."""
        visual, text = ([layer.chunk(count) for layer in part] for part in (self.visual, self.text))
        conditioning = self.conditioning.chunk(count)
        masks = [None] * count if self.text_mask is None else self.text_mask.chunk(count)

        def at(index: int) -> Features:
            tokens = [[layer[index] for layer in part] for part in (visual, text)]
            return Features(tokens[0], tokens[1], conditioning[index], masks[index])

        return [at(index) for index in range(count)]


class Dimensions(NamedTuple):
    """Sizes that the configuration of a transformer determines.

    Attributes:
        token_width: width of the tokens, unless the following fields say otherwise.
        conditioning_width: width of the time embedding.
        latent_channels: channels of the latents.
        patch_size: side of the square of latents that becomes one visual token.
        text_width: width of `prompt_embeds`.
        pooled_width: width of `pooled_prompt_embeds`; None for families without them.
        text_length: number of text tokens that the pipeline of the published models uses, without `clip_tokens`.
        clip_tokens: number of tokens of CLIP encoders in front of them.
        max_text_length: largest number of text tokens.
        max_side: largest height and width of latents.
        training_side: height and width of the latents that the transformer was trained on.
        visual_widths: width of the visual tokens of each layer, from layer 0 on, for families whose layers have
            feature maps of various widths and sizes; None if all layers have tokens of one width and one grid.
        text_token_width: width of the text tokens that the head uses; None means `token_width`.
    """

    token_width: int
    conditioning_width: int
    latent_channels: int
    patch_size: int
    text_width: int
    pooled_width: int | None
    text_length: int
    clip_tokens: int = 0
    max_text_length: float = math.inf
    max_side: float = math.inf
    training_side: int = 128
    visual_widths: tuple[int, ...] | None = None
    text_token_width: int | None = None


class Embedded(NamedTuple):
    """The inputs of the blocks.

    Attributes:
        visual, text: embedded tokens [B, V, width] and [B, T, width], or what else `join` takes.
        conditioning, text_mask: as in `Features`.
        arguments: further arguments of every block.
    """

    visual: torch.Tensor
    text: torch.Tensor
    conditioning: torch.Tensor
    text_mask: torch.Tensor | None
    arguments: tuple


class Backbone(nn.Module, ABC):
    """The first `num_layers` blocks of a diffusers transformer, or of another network that predicts noise.

    A family of models is a subclass. The default implementation is for blocks that map visual and text tokens to
    text and visual tokens.

    Attributes:
        transformer_class: class of the whole transformer.
        component: name of the transformer in a pipeline, and of its folder.
        block_lists: for each field of the transformer's configuration that counts blocks, the module list of these
            blocks, in the order in which they run.
        embedders: names of the transformer's other parts that the backbone uses.
        default_layers: depth of a published transformer, and the layers of it that the head uses by default.
        lora_targets: suffixes of the modules that a LoRA adapter changes by default.
        takes_mask: whether the transformer distinguishes text from padding.
        text_is_constant: whether no block changes the text tokens, so that the head can use only those of layer 0.
        official_fields: fields of `DinaConfig` in which the published reward models of the family differ from its
            defaults.
        marker: name of a weight that no other family has; None for families without published reward models.
    """

    transformer_class: ClassVar[Any]
    component: ClassVar[str] = "transformer"
    block_lists: ClassVar[dict[str, str]] = {"num_layers": "transformer_blocks"}
    embedders: ClassVar[tuple[str, ...]]
    default_layers: ClassVar[tuple[int, tuple[int, ...]]]
    lora_targets: ClassVar[tuple[str, ...]] = JOINT_LORA_TARGETS
    takes_mask: ClassVar[bool] = False
    text_is_constant: ClassVar[bool] = False
    official_fields: ClassVar[dict[str, Any]] = {}
    marker: ClassVar[str | None] = None
    # transformers' gradient_checkpointing_enable() sets both.
    gradient_checkpointing = False
    is_shared = False  # whether base weights are those of a generator
    _gradient_checkpointing_func: Callable

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Parts of the transformer, of any type."""

    def __init__(self, config):
        super().__init__()
        self.transformer_config = whole = config.transformer_config
        self.dimensions = self.describe(whole)
        self.visual_layers = list(config.visual_layers)
        self.text_layers = list(config.text_layers)
        counts = self.block_counts(whole, config.num_layers)
        transformer = self.transformer_class.from_config({**whole, **counts})
        for name in (*self.embedders, *self.block_lists.values()):
            setattr(self, name, getattr(transformer, name))

    @staticmethod
    @abstractmethod
    def describe(whole: dict[str, Any]) -> Dimensions:
        """The dimensions of a transformer, from its diffusers configuration."""

    @abstractmethod
    def embed(self, latents, timestep, prompt_embeds, pooled_prompt_embeds, prompt_embeds_mask) -> Embedded:
        """Compute the inputs of the blocks; arguments are as in `forward`, in the computing dtype."""

    @classmethod
    def matches(cls, whole: dict[str, Any]) -> bool:
        """Whether a diffusers configuration, with `_class_name`, is that of a transformer of this family."""
        return whole.get("_class_name") == cls.transformer_class.__name__

    @classmethod
    def depth(cls, whole: dict[str, Any]) -> int:
        """The number of a whole transformer's blocks; raises a ValueError if the configuration does not contain it."""
        for field in cls.block_lists:
            if not isinstance(whole.get(field), int):
                raise ValueError(f"transformer_config: expected an integer under {field!r}, got {whole.get(field)!r}")
        return sum(whole[field] for field in cls.block_lists)

    @classmethod
    def default_fields(cls, whole: dict[str, Any]) -> dict[str, Any]:
        """Fields of `DinaConfig` for a transformer of this family: layers at the same fractions of the depth as in
        the published models, and the length of the text."""
        published_depth, published_layers = cls.default_layers
        depth = cls.depth(whole)
        layers = sorted({max(1, round(layer * depth / published_depth)) for layer in published_layers})
        return {
            "num_layers": layers[-1],
            "visual_layers": layers,
            "text_layers": [0] if cls.text_is_constant else layers,
            "max_sequence_length": cls.describe(whole).text_length,
        }

    @classmethod
    def check_config(cls, config) -> None:
        """Raise a ValueError that names the field if this family does not support a `DinaConfig`."""
        if config.timestep_scale != 1000:
            raise ValueError(
                f"timestep_scale: expected 1000 for backbone_type={config.backbone_type!r}, "
                f"got {config.timestep_scale}"
            )
        if cls.text_is_constant and list(config.text_layers) != [0]:
            raise ValueError(
                f"text_layers: expected [0], because no block of a {cls.transformer_class.__name__} changes the text, "
                f"got {list(config.text_layers)}"
            )

    @classmethod
    def block_counts(cls, whole: dict[str, Any], num_layers: int) -> dict[str, int]:
        """Fields of the configuration of a transformer that has only the first `num_layers` blocks."""
        counts = {}
        for field in cls.block_lists:
            counts[field] = min(num_layers, whole[field])
            num_layers -= counts[field]
        return counts

    def forward(
        self,
        noisy_latents: torch.Tensor,
        timestep: torch.Tensor,
        prompt_embeds: torch.Tensor,
        pooled_prompt_embeds: torch.Tensor | None = None,
        prompt_embeds_mask: torch.Tensor | None = None,
    ) -> Features:
        """
        Args:
            noisy_latents: [B, C, H, W].
            timestep: [B], in [0, 1000].
            prompt_embeds: [B, L, D].
            pooled_prompt_embeds: [B, P], for families that have them.
            prompt_embeds_mask: bool [B, L], True for text and False for padding behind it; None if there is no
                padding.
        """
        dtype = compute_dtype(self)
        if next(self.parameters()).dtype.itemsize == 1:
            _upcast_outside_casting(self, dtype)
        pooled = None if pooled_prompt_embeds is None else pooled_prompt_embeds.to(dtype)
        start = self.embed(noisy_latents.to(dtype), timestep, prompt_embeds.to(dtype), pooled, prompt_embeds_mask)

        state = self.join(start.visual, start.text)
        states = {0: state}
        tapped = {*self.visual_layers, *self.text_layers}
        for layer, block in enumerate(self.blocks(), start=1):
            state = self.run_block(block, state, start.arguments)
            if layer in tapped:
                states[layer] = state
        length = start.visual.shape[1]
        return Features(
            visual=[self.separate(states[layer], length)[0] for layer in self.visual_layers],
            text=[self.separate(states[layer], length)[1] for layer in self.text_layers],
            conditioning=start.conditioning,
            text_mask=start.text_mask,
        )

    def blocks(self) -> list[nn.Module]:
        """The blocks in the order in which they run."""
        return [block for name in self.block_lists.values() for block in getattr(self, name)]

    def join(self, visual: torch.Tensor, text: torch.Tensor) -> Any:
        """The state that blocks process, from visual and text tokens."""
        return visual, text

    def separate(self, state: Any, visual_length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The visual and text tokens of a state; inverts `join`."""
        return state

    def run_block(self, block: nn.Module, state: Any, arguments: tuple) -> Any:
        """The state behind a block."""
        text, visual = self.call(block, *state, *arguments)
        return visual, text

    def call(self, block: nn.Module, *arguments):
        """Call a block, with gradient checkpointing if it is enabled."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(block, *arguments)
        return block(*arguments)

    def check_inputs(
        self, latents_name, latents, prompt_embeds, pooled_prompt_embeds=None, prompt_embeds_mask=None
    ) -> None:
        """Raise a ValueError that names the argument if this backbone does not support its shape."""
        sizes = self.dimensions
        if latents.ndim != 4 or latents.shape[1] != sizes.latent_channels:
            raise ValueError(f"{latents_name}: expected [B, {sizes.latent_channels}, H, W], got {list(latents.shape)}")
        if not len(latents):
            raise ValueError(f"{latents_name}: expected at least one sample, got {list(latents.shape)}")
        height, width = latents.shape[-2:]
        patch, limit = sizes.patch_size, sizes.max_side
        if height % patch or width % patch or not 0 < height <= limit or not 0 < width <= limit:
            up_to = "" if math.isinf(limit) else f" up to {limit}"
            raise ValueError(
                f"{latents_name}: expected a height and width that are multiples of {patch}{up_to}, "
                f"got {height} x {width}"
            )
        self._check_text(len(latents), prompt_embeds, pooled_prompt_embeds)
        if prompt_embeds_mask is not None:
            self._check_mask(prompt_embeds, prompt_embeds_mask)

    def _check_text(self, batch: int, prompt_embeds, pooled_prompt_embeds) -> None:
        sizes = self.dimensions
        if prompt_embeds.ndim != 3 or prompt_embeds.shape[::2] != (batch, sizes.text_width):
            raise ValueError(
                f"prompt_embeds: expected [{batch}, L, {sizes.text_width}], got {list(prompt_embeds.shape)}"
            )
        if prompt_embeds.shape[1] > sizes.max_text_length:
            raise ValueError(
                f"prompt_embeds: expected at most {sizes.max_text_length} tokens, got {list(prompt_embeds.shape)}"
            )
        expected = None if sizes.pooled_width is None else [batch, sizes.pooled_width]
        got = None if pooled_prompt_embeds is None else list(pooled_prompt_embeds.shape)
        if got != expected:
            raise ValueError(f"pooled_prompt_embeds: expected {expected}, got {got}")

    def _check_mask(self, prompt_embeds, mask) -> None:
        if not self.takes_mask:
            raise ValueError(
                f"prompt_embeds_mask: expected None, because {self.transformer_class.__name__} processes padding like "
                f"text, got {list(mask.shape)}"
            )
        expected = list(prompt_embeds.shape[:2])
        if list(mask.shape) != expected or mask.dtype != torch.bool:
            raise ValueError(f"prompt_embeds_mask: expected bool {expected}, got {mask.dtype} {list(mask.shape)}")
        if mask.is_meta or torch.compiler.is_compiling():
            return
        if not mask[:, :1].all() or (mask[:, 1:] & ~mask[:, :-1]).any():
            raise ValueError(
                "prompt_embeds_mask: expected at least one text token in each row and padding only behind the text, "
                f"got text lengths {mask.sum(dim=1).tolist()}"
            )


def patches(latents: torch.Tensor, size: int) -> torch.Tensor:
    """Cut latents [B, C, H, W] into patches [B, H W / size^2, C, size, size], row by row."""
    cut = latents.unflatten(3, (-1, size)).unflatten(2, (-1, size))
    return cut.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)


def grid_positions(latents: torch.Tensor, size: int) -> torch.Tensor:
    """Row and column [H W / size^2, 2] of each of the `patches`."""
    rows, columns = (torch.arange(side // size, device=latents.device) for side in latents.shape[-2:])
    return torch.cartesian_prod(rows, columns)


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


__all__ = [
    "CROSS_LORA_TARGETS",
    "JOINT_LORA_TARGETS",
    "Backbone",
    "Dimensions",
    "Embedded",
    "Features",
    "compute_dtype",
    "grid_positions",
    "patches",
]
