"""The published latent-reward protocol, version 1: request and response of `POST /v1/score`."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from safetensors.torch import load

VERSION = "1"
VERSION_HEADER = "x-drm-protocol-version"

# The safetensors format allows headers of a hundred megabytes, but five tensors need half a kilobyte.
MAX_HEADER_BYTES = 16 * 1024
# Stable Diffusion 3 gives at most 77 + 512 tokens; attention's cost grows with their square.
MAX_TOKENS = 1024
# The largest number in half precision, in which generators compute. Larger numbers make a model overflow.
MAX_MAGNITUDE = torch.finfo(torch.float16).max

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
# Dimensions and dtypes of each tensor; the protocol's name for sigma is `u`.
_TENSORS = {
    "latents": ("BCHW", _FLOATS),
    "prompt_embeds": ("BLD", _FLOATS),
    "pooled_prompt_embeds": ("BP", _FLOATS),
    "u": ("B", (torch.float32,)),
    "seeds": ("B", (torch.int64,)),
}
_OPTIONAL = {"seeds"}


@dataclass(frozen=True, eq=False)
class ScoreRequest:
    """
    Samples to score: clean latents, to which the server adds noise with the seed and at the level of each sample.

    Attributes:
        latents: [B, C, H, W], clean, in model space.
        prompt_embeds: [B, L, D].
        pooled_prompt_embeds: [B, P].
        sigma: float32 [B], noise levels in [0, 1].
        seeds: B non-negative seeds; all 0 if the client sends none.
    """

    latents: torch.Tensor
    prompt_embeds: torch.Tensor
    pooled_prompt_embeds: torch.Tensor
    sigma: torch.Tensor
    seeds: list[int]

    @property
    def size(self) -> int:
        """Number B of samples."""
        return len(self.latents)

    @property
    def batch_key(self) -> Hashable:
        """Requests with equal keys can share a batch."""
        return self.latents.shape[1:], self.prompt_embeds.shape[1:]


def parse_score_request(body: bytes) -> ScoreRequest:
    """
    Parse a request and check it as far as possible without a model. Nothing is unpickled, and memory is limited to a
    small multiple of the body's size.

    Raises:
        ValueError: the body is invalid; the message names the tensor.
    """
    header_bytes = int.from_bytes(body[:8], "little")
    if header_bytes > MAX_HEADER_BYTES:
        raise ValueError(
            f"body: expected a safetensors header of at most {MAX_HEADER_BYTES} bytes, got {header_bytes}"
        )
    try:
        tensors = load(body)
    # Dtypes that torch lacks and sizes beyond 64 bits raise many types of exceptions.
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"body: expected safetensors, got unreadable data: {reason}") from error

    missing = _TENSORS.keys() - _OPTIONAL - tensors.keys()
    if missing or tensors.keys() - _TENSORS.keys():
        raise ValueError(f"body: expected the tensors {', '.join(_TENSORS)} (seeds optional), got {sorted(tensors)}")
    batch = tensors["latents"].shape[:1]
    for name, tensor in tensors.items():
        _check_tensor(name, tensor, batch)
    if tensors["prompt_embeds"].shape[1] > MAX_TOKENS:
        raise ValueError(
            f"prompt_embeds: expected at most {MAX_TOKENS} tokens, got {tensors['prompt_embeds'].shape[1]}"
        )
    sigma, seeds = tensors["u"], tensors.get("seeds", torch.zeros(batch, dtype=torch.int64))
    if not ((sigma >= 0) & (sigma <= 1)).all():
        raise ValueError(f"u: expected noise levels in [0, 1], got {sigma.min():g} to {sigma.max():g}")
    if (seeds < 0).any():
        raise ValueError(f"seeds: expected numbers of at least 0, got {seeds.min()}")
    return ScoreRequest(
        latents=tensors["latents"],
        prompt_embeds=tensors["prompt_embeds"],
        pooled_prompt_embeds=tensors["pooled_prompt_embeds"],
        sigma=sigma,
        seeds=seeds.tolist(),
    )


def score_answer(scores: Sequence[float]) -> dict:
    """The JSON response: the model's rewards, before any affine map of the client."""
    return {"protocol_version": VERSION, "raw_scores": list(scores)}


def _check_tensor(name: str, tensor: torch.Tensor, batch: torch.Size) -> None:
    dimensions, dtypes = _TENSORS[name]
    if tensor.dtype not in dtypes:
        raise ValueError(f"{name}: expected {' or '.join(map(_name, dtypes))}, got {_name(tensor.dtype)}")
    if tensor.ndim != len(dimensions) or not tensor.numel():
        raise ValueError(f"{name}: expected [{', '.join(dimensions)}], none of them 0, got {list(tensor.shape)}")
    if tensor.shape[:1] != batch:
        raise ValueError(f"{name}: expected as many samples as latents, {batch[0]}, got {list(tensor.shape)}")
    if tensor.is_floating_point() and not (is_fit := tensor.abs() <= MAX_MAGNITUDE).all():
        raise ValueError(
            f"{name}: expected finite numbers of at most {MAX_MAGNITUDE:g}, got {int((~is_fit).sum())} others"
        )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
