"""The diffusers pipeline of a reward model: where its text encoders and VAE are, which ones the model was trained
with, and how prompts are encoded."""

import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from threading import Lock, RLock
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from diffusers import AutoencoderKL, DiffusionPipeline
from huggingface_hub import snapshot_download
from transformers import AutoConfig
from transformers.utils import cached_file

from .pipelines_dina import PIPELINES, EncodedPrompts, Tokenization, prompts_of

logger = logging.getLogger(__name__)

# Options of the loaders of transformers and diffusers that concern the Hub, except the revision.
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "token")
TEXT_ENCODERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2", "text_encoder_3": "tokenizer_3"}
VAE_FIELDS = ("latent_channels", "scaling_factor", "shift_factor")
VIDEO_VAE_FIELDS = ("z_dim", "latents_mean", "latents_std")  # of the VAE of Qwen-Image
QUOTED_CHARACTERS = 60

_locks: WeakKeyDictionary[Any, AbstractContextManager] = WeakKeyDictionary()
_locks_lock = Lock()


class Location(NamedTuple):
    """The location of a model or pipeline.

    Attributes:
        source: a local folder, or a Hub id.
        revision: branch, tag or commit on the Hub; None for the main branch, and for a folder.
        subfolder: folder inside a Hub repository; "" for its root.
    """

    source: str
    revision: str | None = None
    subfolder: str = ""


def absolute_source(source: str | os.PathLike) -> str:
    """Convert a local folder to an absolute path, and return a Hub id unchanged.

    A relative path must not be recorded, because in another working directory it would be taken for a Hub id.
    """
    source = os.fspath(source)
    return os.path.abspath(source) if os.path.isdir(source) else source


def is_relative_source(source: str | None) -> bool:
    """Whether a recorded source is a path relative to the weights: ".", "./…" or "../…"."""
    return source is not None and source.split("/")[0] in (".", "..")


def warn_of_local_sources(folder: str | os.PathLike) -> None:
    """Warn if the model in a folder that is about to be published depends on a local folder."""
    path = os.path.join(folder, "config.json")
    if not os.path.isfile(path):
        return
    with open(path, encoding="utf-8") as file:
        config = json.load(file)
    names = ["conditioning_source", *(["base_model"] if config.get("adapter_only") else [])]
    for name in names:
        if os.path.isabs(source := config.get(name) or ""):
            logger.warning(
                "%s: expected a Hub id, or a path inside the repository, got %s, a local folder; on other machines "
                "it is impossible to %s",
                *(name, source, "load the model" if name == "base_model" else "score images with the model"),
            )


def load_pipeline(model, *, without: Sequence[str] | None = None, **parts) -> Any:
    """
    Load the diffusers pipeline that a model's config names, on the model's device and in its computing dtype, with the
    Hub options that the model was loaded with (`cache_dir`, `token` and so on).

    Args:
        model: a `DinaRewardModel`.
        without: components that are not loaded; None means those that encode neither prompts nor images.
        parts: components to use instead of loading them.

    Raises:
        ValueError, OSError: `conditioning_source` is missing, or there is no pipeline at this location.
    """
    location, options = model.conditioning_location(), dict(model.hub_options)
    source, revision = location.source, location.revision
    if location.subfolder:
        download = {name: value for name, value in options.items() if name != "proxies"}
        patterns = [f"{location.subfolder}/*"]
        source = os.path.join(
            snapshot_download(source, revision=revision, allow_patterns=patterns, **download), location.subfolder
        )
        revision, options = None, {}
    if os.path.isdir(source) and not os.path.isfile(os.path.join(source, "model_index.json")):
        raise ValueError(f"conditioning_source: expected a diffusers pipeline, got {source} without model_index.json")
    family = PIPELINES[model.config.backbone_type]
    without = family.unused if without is None else without
    pipeline = family.pipeline_class.from_pretrained(
        source, revision=revision, dtype=model.compute_dtype, **options, **dict.fromkeys(without), **parts
    )
    return pipeline.to(model.execution_device)


def read_conditioning(source: str, revision: str | None = None, **options) -> dict[str, Any] | None:
    """
    Describe the pipeline in a diffusers folder or Hub repository like `describe_conditioning`, from its configuration
    files alone. Returns None if there is only a transformer and no pipeline.

    Args:
        options: options of the loaders that are named in `HUB_OPTIONS`.
    """
    where = {"revision": revision, **options}
    if cached_file(source, "model_index.json", _raise_exceptions_for_missing_entries=False, **where) is None:
        return None
    index = DiffusionPipeline.load_config(source, **where)
    present = [name for name in TEXT_ENCODERS if index.get(name, [None])[0] is not None]
    configs = {name: AutoConfig.from_pretrained(source, subfolder=name, **where) for name in present}
    return _record(configs, AutoencoderKL.load_config(source, subfolder="vae", **where))


