"""The study's figures."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from model_card.drawing import line, panels, save
from model_card.study.measurement import QUINTILES
from model_card.study.rows import ROWS
from modeling_dina.plotting import FAINT, INK

# Okabe and Ito's, told apart with any colour vision.
COLORS = {
    "dina": "#0072B2",
    "clean": "#56B4E9",
    "constant_floor": "#D55E00",
    "constant_mean": "#E69F00",
    "bradley_terry": "#CC79A7",
    "frozen": "#009E73",
    "random_start": "#8C8C8C",
    "dot_product": "#6A3D9A",
    "pixel": "#000000",
}
MODES = {"one level": "#56B4E9", "features": "#0072B2", "mean": "#D55E00", "precision": "#009E73"}


def draw_figures(results: dict, folder: Path) -> list[str]:
    """All figures of `results` into `folder`; their names."""
    drawings = {
        "accuracy_by_level": draw_levels,
        "scaling": draw_scaling,
        "reliability": draw_reliability,
        "win_probability": draw_win_probability,
        "uncertainty": draw_uncertainty,
    }
    for name, draw in drawings.items():
        save(draw(results), folder / f"{name}.png")
    return [f"{name}.png" for name in drawings]


def draw_levels(results: dict) -> Figure:
    """Accuracy at every noise level, of all rows."""
    figure, axes = panels(1, width=7.5, height=4.6)
    for row, curve in results["levels"].items():
        label = ROWS[row].title + (", through the decoder" if row == "pixel" else "")
        line(axes[0], [(point["sigma"], point["accuracy"]) for point in curve], COLORS[row], label, row == "dina")
    axes[0].axhline(results["best"]["seen"]["accuracy"]["mean"], color=INK, linestyle="--", label="best reachable")
    axes[0].set(xlabel=r"noise level $\sigma$ (0: clean, 1: noise alone)", ylabel="accuracy", xlim=(-0.02, 1.02))
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, fontsize=9, loc="outside right upper")
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
    """What annotators say against what is predicted, of DiNa and of the rows that differ in their likelihood."""
    shown = {
        ("dina", "one level"): "-",
        ("dina", "features"): "--",
        ("constant_floor", "one level"): "-",
        ("constant_mean", "one level"): "-",
        ("bradley_terry", "one level"): "-",
        ("pixel", "decoded"): "-",
    }
    figure, axes = panels(1, width=7.5, height=4.6)
    for each in results["rows"]:
        row, reading = each["row"], each["reading"]
        if (row, reading) in shown:
            curve = [(b["by"], b["mean"]) for b in each["seen"]["reliability"] if b["by"] is not None]
            artist = line(axes[0], curve, COLORS[row], f"{ROWS[row].title}, {reading}")
            artist.set_linestyle(shown[row, reading])
    diagonal(axes[0])
    axes[0].set(xlabel="predicted win probability", ylabel="share of annotators")
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, fontsize=9, loc="outside right upper")
    return figure


def draw_win_probability(results: dict) -> Figure:
    """DiNa's win probability against the true one."""
    found = results["win_probability"]
    figure, axes = panels(1, len(found), width=8, height=4)
    for panel, (reading, measured) in zip(axes, found.items(), strict=True):
        curve = [b for b in measured if b["by"] is not None]
        true = [b["by"] for b in curve]
        panel.fill_between(
            true,
            [b["low"] for b in curve],
            [b["high"] for b in curve],
            color=COLORS["dina"],
            alpha=0.18,
            linewidth=0,
            label="10 to 90 % of pairs",
        )
        line(panel, [(b["by"], b["mean"]) for b in curve], COLORS["dina"], "mean")
        diagonal(panel)
        panel.set(xlabel="true win probability", ylabel="predicted win probability")
        panel.set_title(reading, fontsize=11, color=INK)
    axes[0].legend(frameon=False, fontsize=9)
    return figure


def draw_uncertainty(results: dict) -> Figure:
    """The likelihood's variance beside those measured, and errors by disagreement."""
    figure, (left, right) = panels(1, 2, width=9, height=3.8)
    sources = {
        "likelihood": ("likelihood", COLORS["dina"]),
        "votes": ("what votes ask for", COLORS["constant_floor"]),
        "draws": ("over draws of a reward", COLORS["frozen"]),
        "draws_of_differences": ("over draws of a difference, halved", COLORS["constant_mean"]),
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
    right.bar(places, avoidable, bottom=unavoidable, color=COLORS["dina"], label="the reward's")
    right.set(xlabel="disagreement of the ensemble, fifths of the pairs", ylabel="error rate")
    right.legend(frameon=False, fontsize=9, loc="upper left")
    right.set_ylim(top=1.25 * max(fifth["error"] for fifth in fifths))
    return figure


def diagonal(axes: Axes) -> None:
    """Where what is said is what is."""
    axes.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle=":")
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
