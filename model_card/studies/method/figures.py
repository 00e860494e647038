"""The method study's figures."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from model_card.studies.method.measurement import EVALUATIONS, QUINTILES
from model_card.studies.method.variants import VARIANTS
from model_card.studies.report import legend_outside, line, panels
from modeling_dina.plotting import FAINT, INK

MODES = {"one level": "#56B4E9", "features": "#0072B2", "mean": "#D55E00", "precision": "#009E73"}


def draw_figures(results: dict) -> dict[str, Figure]:
    """All figures of `results`, by name."""
    return {
        "accuracy_by_level": draw_levels(results),
        "scaling": draw_scaling(results),
        "reliability": draw_reliability(results),
        "win_probability": draw_win_probability(results),
        "uncertainty": draw_uncertainty(results),
    }


def draw_levels(results: dict) -> Figure:
    """Accuracy at every noise level, of all variants."""
    figure, axes = panels(1, width=7.5, height=4.6)
    for name, curve in results["levels"].items():
        variant, points = VARIANTS[name], [(point["sigma"], point["accuracy"]) for point in curve]
        label = variant.title + (", through the decoder" if name == "pixel" else "")
        line(axes[0], points, variant.color, label, name == "dina")
    axes[0].axhline(results["best"]["seen"]["accuracy"]["mean"], color=INK, linestyle="--", label="best reachable")
    axes[0].set(xlabel=r"noise level $\sigma$ (0: clean, 1: noise alone)", ylabel="accuracy", xlim=(-0.02, 1.02))
    legend_outside(figure, axes[0], fontsize=9)
    return figure


def draw_scaling(results: dict) -> Figure:
    """Accuracy and calibration of DiNa against draws and levels."""
    figure, axes = panels(2, 2, width=8, height=6)
    measures = {"accuracy": "accuracy", "calibration_error": "calibration error"}
    for column, (of, words) in enumerate((("draws", "noise draws at each level"), ("levels", "noise levels"))):
        for place, (name, label) in enumerate(measures.items()):
            panel = axes[2 * place + column]
            for mode, curve in results["scaling"][of].items():
                line(panel, [(point[of], point[name]) for point in curve], MODES[mode], mode)
            panel.set(xlabel=words, ylabel=label)
            if of == "draws":
                panel.set_xscale("log", base=2)
            ticks = [point[of] for point in results["scaling"][of]["mean"]]
            panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            panel.minorticks_off()
    axes[0].legend(frameon=False, fontsize=9)
    return figure


def draw_reliability(results: dict) -> Figure:
    """What annotators say against what is predicted, of DiNa and of the variants that differ in their likelihood."""
    names = ("constant_floor", "constant_mean", "bradley_terry")
    styles = {("dina", "one level"): "-", ("dina", "features"): "--", ("pixel", "decoded"): "-"}
    styles |= {(name, "one level"): "-" for name in names}
    figure, axes = panels(1, width=7.5, height=4.6)
    for each in results["variants"]:
        key = each["variant"], each["evaluation"]
        if key in styles:
            variant, setting = VARIANTS[key[0]], EVALUATIONS[key[1]]
            curve = [(part["by"], part["mean"]) for part in each["seen"]["reliability"] if part["by"] is not None]
            line(axes[0], curve, variant.color, f"{variant.title}, {setting.title}", linestyle=styles[key])
    diagonal(axes[0])
    axes[0].set(xlabel="predicted win probability", ylabel="share of annotators")
    legend_outside(figure, axes[0], fontsize=9)
    return figure


def draw_win_probability(results: dict) -> Figure:
    """DiNa's win probability against the true one."""
    found, color = results["win_probability"], VARIANTS["dina"].color
    figure, axes = panels(1, len(found), width=8, height=4)
    for panel, (name, measured) in zip(axes, found.items(), strict=True):
        curve = [part for part in measured if part["by"] is not None]
        true, mean, low, high = ([part[column] for part in curve] for column in ("by", "mean", "low", "high"))
        panel.fill_between(true, low, high, color=color, alpha=0.18, linewidth=0, label="10 to 90 % of pairs")
        line(panel, list(zip(true, mean, strict=True)), color, "mean")
        diagonal(panel)
        panel.set(xlabel="true win probability", ylabel="predicted win probability")
        panel.set_title(EVALUATIONS[name].title, fontsize=11, color=INK)
    axes[0].legend(frameon=False, fontsize=9)
    return figure


def draw_uncertainty(results: dict) -> Figure:
    """The likelihood's variance beside those measured, and errors by disagreement."""
    figure, (left, right) = panels(1, 2, width=9, height=3.8)
    sources = {
        "likelihood": ("likelihood", VARIANTS["dina"].color),
        "votes": ("annotators' votes", VARIANTS["constant_floor"].color),
        "draws": ("over draws of a reward", VARIANTS["frozen"].color),
        "draws_of_differences": ("over draws of a difference, halved", VARIANTS["constant_mean"].color),
    }
    for name, (label, color) in sources.items():
        curve = sorted((level["sigma"], level[name]) for level in results["variances"] if level[name] is not None)
        line(left, curve, color, label, name == "likelihood")
    left.set(xlabel=r"noise level $\sigma$", ylabel="variance of one reward", yscale="log")
    left.legend(frameon=False, fontsize=9)
    fifths = results["disagreement"]["quintiles"]
    places = range(1, QUINTILES + 1)
    avoidable = [fifth["avoidable"] for fifth in fifths]
    unavoidable = [fifth["error"] - fifth["avoidable"] for fifth in fifths]
    right.bar(places, unavoidable, color=FAINT, label="annotators' own noise")
    right.bar(places, avoidable, bottom=unavoidable, color=VARIANTS["dina"].color, label="the reward's")
    right.set(xlabel="disagreement of the ensemble, fifths of the pairs", ylabel="error rate")
    right.legend(frameon=False, fontsize=9, loc="upper left")
    right.set_ylim(top=1.25 * max(fifth["error"] for fifth in fifths))
    return figure


def diagonal(axes: Axes) -> None:
    """Where the prediction is exact."""
    axes.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle=":")
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
