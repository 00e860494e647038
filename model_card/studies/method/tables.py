"""The report of the method study: tables and figures, made from its results alone."""

from pathlib import Path
from typing import Any

from model_card.studies.method.figures import draw_figures
from model_card.studies.method.measurement import EVALUATIONS, SWEEP
from model_card.studies.method.summary import SETS
from model_card.studies.method.variants import VARIANTS
from model_card.studies.report import interval, write_page

TITLES = {name: name.replace("_", "-") for name in SETS}


def write_report(results: dict[str, Any], folder: Path) -> None:
    """Write `tables.md` and the figures."""
    tables = {
        "Variants": variants_table(results),
        "Claims": claims_table(results["claims"]),
        "Accuracy by noise level": levels_table(results["levels"]),
        "Variance of one reward": variances_table(results["variances"]),
        "Errors by disagreement": disagreement_table(results["disagreement"]),
    }
    write_page(folder, "The method study", tables, draw_figures(results))


def percent(estimate: dict, sign: str = "") -> str:
    """An estimate of shares with its interval, in percent."""
    return interval(estimate, f"{sign}.1f", 100)


def variants_table(results: dict[str, Any]) -> list[dict[str, str]]:
    """A row for each evaluation of each variant."""

    def row(variant: str, evaluation: str, sets: dict, error: float, flops: str, seconds: str) -> dict[str, str]:
        return {
            "variant": variant,
            "evaluated on": evaluation,
            **{f"accuracy, {title}": percent(sets[name]["accuracy"]) for name, title in TITLES.items()},
            "calibration error": f"{error:.3f}" if error else "0",
            "log-likelihood": f"{sets['seen']['log_likelihood']['mean']:.4f}",
            "MFLOPs": flops,
            "ms": seconds,
        }

    return [
        row("best reachable", "", results["best"], 0, "", ""),
        *(
            row(
                VARIANTS[each["variant"]].title,
                EVALUATIONS[each["evaluation"]].title,
                each,
                each["seen"]["calibration_error"],
                f"{each['flops'] / 1e6:,.0f}",
                f"{each['seconds'] * 1e3:.1f}",
            )
            for each in results["variants"]
        ),
    ]


def claims_table(claims: list[dict]) -> list[dict[str, str]]:
    """A row for each claim with the difference of accuracies, in percentage points."""
    return [
        {
            "claim": claim["text"],
            **{f"points, {title}": percent(claim[name]["accuracy"], "+") for name, title in TITLES.items()},
            "verdict": claim["verdict"],
        }
        for claim in claims
    ]


def levels_table(levels: dict[str, list[dict]]) -> list[dict[str, str]]:
    """A row for each variant, on seen combinations; empty where it was not measured."""
    blank = {f"{sigma:g}": "" for sigma in SWEEP}
    return [
        {"variant": VARIANTS[name].title, **blank}
        | {f"{point['sigma']:g}": f"{100 * point['accuracy']:.1f}" for point in curve}
        for name, curve in levels.items()
    ]


def variances_table(variances: list[dict]) -> list[dict[str, str]]:
    """A row for each noise level: the likelihood's variance and the measured ones."""
    columns = {
        "likelihood": "likelihood",
        "votes": "annotators' votes",
        "draws": "draws of a reward",
        "draws_of_differences": "draws of a difference, halved",
    }
    return [
        {"noise level": f"{level['sigma']:g}"}
        | {title: "" if level[name] is None else f"{level[name]:.3f}" for name, title in columns.items()}
        for level in variances
    ]


def disagreement_table(found: dict[str, Any]) -> list[dict[str, str]]:
    """Error rates by fifths of the pairs, and their rise from the first to the last."""
    kinds = {"error": ("all", "rise"), "avoidable": ("less annotators' own noise", "avoidable_rise")}
    return [
        {
            "errors, %, by disagreement (1: least)": title,
            **{f"fifth {place}": f"{100 * fifth[kind]:.1f}" for place, fifth in enumerate(found["quintiles"], 1)},
            "rise, points": percent(found[rise], "+"),
        }
        for kind, (title, rise) in kinds.items()
    ]
