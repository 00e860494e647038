"""The alignment study's figures."""

import textwrap
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from model_card.alignment.rows import GATE, ROWS
from model_card.drawing import line, panels, save
from modeling_dina.plotting import FAINT, INK

# Okabe and Ito's, told apart with any colour vision; what judges pixels is black and grey.
COLORS = {
    "prfl": "#0072B2",
    "prfl_gate": "#56B4E9",
    "refl": "#D55E00",
    "draft": "#E69F00",
    "nft": "#009E73",
    "grpo_cps": "#CC79A7",
    "grpo_sde": "#6A3D9A",
    "dpo": "#A6761D",
    "refl_pixel": "#000000",
    "grpo_pixel": "#8C8C8C",
}
PARTS = ("#0072B2", "#56B4E9", "#8C8C8C", "#D55E00", "#E69F00")
CANDIDATES = 16  # of the best of N that is drawn


def draw_figures(results: dict, pictures: dict[str, np.ndarray], prompts: list[str], folder: Path) -> list[str]:
    """
    All figures into `folder`; their names.

    Args:
        results: of the study.
        pictures: of the same prompts, [P, H, W, 3] in [0, 1], by what made them.
        prompts: P of them.
    """
    drawings = {
        "utility": draw_utility(results),
        "rewards": draw_rewards(results),
        "gate": draw_gate(results),
        "pictures": draw_pictures(pictures, prompts),
        "full_size": draw_full_size(results["full_size"]),
    }
    for name, figure in drawings.items():
        save(figure, folder / f"{name}.png")
    return [f"{name}.png" for name in drawings]


def draw_utility(results: dict) -> Figure:
    """Rise of the true utility against updates and against the seconds that they take."""
    figure, axes = panels(1, 2, width=11, height=4.6)
    for panel, of, words in zip(axes, ("update", "seconds"), ("updates", "seconds of updates"), strict=True):
        for row in results["rows"]:
            curve(panel, row, "utility", of)
        marks(panel, results)
        panel.set(xlabel=words, ylabel="rise of the true utility")
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, fontsize=8, loc="outside right upper")
    return figure


def draw_rewards(results: dict) -> Figure:
    """Both reward models and diversity against updates: whoever optimises one is watched by the other."""
    figure, axes = panels(1, 3, width=13, height=4.2)
    labels = {"dina": "DiNa's ensemble", "pixel": "the pixel reward", "diversity": "diversity of samples of a prompt"}
    for panel, (name, label) in zip(axes, labels.items(), strict=True):
        for row in results["rows"]:
            curve(panel, row, name, "update")
        panel.set(xlabel="updates", ylabel=f"rise of {label}")
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, fontsize=8, loc="outside right upper")
    return figure


def draw_gate(results: dict) -> Figure:
    """The same run with the gate and without: what is optimised, and the truth."""
    figure, axes = panels(1, 2, width=8.5, height=3.8)
    rows = {row["row"]: row for row in results["rows"]}
    labels = {"dina": "DiNa's ensemble", "utility": "the true utility"}
    for panel, (name, label) in zip(axes, labels.items(), strict=True):
        for state, row in GATE.items():
            curve(panel, rows[row], name, "update", label=f"gate {state}")
        panel.set(xlabel="updates", ylabel=f"rise of {label}")
    axes[0].legend(frameon=False, fontsize=9)
    return figure


def curve(panel: Axes, row: dict, name: str, of: str, label: str | None = None) -> None:
    """The rise of a measure of a row with its interval."""
    color, x = COLORS[row["row"]], [point[of] for point in row["curve"]]
    rises = [point[name]["rise"] for point in row["curve"]]
    panel.fill_between(
        x, *zip(*(rise["interval"] for rise in rises), strict=True), color=color, alpha=0.12, linewidth=0
    )
    points = [(place, rise["mean"]) for place, rise in zip(x, rises, strict=True)]
    line(panel, points, color, label or ROWS[row["row"]].title, row["row"] == "prfl").set_markersize(3)


def marks(panel: Axes, results: dict) -> None:
    """What is reached without any update."""
    panel.axhline(0, color=INK, linewidth=1)
    for style, reward, words in ((":", "dina", "DiNa"), ("--", "pixel", "the pixel reward")):
        best = next(
            each for each in results["best_of_n"] if (each["reward"], each["candidates"]) == (reward, CANDIDATES)
        )
        rise, label = best["utility"]["rise"]["mean"], f"best of {CANDIDATES} by {words}"
        panel.axhline(rise, color=INK, linewidth=1, linestyle=style, label=label)


def draw_pictures(pictures: dict[str, np.ndarray], prompts: list[str]) -> Figure:
    """Pictures of the same prompts, a line for each that made them."""
    figure = Figure(figsize=(1.15 * len(prompts) + 2, 1.15 * len(pictures) + 0.6), dpi=130, layout="constrained")
    axes = figure.subplots(len(pictures), len(prompts), squeeze=False)
    for line_of, (name, images) in zip(axes, pictures.items(), strict=True):
        for panel, image in zip(line_of, images, strict=True):
            panel.imshow(image, interpolation="nearest")
            panel.set(xticks=[], yticks=[])
            panel.spines[:].set_color(FAINT)
        line_of[0].set_ylabel(name, rotation=0, horizontalalignment="right", verticalalignment="center", fontsize=8)
    for panel, prompt in zip(axes[0], prompts, strict=True):
        panel.set_title(textwrap.fill(prompt, 16), fontsize=7, color=INK)
    return figure


def draw_full_size(found: dict[str, dict[str, dict[str, float]]]) -> Figure:
    """FLOPs and memory of an update of Stable Diffusion 3.5 Medium at 1024 pixels, as stacked bars."""
    figure, axes = panels(2, width=9, height=4.6)
    units = {"flops": (1e12, "TFLOPs an update, one prompt"), "bytes": (1e9, "GB")}
    for panel, (of, (unit, label)) in zip(axes, units.items(), strict=True):
        names = list(found)[::-1]
        start = np.zeros(len(names))
        for part, color in zip(found[names[0]][of], PARTS, strict=False):
            length = np.array([found[name][of][part] for name in names]) / unit
            panel.barh(names, length, left=start, color=color, label=part, height=0.6)
            start += length
        for place, total in enumerate(start):
            panel.text(total, place, f" {total:,.0f}", va="center", fontsize=9, color=INK)
        panel.set(xlabel=label, xlim=(0, 1.12 * start.max()))
        panel.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return figure
