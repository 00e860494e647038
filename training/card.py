"""The model card of a trained reward model: its use, its training and its evaluation."""

import os
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from modeling_dina import DinaConfig
from modeling_dina.files import write_text

TEMPLATES = Path(__file__).parent / "templates"


def write_card(
    folder: str | Path,
    config: DinaConfig,
    settings: dict[str, Any],
    metrics: dict[str, Any],
    repo_id: str | None = None,
    *,
    name: str | None = None,
) -> None:
    """Write `README.md` into the model folder, unless it has one.

    Args:
        folder: folder of the model.
        config: config of the model.
        settings: training settings by name.
        metrics: metrics of the last evaluation by name; if empty, the card has no evaluation.
        repo_id: repository that the model will be pushed to, for the example and the title.
        name: final name of the folder, for the example without a `repo_id`; its current name by default.
    """
    path = Path(folder, "README.md")
    if path.exists():
        return
    base, data, licence = describe(config)
    tables = {"Training": settings, "Evaluation": metrics}
    card = ModelCard.from_template(
        ModelCardData(**data),
        template_path=str(TEMPLATES / "model.md"),
        title=repo_id.partition("/")[2] if repo_id else "DiNa-LRM",
        config=config,
        base=base or "its base model",
        source=repo_id or name or Path(folder).name,
        example="a prompt for both images",
        tables={heading: _cells(rows) for heading, rows in tables.items() if rows},
        licence=licence,
    )
    write_text(path, card.content)


def describe(config: DinaConfig) -> tuple[str | None, dict[str, Any], str]:
    """
    Describe the origin of a model by its config.

    Returns:
        The Hub id of the base model or None, keyword arguments of `ModelCardData`, and the licence as text.
    """
    base = config.base_model if _is_hub_id(config.base_model) else None
    data, licence = _licence(config, base)
    if base is not None:
        data |= {"base_model": base, "base_model_relation": "adapter" if config.adapter_only else "finetune"}
    tags = ["reward-model", "preference-learning", "diffusion"]
    return base, {"library_name": "transformers", "tags": tags, **data}, licence


def _is_hub_id(source: str | None) -> bool:
    """True for `owner/name`; False for a local path."""
    if source is None or os.path.isdir(source) or "/" not in source:
        return False
    try:
        validate_repo_id(source)
    except HFValidationError:
        return False
    return True


def _licence(config: DinaConfig, base: str | None) -> tuple[dict[str, str], str]:
    """The licence of the weights that the model derives from, as metadata and as text."""
    if config.base_model is None:
        return {"license": "apache-2.0"}, "Apache-2.0."
    if base is not None and base.startswith("stabilityai/stable-diffusion-3"):
        link = f"https://huggingface.co/{base}/blob/main/LICENSE.md"
        data = {"license": "other", "license_name": "stabilityai-ai-community", "license_link": link}
        return data, f"The weights derive from {base} and are under its [Stability AI Community License]({link})."
    return {}, f"The weights derive from {base or 'another model'} and inherit its licence."


def _cells(rows: dict[str, Any]) -> dict[str, str]:
    cells = {name: f"{value:.4g}" if isinstance(value, float) else str(value) for name, value in rows.items()}
    return {name: " ".join(value.replace("|", "\\|").split()) for name, value in cells.items()}
