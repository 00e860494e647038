"""The method study's report: tables and figures, made of its results alone."""

from pathlib import Path

from model_card.studies.method.figures import draw_figures
from model_card.studies.method.measurement import EVALUATIONS, SWEEP
from model_card.studies.method.summary import SETS
from model_card.studies.method.variants import VARIANTS
from model_card.studies.report import interval, markdown, write_tables

TITLES = [name.replace("_", "-") for name in SETS]


def write_report(results: dict, folder: Path) -> None:
    """Write `tables.md` and the figures."""
    tables = {
        "Variants": variants_table(results),
        "Claims": claims_table(results["claims"]),
        "Accuracy by noise level": levels_table(results["levels"]),
        "Variance of one reward": variances_table(results["variances"]),
        "Errors by disagreement": disagreement_table(results["disagreement"]),
    }
    write_tables(folder, "The method study", tables, draw_figures(results))


def percent(estimate: dict, sign: str = "") -> str:
    """An estimate of shares with its interval, in percent."""
    return interval(estimate, f"{sign}.1f", 100)


def variants_table(results: dict) -> str:
    """A line for each evaluation of each variant."""
    accuracies = [f"accuracy, {title}" for title in TITLES]
    header = ("variant", "evaluated on", *accuracies, "calibration error", "log-likelihood", "MFLOPs", "ms")
    best = [results["best"][name] for name in SETS]
    limits = [percent(found["accuracy"]) for found in best]
    lines = [("best reachable", "", *limits, "0", f"{best[0]['log_likelihood']['mean']:.4f}", "", "")]
    for each in results["variants"]:
        seen = each["seen"]
        lines.append(
            (
                VARIANTS[each["variant"]].title,
                EVALUATIONS[each["evaluation"]].title,
                *(percent(each[name]["accuracy"]) for name in SETS),
                f"{seen['calibration_error']:.3f}",
                f"{seen['log_likelihood']['mean']:.4f}",
                f"{each['flops'] / 1e6:,.0f}",
                f"{each['seconds'] * 1e3:.1f}",
            )
        )
    return markdown(header, lines)


def claims_table(claims: list[dict]) -> str:
    """A line for each claim with the difference of accuracies, in percentage points."""
    lines = [
        (claim["text"], *(percent(claim[name]["accuracy"], "+") for name in SETS), claim["verdict"])
        for claim in claims
    ]
    return markdown(("claim", *(f"points, {title}" for title in TITLES), "verdict"), lines)


def levels_table(levels: dict[str, list[dict]]) -> str:
    """A line for each variant, on seen combinations; empty where it was not measured."""
    header, lines = ("variant", *(f"{sigma:g}" for sigma in SWEEP)), []
    for name, curve in levels.items():
        accuracy = {f"{point['sigma']:g}": f"{100 * point['accuracy']:.1f}" for point in curve}
        lines.append((VARIANTS[name].title, *(accuracy.get(sigma, "") for sigma in header[1:])))
    return markdown(header, lines)


def variances_table(variances: list[dict]) -> str:
    """A line for each noise level: the likelihood's variance beside those measured."""
    columns = {
        "likelihood": "likelihood",
        "votes": "annotators' votes",
        "draws": "draws of a reward",
        "draws_of_differences": "draws of a difference, halved",
    }
    lines = [
        (f"{level['sigma']:g}", *("" if level[name] is None else f"{level[name]:.3f}" for name in columns))
        for level in variances
    ]
    return markdown(("noise level", *columns.values()), lines)


def disagreement_table(found: dict) -> str:
    """Error rates by fifths of the pairs, and their rise from the first to the last."""
    fifths = found["quintiles"]
    header = ("errors, %", "least disagreement", *("",) * (len(fifths) - 2), "most", "rise, points")
    kinds = {"error": ("all", "rise"), "avoidable": ("less annotators' own noise", "avoidable_rise")}
    lines = [
        (title, *(f"{100 * fifth[kind]:.1f}" for fifth in fifths), percent(found[rise], "+"))
        for kind, (title, rise) in kinds.items()
    ]
    return markdown(header, lines)
