"""The commands of `dina` that evaluate a reward on preferences. They import their extra only when they run."""

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from modeling_dina import options
from modeling_dina.options import console, error_console

BenchmarkOption = Annotated[
    str,
    typer.Option(
        help="imagereward, hpdv2, hpdv3, pickapic, genai-bench, mj-bench, mmrb2, pairs for your own preference data, "
        "or module:attribute of a Benchmark."
    ),
]
DataOption = Annotated[
    str | None, typer.Option(help="Data: a folder with the layout of the benchmark's public repository, or a Hub id.")
]


@options.with_option_groups
def evaluate(
    benchmark: BenchmarkOption,
    out: Annotated[Path, typer.Option(help="JSON file for the results. An interrupted run resumes.")],
    model: options.ModelOptions,
    ensemble: options.EnsembleOptions,
    scorer: Annotated[
        str | None,
        typer.Option(
            help="Scorer in place of a model: module:function that maps (prompts, images) to one number per image, or "
            "lrm:FOLDER, an LRM, whose VAE and tokenizers come from --backbone."
        ),
    ] = None,
    data: DataOption = None,
    batch_size: options.BatchSizeOption = 16,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Read only this many rows or prompts of each split.")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail if the size of the data differs from the published one.")
    ] = False,
) -> None:
    """Measure how often a reward agrees with people on a preference benchmark."""
    from modeling_dina.evaluation.benchmarks import find_benchmark, find_data
    from modeling_dina.evaluation.evaluate import evaluate as measure
    from modeling_dina.evaluation.rewards import display_path

    # This includes scoring, which is where errors in the scorer or the data appear.
    with options.exit_on_bad_input():
        options.check_output("out", out, (".json",))
        found = find_benchmark(benchmark)
        folder, revision = find_data(found, data)
        with error_console.status("reading the benchmark"):
            preferences = found.read(folder, limit)
        evaluator = open_evaluator(scorer, model, ensemble, batch_size=batch_size)
        settings = {"data": data and display_path(data), "data_revision": revision, "limit": limit}
        with options.scoring_progress() as advance:
            results = measure(
                benchmark,
                preferences,
                evaluator,
                out,
                batch_size=batch_size,
                folder=folder,
                seed=ensemble.seed,
                strict=strict,
                settings=settings,
                command=repeat_command(
                    benchmark,
                    scorer is not None,
                    evaluator.settings | settings | {"seed": ensemble.seed, "backbone": model.backbone},
                    out,
                ),
                progress=advance,
            )
        print_results(results)


def repeat_command(benchmark: str, is_callable: bool, settings: dict[str, Any], out: Path) -> str:
    """The command that repeats the evaluation, with all options."""
    from modeling_dina.evaluation.benchmarks import find_benchmark
    from modeling_dina.evaluation.rewards import display_path

    chosen = {
        "benchmark": benchmark,
        "scorer" if is_callable else "model": settings["model"],
        "backbone": settings["backbone"] and display_path(settings["backbone"]),
        "data": settings["data"],
    }
    chosen |= {"sigmas": settings["sigmas"] and ",".join(map(str, settings["sigmas"]))}
    chosen |= {name: settings[name] for name in ("draws", "mode", "seed", "limit")}
    chosen["out"] = f"{display_path(str(out.parent.resolve()))}/{out.name}"
    given = [f"--{name} {value}" for name, value in chosen.items() if value is not None]
    return " ".join([find_benchmark(benchmark).command, *given])


def open_evaluator(
    scorer: str | None, model: options.ModelOptions, ensemble: options.EnsembleOptions, *, batch_size: int
):
    """Create the evaluator of `scorer`, a callable "module:function" or an LRM "lrm:FOLDER", or else of the model.

    Raises:
        ValueError: both are given, or loading fails.
    """
    from modeling_dina.evaluation.lrm import PREFIX
    from modeling_dina.evaluation.rewards import CallableEvaluator, DinaEvaluator

    if scorer is not None:
        given = {name: value for name, value in ensemble.arguments().items() if name != "seed" and value is not None}
        if model.model != options.EMBEDDED_MODEL:
            given["model"] = model.model
        if given:
            raise ValueError(f"scorer: expected no model and no noise levels with a callable, got {given}")
        if scorer.startswith(PREFIX):
            base = {"base": model.backbone, "revision": model.backbone_revision, **model.hub_arguments()}
            return CallableEvaluator(scorer, device=options.usable_device(model.device), **base)
        return CallableEvaluator(scorer)
    return DinaEvaluator(model.open_scorer(batch_size=batch_size), model.model, **ensemble.arguments())


