"""The cost of networks, counted on the meta device without weights or computation: FLOPs, bytes stored for the
backward pass, and the tables of a dry run."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from modeling_dina.backbone_base_dina import Dimensions

ADAM_BYTES = 8  # two moments in float32


@contextmanager
def fused_attention() -> Iterator[None]:
    """
    Context in which attention on the meta device is counted like CUDA's fused kernels, which recompute the
    probabilities in the backward pass. Unfused, they would dominate the stored bytes.
    """
    original = F.scaled_dot_product_attention

    def fused(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
        if not query.is_meta or attn_mask is not None:
            return original(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
        # Keys and values with fewer heads than the queries are not copied.
        return torch.ops.aten._scaled_dot_product_flash_attention(
            query, key, value, dropout_p, is_causal, scale=scale
        )[0]

    # Not a TorchFunctionMode, which does not apply to recomputation by gradient checkpointing in the backward pass.
    F.scaled_dot_product_attention = fused
    try:
        yield
    finally:
        F.scaled_dot_product_attention = original


def count_flops(case: Callable[[], object]) -> int:
    """Floating-point operations of one call; a multiplication and an addition count as two."""
    with fused_attention(), FlopCounterMode(display=False) as counter:
        case()
    return counter.get_total_flops()


def kept_bytes(module: torch.nn.Module, run: Callable[[], object]) -> int:
    """Bytes that `run` stores for the backward pass, without the weights of `module`."""
    weights = {weight.untyped_storage()._cdata for weight in module.parameters()}
    stored: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            stored[storage._cdata] = storage
        return tensor

    with torch.enable_grad(), fused_attention(), saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    del result
    return sum(storage.nbytes() for storage in stored.values())


def recomputed_bytes(stored: int, blocks: int, inputs: int) -> int:
    """Bytes that a transformer stores for the backward pass with gradient checkpointing.

    Args:
        stored: bytes without gradient checkpointing.
        blocks: number of blocks.
        inputs: bytes of the inputs of one block.
    """
    # The inputs of all blocks, and the activations within one block at a time.
    return stored // blocks + blocks * inputs


def weight_bytes(module: torch.nn.Module) -> int:
    """Bytes of a module's weights as they are stored, also if they are quantised."""
    return sum(map(_stored_bytes, module.parameters()))


def _stored_bytes(weight: torch.Tensor) -> int:
    if not hasattr(weight, "__tensor_flatten__"):
        return weight.nbytes
    # A quantised weight has the dtype of what it stands for, and consists of other tensors.
    parts, _ = weight.__tensor_flatten__()
    return sum(_stored_bytes(getattr(weight, part)) for part in parts)


def count_parameters(module: torch.nn.Module) -> tuple[int, int]:
    """Numbers of all and of trainable parameters of a module."""
    weights = list(module.parameters())
    return sum(weight.numel() for weight in weights), sum(weight.numel() for weight in weights if weight.requires_grad)


def training_bytes(trainable: int, averages: int, optimizer_bytes: int = ADAM_BYTES) -> dict[str, int]:
    """Bytes that training needs for its trainable float32 parameters, besides the weights, by content."""
    return {
        "gradients": 4 * trainable,
        "optimizer": optimizer_bytes * trainable,
        "averaged weights": 4 * trainable * averages,
    }


def input_shapes(sizes: Dimensions, max_sequence_length: int, side: int | None = None) -> dict[str, tuple[int, ...]]:
    """Shapes of "latents", "prompt_embeds" and, if the family has them, "pooled_prompt_embeds" of one sample.

    Args:
        sizes: dimensions of the transformer.
        max_sequence_length: number of tokens of the T5 encoder or the language model.
        side: side of the latents; None uses that of the transformer's training.
    """
    side = side or sizes.training_side
    tokens = min(sizes.clip_tokens, max_sequence_length) + max_sequence_length
    shapes: dict[str, tuple[int, ...]] = {
        "latents": (sizes.latent_channels, side, side),
        "prompt_embeds": (tokens, sizes.text_width),
    }
    if sizes.pooled_width is not None:
        shapes["pooled_prompt_embeds"] = (sizes.pooled_width,)
    return shapes


def memory_rows(memory: dict[str, int], scope: str) -> dict[str, str]:
    """Rows of a table: bytes by content, and their sum, labelled with `scope`."""
    sizes = {f"memory: {name}": size for name, size in memory.items()} | {f"memory {scope}": sum(memory.values())}
    return {name: f"{size / 1e9:,.2f} GB" for name, size in sizes.items()}


def print_rows(title: str, rows: dict[str, str]) -> None:
    """Print the table of a dry run."""
    table = Table("", "", title=title)
    for row in rows.items():
        table.add_row(*row)
    Console().print(table)
