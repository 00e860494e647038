"""The report of the method study: tables and figures, made from its results alone."""

from itertools import product
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from model_card.studies.method.measurement import EVALUATIONS, SWEEP
from model_card.studies.method.summary import SETS
from model_card.studies.method.variants import VARIANTS
from model_card.studies.page import interval, legend_outside, line, number, panels, write_page
from modeling_dina.plotting import INK

TITLES = {name: name.replace("_", "-") for name in SETS}
COLORS = {"one level": "#56B4E9", "features": "#0072B2", "mean": "#D55E00", "precision": "#009E73"}
# Curves of the figure of reliability: DiNa, and the variants that differ in their likelihood.
RELIABILITY = {("dina", "one level"): "-", ("dina", "features"): "--", ("pixel", "decoded"): "-"}
RELIABILITY |= {(name, "one level"): "-" for name in ("constant_floor", "constant_mean", "bradley_terry")}


def write_report(results: dict[str, Any], folder: Path) -> None:
    """Write `tables.md` and the figures."""
    tables = {
        "Variants": variants_table(results),
        "Claims": claims_table(results["claims"]),
        "Accuracy by noise level": levels_table(results["levels"]),
        "Variance of one reward": variances_table(results["variances"]),
        "Errors by disagreement": disagreement_table(results["disagreement"]),
    }
    figures = {
        "accuracy_by_level": draw_levels(results),
        "scaling": draw_scaling(results["scaling"]),
        "reliability": draw_reliability(results["variants"]),
    }
    write_page(folder, "The method study", tables, figures)


def percent(estimate: dict, sign: str = "") -> str:
    """An estimate of shares with its interval, in percent."""
    return interval(estimate, f"{sign}.1f", 100)


def variants_table(results: dict[str, Any]) -> list[dict[str, str]]:
    """A row for the best reachable, and for each evaluation of each variant."""
    found = [("best reachable", "", results["best"])]
    for each in results["variants"]:
        found.append((VARIANTS[each["variant"]].title, EVALUATIONS[each["evaluation"]].title, each))
    return [
        {
            "variant": variant,
            "evaluated on": evaluation,
            **{f"accuracy, {title}": percent(each[name]["accuracy"]) for name, title in TITLES.items()},
            "calibration error": number(each["seen"].get("calibration_error"), ".3f") or "0",
            "log-likelihood": f"{each['seen']['log_likelihood']['mean']:.4f}",
            "MFLOPs": number(each.get("flops"), ",.0f", 1e-6),
            "ms": number(each.get("seconds"), ".1f", 1e3),
        }
        for variant, evaluation, each in found
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
    accuracy = {name: {f"{point['sigma']:g}": point["accuracy"] for point in curve} for name, curve in levels.items()}
    sigmas = [f"{sigma:g}" for sigma in SWEEP]
    return [
        {"variant": VARIANTS[name].title} | {sigma: number(found.get(sigma), ".1f", 100) for sigma in sigmas}
        for name, found in accuracy.items()
    ]


def variances_table(variances: list[dict]) -> list[dict[str, str]]:
    """A row for each noise level: the likelihood's variance and the measured ones."""
    titles = {"likelihood": "likelihood", "votes": "annotators' votes", "draws": "draws of a reward"}
    titles["draws_of_differences"] = "draws of a difference, halved"
    return [
        {"noise level": f"{level['sigma']:g}"} | {title: number(level[name], ".3f") for name, title in titles.items()}
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


def draw_levels(results: dict[str, Any]) -> Figure:
    """Accuracy at every noise level, of all variants."""
    figure, (panel,) = panels(1, width=7.5, height=4.6)
    for name, curve in results["levels"].items():
        style: dict[str, Any] = {"color": VARIANTS[name].color, "label": VARIANTS[name].title}
        if name == "pixel":  # one point, at 0
            style |= {"marker": "D", "markersize": 9, "markerfacecolor": "none", "linestyle": "none", "zorder": 4}
            style["label"] += ", through the decoder"
        line(panel, [(point["sigma"], point["accuracy"]) for point in curve], name == "dina", **style)
    panel.axhline(results["best"]["seen"]["accuracy"]["mean"], color=INK, linestyle="--", label="best reachable")
    panel.set(xlabel=r"noise level $\sigma$ (0: clean, 1: noise alone)", ylabel="accuracy", xlim=(-0.02, 1.02))
    legend_outside(figure, panel, fontsize=9)
    return figure


def draw_scaling(scaling: dict[str, dict[str, list[dict]]]) -> Figure:
    """Accuracy and calibration of DiNa against draws and levels."""
    figure, axes = panels(2, 2, width=8, height=6)
    labels = {"draws": "noise draws at each level", "levels": "noise levels"}
    for panel, (name, of) in zip(axes, product(("accuracy", "calibration_error"), labels), strict=True):
        for mode, curve in scaling[of].items():
            line(panel, [(point[of], point[name]) for point in curve], color=COLORS[mode], label=mode)
        panel.set(xlabel=labels[of], ylabel=name.replace("_", " "))
        if of == "draws":
            panel.set_xscale("log", base=2)
        ticks = [point[of] for point in scaling[of]["mean"]]
        panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        panel.minorticks_off()
    axes[0].legend(frameon=False, fontsize=9)
    return figure


def draw_reliability(variants: list[dict]) -> Figure:
    """The share of annotators that prefer an image against the predicted probability."""
    figure, (panel,) = panels(1, width=7.5, height=4.6)
    for each in variants:
        variant, key = VARIANTS[each["variant"]], (each["variant"], each["evaluation"])
        if key in RELIABILITY:
            curve = [(part["by"], part["mean"]) for part in each["seen"]["reliability"] if part["by"] is not None]
            label = f"{variant.title}, {EVALUATIONS[key[1]].title}"
            line(panel, curve, color=variant.color, label=label, linestyle=RELIABILITY[key])
    panel.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle=":")  # where the prediction is exact
    panel.set(xlabel="predicted win probability", ylabel="share of annotators")
    panel.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    legend_outside(figure, panel, fontsize=9)
    return figure
