"""Identity of models and settings, with which a resumed run checks that it uses the same model as before."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub.utils.sha import sha_fileobj
from torch import nn
from transformers.utils import cached_file
from transformers.utils.hub import extract_commit_hash

from .conditioning_dina import Location
from .scoring_dina import DinaScorer

# Weights of a model or a part of a pipeline, and of a checkpoint in the published layout.
WEIGHTS = ("*.safetensors", "checkpoint/*.pt", "checkpoint/backbone_lora/adapter_*")


def weights_hash(folder: Path) -> str:
    """A hash of the configuration and weights in a folder, which differs between two checkpoints."""
    digest = hashlib.sha256()
    weights = [path for pattern in WEIGHTS for path in sorted(folder.glob(pattern))]
    for path in [folder / "config.json", *weights]:
        with path.open("rb") as file:
            digest.update(sha_fileobj(file))
    return f"sha256:{digest.hexdigest()[:16]}"


def parts_identity(location: Location, parts: Sequence[str], **hub) -> str | dict[str, str] | None:
    """The identity of a version of a diffusers pipeline.

    Args:
        location: location of the pipeline.
        parts: subfolders whose weights matter.
        hub: options of the Hub's loaders, such as `cache_dir` or `token`.

    Returns:
        The commit, for a Hub id; the `weights_hash` of each part, for a folder.
    """
    source, revision, subfolder = location
    if os.path.isdir(source):
        return {part: weights_hash(Path(source, part)) for part in parts}
    folder = "/".join(filter(None, (subfolder, parts[0])))
    config = cached_file(source, "config.json", revision=revision or "main", subfolder=folder, **hub)
    return extract_commit_hash(config, None)


def scoring_settings(
    scorer: DinaScorer, *, sigmas: Sequence[float] | None = None, num_draws: int | None = None, mode: str | None = None
) -> dict[str, Any]:
    """All settings that a scorer's results depend on, except prompts, images, seed and library versions, as JSON
    values.

    Args:
        scorer: a scorer whose model and pipeline were loaded from a folder or from the Hub.
        sigmas, num_draws, mode: settings of the ensemble; None uses the model's defaults.
    """
    model, config = scorer.model, scorer.model.config
    hub = {name: value for name, value in model.hub_options.items() if name != "force_download"}
    base = {}
    if model.base_location is not None:
        base["base"] = parts_identity(model.base_location, [model.backbone.component], **hub)
    encoders = [name for name, part in scorer.pipeline.components.items() if isinstance(part, nn.Module)]
    return {
        "revision": model.weights_revision or weights_hash(Path(model.name_or_path)),
        **base,
        "conditioning": parts_identity(model.conditioning_location(), encoders, **hub),
        "sigmas": [float(sigma) for sigma in (config.default_sigmas if sigmas is None else sigmas)],
        "draws": config.default_num_draws if num_draws is None else num_draws,
        "mode": config.ensemble_mode if mode is None else mode,
        "text_length": config.max_sequence_length,
        "max_pixels": scorer.max_pixels,
        "dtype": str(model.compute_dtype).removeprefix("torch."),
        "device": model.execution_device.type,
    }
