"""Commands of `dina` that belong to measuring. What they need is imported when they run."""

import json
from pathlib import Path
from typing import Annotated

import typer

from modeling_dina.cli import (
    EMBEDDED_MODEL,
    Dtype,
    HubOptions,
    JsonOption,
    ModelOptions,
    console,
    error_console,
    scoring_progress,
    with_option_groups,
)


@with_option_groups
def calibrate(
    model: Annotated[Path, typer.Option(help="A model folder.")],
    hub: HubOptions,
    out: Annotated[
        Path | None, typer.Option(help="A new folder for a calibrated copy. Default: the model's own config changes.")
    ] = None,
    benchmark: Annotated[str, typer.Option(help="Whose preferences to fit to; see evaluate_preferences.")] = "world",
    data: Annotated[
        str | None, typer.Option(help="A folder laid out as the public repository, or a Hub id. Not for the world.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=2, help="Read only so many rows or prompts.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images scored at a time.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the noise and of the split.")] = 0,
    device: Annotated[str | None, typer.Option(help="Device. Default: cuda if there is one.")] = None,
    dtype: Annotated[Dtype | None, typer.Option(help="Floating-point type. Default: that of the weights.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Fit temperature, mean and spread of a model's scores to preferences, and report on prompts not fitted to."""
    from model_card.benchmarks import BENCHMARKS, Ties, find_data
    from model_card.calibration import (
        Calibration,
        fit_calibration,
        recalibrated,
        split_by_cluster,
        write_calibration,
    )
    from model_card.evaluate_preferences import content_of, likelihood, run_settings, score_items, scored
    from model_card.rewards import DinaReader
    from modeling_dina.journal import Journal

    if not (model / "config.json").is_file():
        raise ValueError(f"model: expected a model folder, got {model}")
    if out is None and model.resolve() == Path(EMBEDDED_MODEL).resolve():
        raise ValueError(
            "out: expected a folder for a copy of the model in the package, which stays as it is, got none"
        )
    if out is not None and (out.exists() or not out.absolute().parent.is_dir()):
        raise ValueError(f"out: expected a new folder in one that is there, got {out}")
    if benchmark not in BENCHMARKS:
        raise ValueError(f"benchmark: expected one of {', '.join(BENCHMARKS)}, got {benchmark}")

    folder, _ = find_data(benchmark, data)
    with error_console.status("reading the benchmark"):
        preferences = BENCHMARKS[benchmark].read(folder, limit)
    split = "validation" if BENCHMARKS[benchmark].ties is Ties.predicted else "test"
    pairs = preferences.pairs(split).shuffled_sides(seed)
    if BENCHMARKS[benchmark].ties is Ties.dropped:
        pairs = pairs[pairs.label != 0.5]
    options = ModelOptions(**vars(hub), model=str(model), device=device, dtype=dtype)
    reader = DinaReader(options.open_scorer(batch_size=batch_size), str(model), seed=seed)
    config = reader.scorer.model.config
    current = Calibration(*(float(getattr(config, name)) for name in ("temperature", "score_mean", "score_std")))

    place = (out or model).absolute()
    journal = Journal(
        place.with_name(f"{place.name}.calibration.partial"),
        content_of(benchmark, preferences, folder) | run_settings(reader, seed),
    )
    with scoring_progress() as advance:
        samples, failures = score_items(preferences.items, reader, journal, batch_size, advance)
    rewards = reader.ensemble(samples)
    fitted, held = split_by_cluster(pairs[scored(rewards, pairs)], seed)
    if not len(fitted) or not len(held):
        raise ValueError(f"data: expected preferences for two prompts or more, got {len(fitted) + len(held)} pairs")
    found = fit_calibration(rewards, fitted, current)
    reports = {
        name: likelihood(*used.log_probabilities(held), held.target)
        for name, used in {"before": rewards, "after": recalibrated(rewards, current, found)}.items()
    }
    write_calibration(model, found, out)
    journal.remove()

    result = {
        **vars(found),
        "benchmark": benchmark,
        "pairs_fitted": len(fitted),
        "pairs_held_out": len(held),
        "failures": len(failures) + len(preferences.failures),
        **reports,
    }
    if as_json:
        return print(json.dumps(result, allow_nan=False))
    console.print(
        f"temperature {found.temperature:.4f}, score mean {found.score_mean:.4f}, score std {found.score_std:.4f}, "
        f"fitted to {len(fitted)} pairs",
        highlight=False,
    )
    for name, report in reports.items():
        numbers = ", ".join(f"{key.replace('_', ' ')} {value:.4f}" for key, value in report.items())
        console.print(f"{name}, on {len(held)} held-out pairs: {numbers}", highlight=False)
    console.print(f"wrote {out or model}", highlight=False)
