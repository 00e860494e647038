"""The latent-reward protocol: requests and responses of `POST /v1/score`. Version 1 is the published one. Version 2
supports all model families, padded text, and ensembles of several noise levels and draws."""

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from safetensors.torch import load

from modeling_dina.configuration_dina import ENSEMBLE_MODES
from modeling_dina.pipelines_dina import EncodedPrompts

VERSION = "1"
ENSEMBLE_VERSION = "2"
VERSIONS = (VERSION, ENSEMBLE_VERSION)
VERSION_HEADER = "x-drm-protocol-version"

# The safetensors format allows headers of a hundred megabytes, but eight tensors need less than a kilobyte.
MAX_HEADER_BYTES = 16 * 1024
# Stable Diffusion 3 gives at most 77 + 512 tokens, and Qwen-Image 1024; attention's cost grows with their square.
MAX_TOKENS = 1024
# A sample is processed once for each level and draw.
MAX_LEVELS = 16
MAX_DRAWS = 16
# The largest number in half precision, in which generators compute. Larger numbers make a model overflow.
MAX_MAGNITUDE = torch.finfo(torch.float16).max

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


class _Format(NamedTuple):
    """The format of a tensor.

    Attributes:
        shapes: names of the dimensions, for each accepted number of dimensions. B is the number of samples.
        dtypes: accepted dtypes.
        is_optional: whether a request may omit the tensor.
    """

    shapes: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...]
    is_optional: bool = False


_LATENTS = _Format(("BCHW",), _FLOATS)
_PROMPT_EMBEDS = _Format(("BLD",), _FLOATS)
_SEEDS = _Format(("B",), (torch.int64,), is_optional=True)
# The formats of each version's tensors. In version 1, the name of the noise levels is `u`.
_TENSORS = {
    VERSION: {
        "latents": _LATENTS,
        "prompt_embeds": _PROMPT_EMBEDS,
        "pooled_prompt_embeds": _Format(("BP",), _FLOATS),
        "u": _Format(("B",), (torch.float32,)),
        "seeds": _SEEDS,
    },
    ENSEMBLE_VERSION: {
        "latents": _LATENTS,
        "prompt_embeds": _PROMPT_EMBEDS,
        "pooled_prompt_embeds": _Format(("BP",), _FLOATS, is_optional=True),
        "prompt_embeds_mask": _Format(("BL",), (torch.bool, torch.uint8), is_optional=True),
        "sigmas": _Format(("K", "KB"), (torch.float32,), is_optional=True),
        "num_draws": _Format(("", "1"), (torch.int64,), is_optional=True),
        "seeds": _SEEDS,
    },
}


@dataclass(frozen=True, eq=False)
class ScoreRequest:
    """
    Samples to score: clean latents, to which the server adds noise with the seed of each sample.

    Attributes:
        version: version of the protocol.
        latents: [B, C, H, W], clean, in model space.
        prompts: text conditioning of the B samples.
        seeds: B non-negative seeds; all 0 if the client sends none.
        sigmas: float32 [K] or [K, B], noise levels in [0, 1]; None for the model's default.
        num_draws: number of noise draws at each level; None for the model's default.
        mode: how levels are combined, as in `DinaRewardModel.reward`; None for the model's default.
    """

    version: str
    latents: torch.Tensor
    prompts: EncodedPrompts
    seeds: list[int]
    sigmas: torch.Tensor | None = None
    num_draws: int | None = None
    mode: str | None = None

    @property
    def size(self) -> int:
        """Number B of samples."""
        return len(self.latents)

    @property
    def batch_key(self) -> Hashable:
        """Requests with equal keys can share a batch. With a mask, texts of different lengths can be padded."""
        embeds, _, mask = self.prompts
        text = embeds.shape[1:] if mask is None else embeds.shape[2:]
        levels = None if self.sigmas is None else len(self.sigmas)
        return self.latents.shape[1:], text, levels, self.num_draws, self.mode


def parse_score_request(body: bytes, version: str = VERSION) -> ScoreRequest:
    """
    Parse a request and check it as far as possible without a model. Nothing is unpickled, and memory is limited to a
    small multiple of the body's size.

    Raises:
        ValueError: the body is invalid; the message names the tensor.
    """
    tensors, header = _load(body)
    formats = _TENSORS[version]
    required = {name for name, each in formats.items() if not each.is_optional}
    if required - tensors.keys() or tensors.keys() - formats.keys():
        optional = " and ".join(name for name in formats if name not in required)
        raise ValueError(
            f"body: expected the tensors {', '.join(formats)} ({optional} optional), got {sorted(tensors)}"
        )
    # In this order, because the other tensors must have as many samples as the latents.
    for name in [name for name in formats if name in tensors]:
        _check_tensor(name, tensors[name], formats[name], tensors["latents"].shape[:1])
    if tensors["prompt_embeds"].shape[1] > MAX_TOKENS:
        raise ValueError(
            f"prompt_embeds: expected at most {MAX_TOKENS} tokens, got {tensors['prompt_embeds'].shape[1]}"
        )
    seeds = tensors.get("seeds", torch.zeros(len(tensors["latents"]), dtype=torch.int64))
    if (seeds < 0).any():
        raise ValueError(f"seeds: expected numbers of at least 0, got {seeds.min()}")
    ensemble = _published_ensemble(tensors) if version == VERSION else _ensemble(tensors, header)
    prompts = EncodedPrompts(tensors["prompt_embeds"], tensors.get("pooled_prompt_embeds"), _mask(tensors))
    return ScoreRequest(version, tensors["latents"], prompts, seeds.tolist(), **ensemble)