def describe_conditioning(pipeline) -> dict[str, Any]:
    """
    Describe the text encoders and the VAE of a pipeline, on which a model trained with it depends.

    Returns:
        {"text_encoders": {name: width of its hidden states}, "vae": {name: value of `VAE_FIELDS`, or of
        `VIDEO_VAE_FIELDS`}}; a text encoder that the pipeline lacks is omitted, and without a VAE the second
        dictionary is empty.
    """
    encoders = {name: part for name in TEXT_ENCODERS if (part := getattr(pipeline, name, None)) is not None}
    configs = {name: part.config for name, part in encoders.items()}
    return _record(configs, None if pipeline.vae is None else pipeline.vae.config)


def _record(text_encoders: dict[str, Any], vae: Any) -> dict[str, Any]:
    vae = vae or {}
    fields = VIDEO_VAE_FIELDS if "z_dim" in vae else VAE_FIELDS
    return {
        "text_encoders": {name: config.get_text_config().hidden_size for name, config in text_encoders.items()},
        "vae": {name: vae.get(name) for name in fields} if vae else {},
    }


def check_conditioning(pipeline, config) -> None:
    """
    Raise a ValueError if the text encoders or the VAE of a pipeline differ from those that a model was trained with.
    A config without a record is not checked. Neither are the text encoders of a pipeline that has none and uses
    precomputed embeddings.

    Args:
        config: the model's `DinaConfig`.
    """
    if config.conditioning is None:
        return
    found = describe_conditioning(pipeline)
    for kind, expected in config.conditioning.items():
        for name in sorted(set(expected) | set(found[kind])) if found[kind] else ():
            if expected.get(name) != found[kind].get(name):
                raise ValueError(
                    f"pipeline: expected {kind} with {name}={expected.get(name)}, as the model was trained with, "
                    f"got {name}={found[kind].get(name)}"
                )


def encode_prompts(pipeline, prompts: Sequence[str], max_sequence_length: int) -> EncodedPrompts:
    """
    Encode B prompts on the pipeline's device. Several threads may share the pipeline.

    Args:
        pipeline: a pipeline of a known model family.
        prompts: B texts. A warning is logged for each prompt that a tokenizer truncates.
        max_sequence_length: maximum number of tokens of the T5 encoder or the language model.

    Raises:
        ValueError: the pipeline belongs to no known family.
    """
    distinct = list(dict.fromkeys(prompts))
    family = prompts_of(pipeline)
    with encoding_lock(pipeline), _without_truncation_warnings(pipeline):
        _warn_of_cut_prompts(family.tokenizations(pipeline, distinct, max_sequence_length), pipeline, distinct)
        encoded = family.encode(pipeline, distinct, max_sequence_length)
    return encoded.take([distinct.index(prompt) for prompt in prompts])


def encoding_lock(pipeline) -> AbstractContextManager:
    """The lock of a pipeline's text encoding, shared by all pipelines with the same tokenizer.

    A fast tokenizer stores the padding and truncation settings of the current call, so two threads would mix them up.
    """
    with _locks_lock:
        return _locks.setdefault(pipeline.tokenizer, RLock())


def _warn_of_cut_prompts(tokenizations: Sequence[Tokenization], pipeline, prompts: list[str]) -> None:
    cuts: dict[str, list[str]] = {}
    for seen in tokenizations:
        for prompt, length in zip(prompts, seen.lengths(pipeline), strict=True):
            if length > seen.limit:
                cuts.setdefault(prompt, []).append(f"{seen.limit} of {length} tokens of {seen.tokenizer}")
    for prompt, parts in cuts.items():
        quoted = prompt if len(prompt) <= QUOTED_CHARACTERS else f"{prompt[:QUOTED_CHARACTERS]}…"
        logger.warning("prompt %r is truncated: the model uses %s", quoted, ", ".join(parts))


@contextmanager
def _without_truncation_warnings(pipeline) -> Iterator[None]:
    """Suppress the pipeline's own warnings, which quote all truncated text once per tokenizer."""
    library = logging.getLogger(type(pipeline).__module__)
    library.addFilter(_is_no_truncation)
    try:
        yield
    finally:
        library.removeFilter(_is_no_truncation)


def _is_no_truncation(record: logging.LogRecord) -> bool:
    return "was truncated" not in record.getMessage()


def conditioning_state(pipeline) -> tuple:
    """A value that changes when a text encoder or tokenizer of a pipeline is replaced, or its weights are modified.

    The weights of an offloaded encoder move at every call, so only its replacement is detected.
    """
    state: list[Any] = []
    for name, tokenizer in TEXT_ENCODERS.items():
        encoder = getattr(pipeline, name, None)
        state += [id(getattr(pipeline, tokenizer, None)), id(encoder)]
        if encoder is not None and not hasattr(encoder, "_hf_hook"):
            state += [
                (id(weight), weight.dtype, None if weight.is_inference() else weight._version)
                for weight in encoder.parameters()
            ]
    return tuple(state)


__all__ = [
    "HUB_OPTIONS",
    "Location",
    "absolute_source",
    "check_conditioning",
    "conditioning_state",
    "describe_conditioning",
    "encode_prompts",
    "encoding_lock",
    "is_relative_source",
    "load_pipeline",
    "read_conditioning",
    "warn_of_local_sources",
]
