"""The figure of a learning curve."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from modeling_dina.plotting import COLORS, INK, plain_axes
from training.label.power_law import PowerLaw

MEASURES = ("accuracy", "log_likelihood", "calibration_error")


def draw_curve(results: dict[str, Any]) -> Figure:
    """
    Draw each measure against the number of votes: points with intervals, and their law up to twice the votes.

    Args:
        results: content of `learning_curve.json`, see `training.label.learning_curve.summarize`.
    """
    figure = Figure(figsize=(12, 3.9), dpi=150, layout="constrained")
    counts = [point["votes"] for point in results["points"]]
    ticks = [*counts, 2 * results["votes"]]
    for name, axes in zip(MEASURES, figure.subplots(1, len(MEASURES)), strict=True):
        if name in results["forecast"]:
            _draw_measure(axes, results, name)
        else:
            errors = [point[name] for point in results["points"]]
            axes.plot(counts, errors, color=COLORS[0], marker="o")
            axes.set_ylim(0, 1.1 * max(errors))
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [f"{tick:.0f}" for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel("votes", color=INK)
        axes.set_title(name.replace("log_", "log-").replace("_", " "), fontsize=11, color=INK)
        plain_axes(axes, ticks=6)
    return figure


def _draw_measure(axes: Axes, results: dict[str, Any], name: str) -> None:
    points, found, votes = results["points"], results["forecast"][name], results["votes"]
    counts = np.array([point["votes"] for point in points])
    axes.vlines(counts, *zip(*(point[name]["interval"] for point in points), strict=True), color=COLORS[0])
    axes.plot(counts, [point[name]["mean"] for point in points], "o", color=COLORS[0], label="measured")
    along, law = np.geomspace(counts[0], 2 * votes, 100), PowerLaw(*found["law"])
    # The law is that of the loss, which is the distance from a constant.
    curve = found["now"] + law(votes) - law(along)
    axes.plot(along, curve, color=COLORS[0], linewidth=1.5, label="power law")
    axes.vlines(2 * votes, *found["doubled_interval"], color=COLORS[1])
    axes.plot(2 * votes, found["doubled"], "D", color=COLORS[1], label="forecast")
    ceiling = results["ceiling"] if name == "accuracy" else None
    if ceiling is not None:
        label = "annotators, against one another"
        axes.axhline(ceiling["mean"], color=INK, linestyle="--", linewidth=1.2, label=label)
        if ceiling["interval"] is not None:
            axes.axhspan(*ceiling["interval"], color=INK, alpha=0.08, linewidth=0)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