def score_answer(scores: Sequence[float]) -> dict:
    """The JSON response of version 1: the model's rewards, before any affine map of the client."""
    return {"protocol_version": VERSION, "raw_scores": list(scores)}


def ensemble_answer(output: Mapping[str, list]) -> dict:
    """The JSON response of version 2: the fields of a `DinaEnsembleOutput` as nested lists, which end in an axis of
    samples."""
    return {"protocol_version": ENSEMBLE_VERSION, **output}


def _load(body: bytes) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors and the header of a safetensors body."""
    header_bytes = int.from_bytes(body[:8], "little")
    if header_bytes > MAX_HEADER_BYTES:
        raise ValueError(
            f"body: expected a safetensors header of at most {MAX_HEADER_BYTES} bytes, got {header_bytes}"
        )
    try:
        return load(body), json.loads(body[8 : 8 + header_bytes])
    # Dtypes that torch lacks and sizes beyond 64 bits raise many types of exceptions.
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"body: expected safetensors, got unreadable data: {reason}") from error


def _published_ensemble(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The ensemble of version 1: one level for each sample, and one draw."""
    _check_levels("u", tensors["u"])
    return {"sigmas": tensors["u"][None], "num_draws": 1, "mode": "mean"}


def _ensemble(tensors: dict[str, torch.Tensor], header: dict[str, Any]) -> dict[str, Any]:
    """The ensemble of version 2, whose mode is in the metadata of the safetensors header."""
    metadata = header.get("__metadata__") or {}
    if metadata.keys() - {"mode"}:
        raise ValueError(f"metadata: expected no other key than mode, got {sorted(metadata)}")
    mode = metadata.get("mode")
    if mode is not None and mode not in ENSEMBLE_MODES:
        raise ValueError(f"mode: expected one of {ENSEMBLE_MODES}, got {mode!r}")
    sigmas = tensors.get("sigmas")
    if sigmas is not None:
        if len(sigmas) > MAX_LEVELS:
            raise ValueError(f"sigmas: expected at most {MAX_LEVELS} noise levels, got {len(sigmas)}")
        _check_levels("sigmas", sigmas)
    num_draws = int(tensors["num_draws"]) if "num_draws" in tensors else None
    if num_draws is not None and not 1 <= num_draws <= MAX_DRAWS:
        raise ValueError(f"num_draws: expected 1 to {MAX_DRAWS}, got {num_draws}")
    return {"sigmas": sigmas, "num_draws": num_draws, "mode": mode}


def _mask(tensors: dict[str, torch.Tensor]) -> torch.Tensor | None:
    mask = tensors.get("prompt_embeds_mask")
    if mask is None:
        return None
    if mask.shape != tensors["prompt_embeds"].shape[:2]:
        raise ValueError(
            f"prompt_embeds_mask: expected {list(tensors['prompt_embeds'].shape[:2])}, got {list(mask.shape)}"
        )
    bits = mask.view(torch.uint8)  # a bool of another client may be any byte
    if (bits > 1).any():
        raise ValueError(f"prompt_embeds_mask: expected 0 or 1, got {bits.max()}")
    return bits.bool()


def _check_levels(name: str, sigmas: torch.Tensor) -> None:
    if not ((sigmas >= 0) & (sigmas <= 1)).all():
        raise ValueError(f"{name}: expected noise levels in [0, 1], got {sigmas.min():g} to {sigmas.max():g}")


def _check_tensor(name: str, tensor: torch.Tensor, expected: _Format, batch: torch.Size) -> None:
    if tensor.dtype not in expected.dtypes:
        raise ValueError(f"{name}: expected {' or '.join(map(_name, expected.dtypes))}, got {_name(tensor.dtype)}")
    shape = next((shape for shape in expected.shapes if len(shape) == tensor.ndim), None)
    if shape is None or not tensor.numel():
        shapes = " or ".join(f"[{', '.join(shape)}]" for shape in expected.shapes)
        raise ValueError(f"{name}: expected {shapes}, none of them 0, got {list(tensor.shape)}")
    for dimension, size in zip(shape, tensor.shape, strict=True):
        if dimension == "B" and size != batch[0]:
            raise ValueError(f"{name}: expected as many samples as latents, {batch[0]}, got {list(tensor.shape)}")
        if dimension == "1" and size != 1:
            raise ValueError(f"{name}: expected one number, got {list(tensor.shape)}")
    if tensor.is_floating_point() and not (is_fit := tensor.abs() <= MAX_MAGNITUDE).all():
        raise ValueError(
            f"{name}: expected finite numbers of at most {MAX_MAGNITUDE:g}, got {int((~is_fit).sum())} others"
        )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
