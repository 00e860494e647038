"""Write a model card from measurements: `python -m model_card.write --model DIR --results FILE … --out README.md`.

Every number comes from a file of results, which names its kind, the measured weights and the command that made it.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from model_card.studies.alignment.report import variants_table
from model_card.studies.method.report import claims_table
from model_card.studies.page import markdown
from modeling_dina import DinaConfig, DinaRewardModel
from modeling_dina.evaluation.rewards import display_path
from modeling_dina.files import write_text
from modeling_dina.identity import weights_hash
from modeling_dina.options import check_output, exit_on_bad_input, loading
from training import card
from training.world.annotators import IMPRESSION_NOISE

TEMPLATES = Path(__file__).parent / "templates"
WORLD_SETS = ("seen", "held_out", "generated")
# Name and Hub id of the data set.
BENCHMARKS = {
    "imagereward": ("ImageReward, test", "THUDM/ImageRewardDB"),
    "hpdv2": ("HPDv2, test", "ymhao/HPDv2"),
    "hpdv3": ("HPDv3, test", "MizzenAI/HPDv3"),
    "pickapic": ("Pick-a-Pic, unique test prompts", "yuvalkirstain/pickapic_v1"),
    "genai-bench": ("GenAI-Bench, image generation", "TIGER-Lab/GenAI-Bench"),
    "mj-bench": ("MJ-Bench", "MJ-Bench/MJ-Bench"),
    "mmrb2": ("MMRB2, text to image", "facebook/MMRB2"),
    "pairs": ("Preference pairs of its own", "preference-pairs"),
    "world": ("The small world, fresh scenes", "small-world"),
    "world_flaws": ("The small world, single flaws", "small-world-flaws"),
}
METRICS = {
    "accuracy": "Accuracy",
    "brier_score": "Brier score",
    "expected_calibration_error": "Expected calibration error",
}


# Fields that describe a file of results.
HEAD = ("kind", "command", "revision", "settings")


class Results(NamedTuple):
    """The measurements of one model.

    Attributes:
        preferences: results of `dina evaluate`, and of `model_card.evaluate_preferences` for the small world.
        costs: results of `model_card.measure_cost`.
        world: the report of a build of the small world, or None.
        method: the results of the method study, or None.
        alignment: the results of the alignment study, or None.
        commands: the command that made each file, by file.
    """

    preferences: list[dict[str, Any]]
    costs: list[dict[str, Any]]
    world: dict[str, Any] | None
    method: dict[str, Any] | None
    alignment: dict[str, Any] | None
    commands: dict[str, str]


def read_results(paths: Sequence[Path], model: Path, config: DinaConfig) -> Results:
    """
    Read the results of a model.

    Args:
        paths: JSON files, and folders of them. Files of a folder that describe other models or are not results are
            ignored.
        model: folder of the model.
        config: config of the model.

    Raises:
        ValueError: one of the JSON files in `paths` is not a file of results, or describes another model.
    """
    files = {path: True for path in paths if not path.is_dir()}
    files |= {path: False for folder in paths if folder.is_dir() for path in sorted(folder.glob("*.json"))}
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in ABOUT}
    commands = {}
    for path, named in files.items():
        try:
            content = json.loads(path.read_text("utf-8"))
        except ValueError as error:
            raise ValueError(f"results: expected JSON, got {path}: {error}") from error
        fault = _fault(content, model, config)
        if fault and named:
            raise ValueError(f"results: expected {fault}, got {path}")
        if not fault:
            found[content["kind"]].append(content)
            commands[shown_file(path)] = content["command"]
    world, method, alignment = (found[kind][-1] if found[kind] else None for kind in SINGLE)
    return Results(found["preferences"], found["cost"], world, method, alignment, commands)


# For each kind of results, the part of a model's folder whose weights they describe. A cost depends on the numbers of
# parameters only.
ABOUT = {"preferences": ".", "cost": None, "world_build": ".", "method_study": "transformer", "alignment_study": "."}
SINGLE = ("world_build", "method_study", "alignment_study")


def _fault(content: Any, model: Path, config: DinaConfig) -> str | None:
    """What is wrong with results, as the words after "expected"; None if they describe this model."""
    if not isinstance(content, dict):
        return "an object"
    missing = [name for name in HEAD if name not in content]
    if missing:
        return f"the fields {', '.join(missing)}"
    if content["kind"] not in ABOUT:
        return f"one of the kinds {', '.join(ABOUT)} rather than {content['kind']}"
    part = ABOUT[content["kind"]]
    if part is None:
        counts = parameter_counts(config)
        return None if content["parameters"] == counts else f"the cost of a model with {counts} parameters"
    expected = weights_hash(model / part) if (model / part).is_dir() else None
    found = content["revision"]
    return None if found == expected else f"results ({content['kind']}) of the weights {expected} rather than {found}"


def parameter_counts(config: DinaConfig) -> dict[str, int]:
    """Numbers of parameters of backbone and head after a LoRA is merged."""
    with torch.device("meta"):
        model = DinaRewardModel(DinaConfig(**config.to_diff_dict() | {"lora": None}))
    return {
        name: sum(parameter.numel() for parameter in part.parameters())
        for name, part in (("backbone", model.backbone), ("head", model.head))
    }


def shown_file(path: Path) -> str:
    """The path of a file, relative to the working directory if the file is inside it."""
    return f"{display_path(str(path.parent.resolve()))}/{path.name}"


def table_rows(result: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Rows of a benchmark's table: the ensemble, its categories, and each noise level."""
    settings = result["settings"]
    draws = f"{settings['draws']} draw{'s' * (settings['draws'] > 1)}"
    levels = len(settings["sigmas"])
    ensemble = f"ensemble ({settings['mode']}), {levels} levels x {draws}" if levels > 1 else draws
    return [
        (f"**{ensemble}**", result),
        *(result.get("categories") or {}).items(),
        *((f"noise level {level['sigma']:g} alone, {draws}", level) for level in result["levels"] if levels > 1),
    ]


