"""Measure what lower precisions of the backbone save, and how they change the order of images:
`python -m model_card.measure_precision --out FILE`.

Pictures of the small world are scored by the same model in each precision. Weight-only quantisation by torchao needs
the extra `quantization`.
"""

from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer
from scipy.stats import spearmanr
from transformers import TorchAoConfig

from model_card.cost_counters import measure_seconds
from model_card.measure_cost import LIBRARIES, device_name
from model_card.studies.page import markdown
from modeling_dina import DinaRewardModel
from modeling_dina.conditioning_dina import load_pipeline
from modeling_dina.evaluation.rewards import display_path
from modeling_dina.files import write_json
from modeling_dina.identity import weights_hash
from modeling_dina.options import EMBEDDED_MODEL, check_output, exit_on_bad_input, loading, usable_device
from training.costs import weight_bytes
from training.world.latents import rendered_groups
from training.world.models.scores import group_scores
from training.world.seeds import Seed

REFERENCE = "bfloat16"
COMPILED = "bfloat16, compiled"
TIMED = 8  # groups


def load_precisions(source: str, device: str) -> dict[str, DinaRewardModel]:
    """The same model in each precision. The head is in float32 in all of them.

    Raises:
        ValueError: torchao is missing, or the folder has no reward model.
    """
    try:
        from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig
    except ModuleNotFoundError as error:
        raise ValueError(f"torchao: expected dina-lrm[quantization] to be installed, got: {error}") from error

    half: dict[str, Any] = {"dtype": torch.bfloat16}
    options = {
        "float32": {"dtype": torch.float32},
        REFERENCE: half,
        COMPILED: half,
        "int8 weights": half | {"quantization_config": TorchAoConfig(Int8WeightOnlyConfig())},
        "float8 weights": half | {"quantization_config": TorchAoConfig(Float8WeightOnlyConfig())},
    }
    with loading("model", source):
        models = {name: DinaRewardModel.from_pretrained(source, **each).to(device) for name, each in options.items()}
    models[COMPILED].backbone.compile()
    return models


def measure(source: str, device: str, groups: int, rounds: int) -> dict[str, Any]:
    """
    Measure every precision.

    Returns:
        For each of them, "weight_bytes" of the backbone, "seconds" for scoring 32 pictures, and of the scores of all
        pictures, their Spearman "rank_correlation" with those of the reference and the "largest_difference" from them,
        in standard deviations.
    """
    models = load_precisions(source, device)
    pipeline = load_pipeline(models["float32"])
    with TemporaryDirectory() as folder:
        pictures = rendered_groups(Path(folder), pipeline.vae, groups=groups, seed=Seed.BENCHMARK)
    scores = {name: group_scores(model, pipeline, pictures).ravel() for name, model in models.items()}
    few = pictures.first(TIMED)
    cases = {name: lambda model=model: group_scores(model, pipeline, few) for name, model in models.items()}
    seconds = measure_seconds(cases, device, rounds)
    expected = scores[REFERENCE]
    return {
        name: {
            "weight_bytes": weight_bytes(model.backbone),
            "seconds": seconds[name],
            "rank_correlation": float(spearmanr(scores[name], expected).statistic),
            "largest_difference": float(abs(scores[name] - expected).max() / expected.std()),
        }
        for name, model in models.items()
    }


def table(precisions: dict[str, dict[str, float]]) -> list[dict[str, str]]:
    """A row for each precision."""
    return [
        {
            "backbone": name,
            "MB weights": f"{each['weight_bytes'] / 1e6:.1f}",
            "time, over bfloat16": f"{each['seconds'] / precisions[REFERENCE]['seconds']:.2f}",
            "rank correlation with bfloat16": f"{each['rank_correlation']:.5f}",
            "largest difference, in standard deviations": f"{each['largest_difference']:.3f}",
        }
        for name, each in precisions.items()
    ]


def main(
    model: Annotated[str, typer.Option(help="Folder of a reward model of the small world.")] = EMBEDDED_MODEL,
    device: Annotated[str | None, typer.Option(help="Device. Default: cuda if available.")] = None,
    groups: Annotated[int, typer.Option(min=TIMED, help="Groups of four pictures that are scored.")] = 500,
    rounds: Annotated[int, typer.Option(min=1, help="Number of timings, of which the median is reported.")] = 10,
    out: Annotated[Path | None, typer.Option(help="Also write the results to this JSON file.")] = None,
) -> None:
    """Measure precisions of the backbone."""
    with exit_on_bad_input():
        if out:
            check_output("out", out, (".json",))
        if not Path(model).is_dir():
            raise ValueError(f"model: expected a folder, got {model}")
        found = usable_device(device)
        precisions = measure(model, found, groups, rounds)
    typer.echo(markdown(table(precisions)))
    if out:
        settings = {"device": found, "groups": groups, "rounds": rounds}
        options = " ".join(f"--{name} {value}" for name, value in settings.items())
        libraries = {library: version(library) for library in (*LIBRARIES, "torchao")}
        result = {
            "kind": "precision",
            "command": f"python -m model_card.measure_precision --model {display_path(model)} {options} --out {out}",
            "revision": weights_hash(Path(model)),
            "settings": {**settings, "device_name": device_name(found), "libraries": libraries},
            "precisions": precisions,
        }
        write_json(out, result)


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
