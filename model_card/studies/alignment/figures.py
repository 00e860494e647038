"""The alignment study's figures."""

import textwrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from model_card.studies.alignment.variants import GATE, LATENT, VARIANTS
from model_card.studies.report import legend_outside, line, panels
from modeling_dina.plotting import FAINT, INK

PARTS = ("#0072B2", "#56B4E9", "#8C8C8C", "#D55E00", "#E69F00")
CANDIDATES = 16  # of the best of N that is drawn


def draw_figures(results: dict) -> dict[str, Figure | None]:
    """All figures of `results`, by name."""
    return {
        "utility": draw_utility(results),
        "rewards": draw_rewards(results),
        "gate": draw_gate(results),
        "pictures": None,  # of latents, which the results do not contain
        "full_size": draw_full_size(results["full_size"]),
    }


def draw_utility(results: dict) -> Figure:
    """Rise of the true utility against updates and against the seconds that they take."""
    figure, axes = panels(1, 2, width=11, height=4.6)
    for panel, of, words in zip(axes, ("update", "seconds"), ("updates", "seconds of updates"), strict=True):
        for variant in results["variants"]:
            curve(panel, variant, "utility", of)
        marks(panel, results)
        panel.set(xlabel=words, ylabel="rise of the true utility")
    legend_outside(figure, axes[0], fontsize=8)
    return figure


def draw_rewards(results: dict) -> Figure:
    """Both reward models and diversity against updates: whoever optimises one is watched by the other."""
    figure, axes = panels(1, 3, width=13, height=4.2)
    labels = {"dina": "DiNa's ensemble", "pixel": "the pixel reward", "diversity": "diversity of samples of a prompt"}
    for panel, (name, label) in zip(axes, labels.items(), strict=True):
        for variant in results["variants"]:
            curve(panel, variant, name, "update")
        panel.set(xlabel="updates", ylabel=f"rise of {label}")
    legend_outside(figure, axes[0], fontsize=8)
    return figure


def draw_gate(results: dict) -> Figure:
    """The same run with the gate and without: what is optimised, and the truth."""
    figure, axes = panels(1, 2, width=8.5, height=3.8)
    variants = {each["variant"]: each for each in results["variants"]}
    labels = {"dina": "DiNa's ensemble", "utility": "the true utility"}
    for panel, (name, label) in zip(axes, labels.items(), strict=True):
        for state, variant in GATE.items():
            curve(panel, variants[variant], name, "update", label=f"gate {state}")
        panel.set(xlabel="updates", ylabel=f"rise of {label}")
    axes[0].legend(frameon=False, fontsize=9)
    return figure


def curve(panel: Axes, measured: dict, name: str, of: str, label: str | None = None) -> None:
    """The rise of a measure of a variant with its interval."""
    variant, x = VARIANTS[measured["variant"]], [point[of] for point in measured["curve"]]
    rises = [point[name]["rise"] for point in measured["curve"]]
    low, high = zip(*(rise["interval"] for rise in rises), strict=True)
    panel.fill_between(x, low, high, color=variant.color, alpha=0.12, linewidth=0)
    points = [(place, rise["mean"]) for place, rise in zip(x, rises, strict=True)]
    line(panel, points, variant.color, label or variant.title, measured["variant"] == LATENT, markersize=3)


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