def print_results(results: dict[str, Any]) -> None:
    """Print the results as a table."""
    table = Table("", "accuracy", "± standard error", "log-likelihood", "Brier", "calibration error")

    def add(label: str, measured: dict[str, Any]) -> None:
        names = ("accuracy", "standard_error", "log_likelihood", "brier_score", "calibration_error")
        values = [measured.get(name) for name in names]
        table.add_row(escape(label), *("" if value is None else f"{value:.4f}" for value in values))

    add(results["benchmark"], results)
    for category, measured in results.get("categories", {}).items():
        add(f"  {category}", measured)
    for measured in results["levels"]:
        add(f"  noise level {measured['sigma']:g} alone", measured)
    console.print(table)
    console.print(
        f"{results['prompts']} prompts, {results['pairs']} pairs ({results['ties']} ties, {results['used']} used), "
        f"{results['failed_pairs']} of them without a score; {results['failures']} images or rows failed"
    )
    for failure in results["failed"][:5]:
        console.print(f"  {escape(failure['name'])}: {escape(failure['error'])}")
    if results["size_differences"]:
        console.print(f"differs from the published sizes: {results['size_differences']}")


@options.with_option_groups
def calibrate(
    model: Annotated[str, typer.Option(help="Model to calibrate: a folder or a Hub id.")],
    benchmark: BenchmarkOption,
    source: options.LoadingOptions,
    out: Annotated[
        Path | None,
        typer.Option(
            help="New folder for a calibrated copy, in the layout of this package. Default: change the model's own "
            "config."
        ),
    ] = None,
    data: DataOption = None,
    limit: Annotated[int | None, typer.Option(min=2, help="Read only this many rows or prompts.")] = None,
    batch_size: options.BatchSizeOption = 16,
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of the noise and of the split into fitted and held-out prompts.")
    ] = 0,
    device: options.DeviceOption = None,
    dtype: options.DtypeOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Fit temperature, mean and standard deviation of a model's scores to preferences, and report on held-out
    prompts."""
    from modeling_dina.evaluation.benchmarks import find_benchmark, find_data
    from modeling_dina.evaluation.calibration import calibrate as fit
    from modeling_dina.evaluation.calibration import has_own_config
    from modeling_dina.evaluation.rewards import DinaEvaluator

    options.check_model(model)
    if os.path.isdir(model) and not (Path(model) / "config.json").is_file():
        raise ValueError(f"model: expected a model folder, got {model}")
    is_embedded = Path(model).resolve() == Path(options.EMBEDDED_MODEL).resolve()
    if out is None and (is_embedded or not has_own_config(model)):
        kind = (
            "the model in the package" if is_embedded else f"{model}, which is on the Hub or in the published layout"
        )
        raise ValueError(f"out: expected a folder for a copy of {kind}, which stays as it is, got none")
    if out is not None and (out.exists() or not out.absolute().parent.is_dir()):
        raise ValueError(f"out: expected a new folder in an existing one, got {out}")

    found = find_benchmark(benchmark)
    folder, _ = find_data(found, data)
    with error_console.status("reading the benchmark"):
        preferences = found.read(folder, limit)
    chosen = options.ModelOptions(**vars(source), model=model, device=device, dtype=dtype)
    evaluator = DinaEvaluator(chosen.open_scorer(batch_size=batch_size), model, seed=seed)
    with options.scoring_progress() as advance:
        result = fit(
            benchmark,
            preferences,
            evaluator,
            model,
            out,
            batch_size=batch_size,
            data_folder=folder,
            seed=seed,
            progress=advance,
        )
    if as_json:
        return print(json.dumps(result, allow_nan=False))
    console.print(
        f"temperature {result['temperature']:.4f}, score mean {result['score_mean']:.4f}, "
        f"score std {result['score_std']:.4f}, fitted to {result['pairs_fitted']} pairs"
    )
    for name in ("before", "after"):
        numbers = ", ".join(f"{key.replace('_', ' ')} {value:.4f}" for key, value in result[name].items())
        console.print(f"{name}, on {result['pairs_held_out']} held-out pairs: {numbers}")
    console.print(f"wrote {out or model}")