def eval_results(preferences: list[dict[str, Any]]) -> list[EvalResult]:
    """Entries of the model index: accuracy and quality of the probabilities."""
    return [
        EvalResult(
            task_type="preference-prediction",
            task_name="Preference prediction",
            dataset_type=BENCHMARKS[result["benchmark"]][1],
            dataset_name=BENCHMARKS[result["benchmark"]][0],
            dataset_split="test",
            dataset_revision=result["settings"]["data_revision"],
            metric_type=metric,
            metric_name=name,
            metric_value=round(result[metric.removeprefix("expected_")], 4),
        )
        for result in preferences
        for metric, name in METRICS.items()
    ]


def render(
    model: Path, results: Results, config: DinaConfig, repo_id: str | None = None, datasets: Sequence[str] = ()
) -> ModelCard:
    """
    Render the card.

    Args:
        model: folder of the model.
        results: results from `read_results`.
        config: config of the model.
        repo_id: Hub id that the model will have, for the title and the example.
        datasets: Hub ids of the training data; empty for the small world.

    Raises:
        ValueError: `results` has no preferences, or `datasets` is empty for a model of another world.
    """
    if not results.preferences:
        raise ValueError("results: expected those of dina evaluate among them, got none")
    if not datasets and results.world is None:
        raise ValueError("dataset: expected the Hub id of what the model was trained on, got none")
    base, data, licence = card.describe(config)
    title = "DiNa-LRM of the small world" if results.world else "DiNa-LRM"
    title = repo_id.partition("/")[2] if repo_id else title
    metadata = ModelCardData(
        language="en",
        datasets=list(datasets) or None,
        metrics=["accuracy", "brier_score"],
        model_name=title,
        eval_results=eval_results(results.preferences),
        **data,
    )
    environment = Environment(
        loader=FileSystemLoader([TEMPLATES, card.TEMPLATES]),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "short": lambda value: "" if value is None else f"{value:.3f}",
        "claims_table": lambda claims: markdown(claims_table(claims)),
        "variants_table": lambda results: markdown(variants_table(results)),
        "span": lambda interval: "{:.3f} to {:.3f}".format(*interval) if interval else "",
        "estimate": lambda measured: f"{measured['accuracy']:.3f} ± {measured['standard_error']:.3f}",
    }
    text = environment.get_template("small_world.md" if results.world else "measured.md").render(
        card_data=metadata.to_yaml(),
        title=title,
        config=config,
        base=base or "its base model",
        source=repo_id or display_path(str(model)),
        example="two purple stars" if results.world else "what both should show",
        licence=licence,
        datasets=datasets,
        noise=IMPRESSION_NOISE,
        world=results.world,
        method=results.method,
        alignment=results.alignment,
        sets=[results.world[name] for name in WORLD_SETS] if results.world else [],
        preferences=[
            {"name": BENCHMARKS[result["benchmark"]][0], "rows": table_rows(result), **result}
            for result in results.preferences
        ],
        costs=results.costs,
        commands=results.commands,
    )
    return ModelCard(text)


def main(
    model: Annotated[Path, typer.Option(help="Folder of the model.")],
    results: Annotated[
        list[Path],
        typer.Option(help="JSON file of measurements, or a folder of them, from which this model's are read."),
    ],
    out: Annotated[Path, typer.Option(help="File of the card: README.md.")],
    repo_id: Annotated[str | None, typer.Option(help="Hub id (owner/name) that the model will have.")] = None,
    dataset: Annotated[
        list[str] | None,
        typer.Option(help="Hub id of a training data set; may be repeated. Omit it for the small world."),
    ] = None,
) -> None:
    """Write a model's card from its measurements."""
    with exit_on_bad_input():
        check_output("out", out, (".md",))
        if not (model / "config.json").is_file():
            raise ValueError(f"model: expected a folder with config.json, got {model}")
        with loading("model", model):
            config = DinaConfig.from_pretrained(model)
        found = read_results(results, model, config)
        rendered = render(model, found, config, repo_id, dataset or ())
    write_text(out, rendered.content)


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
