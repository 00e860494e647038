"""The figures of the method study."""

from typing import Any

from matplotlib.figure import Figure

from model_card.studies.method.measurement import EVALUATIONS
from model_card.studies.method.variants import VARIANTS
from model_card.studies.report import legend_outside, line, panels
from modeling_dina.plotting import INK

MODES = {"one level": "#56B4E9", "features": "#0072B2", "mean": "#D55E00", "precision": "#009E73"}
# Curves of the figure of reliability: DiNa, and the variants that differ in their likelihood.
RELIABILITY = {("dina", "one level"): "-", ("dina", "features"): "--", ("pixel", "decoded"): "-"}
RELIABILITY |= {(name, "one level"): "-" for name in ("constant_floor", "constant_mean", "bradley_terry")}


def draw_figures(results: dict[str, Any]) -> dict[str, Figure | None]:
    """All figures of `results`, by name."""
    return {
        "accuracy_by_level": draw_levels(results),
        "scaling": draw_scaling(results["scaling"]),
        "reliability": draw_reliability(results["variants"]),
    }


def draw_levels(results: dict[str, Any]) -> Figure:
    """Accuracy at every noise level, of all variants."""
    figure, (panel,) = panels(1, width=7.5, height=4.6)
    for name, curve in results["levels"].items():
        variant, points = VARIANTS[name], [(point["sigma"], point["accuracy"]) for point in curve]
        if name == "pixel":  # one point, at 0
            style = {"marker": "D", "markersize": 9, "markerfacecolor": "none", "linestyle": "none", "zorder": 4}
            line(panel, points, variant.color, f"{variant.title}, through the decoder", **style)
        else:
            line(panel, points, variant.color, variant.title, name == "dina")
    panel.axhline(results["best"]["seen"]["accuracy"]["mean"], color=INK, linestyle="--", label="best reachable")
    panel.set(xlabel=r"noise level $\sigma$ (0: clean, 1: noise alone)", ylabel="accuracy", xlim=(-0.02, 1.02))
    legend_outside(figure, panel, fontsize=9)
    return figure


def draw_scaling(scaling: dict[str, dict[str, list[dict]]]) -> Figure:
    """Accuracy and calibration of DiNa against draws and levels."""
    figure, axes = panels(2, 2, width=8, height=6)
    measures = {"accuracy": "accuracy", "calibration_error": "calibration error"}
    for column, (of, words) in enumerate({"draws": "noise draws at each level", "levels": "noise levels"}.items()):
        for panel, (name, label) in zip(axes[column::2], measures.items(), strict=True):
            for mode, curve in scaling[of].items():
                line(panel, [(point[of], point[name]) for point in curve], MODES[mode], mode)
            panel.set(xlabel=words, ylabel=label)
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
        key = each["variant"], each["evaluation"]
        if key in RELIABILITY:
            variant, title = VARIANTS[key[0]], EVALUATIONS[key[1]].title
            curve = [(part["by"], part["mean"]) for part in each["seen"]["reliability"] if part["by"] is not None]
            line(panel, curve, variant.color, f"{variant.title}, {title}", linestyle=RELIABILITY[key])
    panel.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle=":")  # where the prediction is exact
    panel.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    panel.set(xlabel="predicted win probability", ylabel="share of annotators")
    legend_outside(figure, panel, fontsize=9)
    return figure
