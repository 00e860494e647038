"""The figures of the alignment study."""

import textwrap
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from model_card.studies.alignment.variants import LATENT, VARIANTS
from model_card.studies.report import legend_outside, line, panels
from modeling_dina.plotting import FAINT, INK

PARTS = ("#0072B2", "#56B4E9", "#8C8C8C", "#D55E00", "#E69F00")
REWARDS = {"dina": "DiNa's ensemble", "pixel": "the pixel reward", "diversity": "diversity of samples of a prompt"}


def draw_figures(results: dict[str, Any]) -> dict[str, Figure | None]:
    """All figures of `results`, by name."""
    return {
        "utility": draw_utility(results),
        "rewards": draw_rewards(results["variants"]),
        "pictures": None,  # of latents, which the results do not contain
        "full_size": draw_full_size(results["full_size"]),
    }


def draw_utility(results: dict[str, Any]) -> Figure:
    """Rise of the true utility against updates and against the seconds that they take."""
    figure, axes = panels(1, 2, width=11, height=4.6)
    best = max(results["best_of_n"], key=lambda each: each["candidates"])["candidates"]
    for panel, of, words in zip(axes, ("update", "seconds"), ("updates", "seconds of updates"), strict=True):
        draw_curves(panel, results["variants"], "utility", of)
        panel.axhline(0, color=INK, linewidth=1)
        for each in results["best_of_n"]:
            if each["candidates"] == best:
                rise, style = each["utility"]["rise"]["mean"], {"dina": ":", "pixel": "--"}[each["reward"]]
                label = f"best of {best} by {'DiNa' if each['reward'] == 'dina' else 'the pixel reward'}"
                panel.axhline(rise, color=INK, linewidth=1, linestyle=style, label=label)
        panel.set(xlabel=words, ylabel="rise of the true utility")
    legend_outside(figure, axes[0], fontsize=8)
    return figure


def draw_rewards(variants: list[dict]) -> Figure:
    """Both reward models and diversity against updates: a run that optimises one reward is watched by the other."""
    figure, axes = panels(1, 3, width=13, height=4.2)
    for panel, (name, label) in zip(axes, REWARDS.items(), strict=True):
        draw_curves(panel, variants, name, "update")
        panel.set(xlabel="updates", ylabel=f"rise of {label}")
    legend_outside(figure, axes[0], fontsize=8)
    return figure


def draw_curves(panel: Axes, variants: list[dict], name: str, of: str) -> None:
    """The rise of a measure of all variants with its interval."""
    for each in variants:
        variant, x = VARIANTS[each["variant"]], [point[of] for point in each["curve"]]
        rises = [point[name]["rise"] for point in each["curve"]]
        panel.fill_between(
            x, *np.transpose([rise["interval"] for rise in rises]), color=variant.color, alpha=0.12, lw=0
        )
        points = list(zip(x, [rise["mean"] for rise in rises], strict=True))
        line(panel, points, variant.color, variant.title, each["variant"] == LATENT, markersize=3)


def draw_pictures(pictures: dict[str, np.ndarray], prompts: list[str]) -> Figure:
    """Pictures of the same prompts, a row for each generator."""
    figure = Figure(figsize=(1.15 * len(prompts) + 2, 1.15 * len(pictures) + 0.6), dpi=130, layout="constrained")
    axes = figure.subplots(len(pictures), len(prompts), squeeze=False)
    for row, (name, images) in zip(axes, pictures.items(), strict=True):
        for panel, image in zip(row, images, strict=True):
            panel.imshow(image, interpolation="nearest")
            panel.set(xticks=[], yticks=[])
            panel.spines[:].set_color(FAINT)
        row[0].set_ylabel(name, rotation=0, horizontalalignment="right", verticalalignment="center", fontsize=8)
    for panel, prompt in zip(axes[0], prompts, strict=True):
        panel.set_title(textwrap.fill(prompt, 16), fontsize=7, color=INK)
    return figure


def draw_full_size(found: dict[str, dict[str, dict[str, float]]]) -> Figure:
    """FLOPs and memory of an update of Stable Diffusion 3.5 Medium at 1024 pixels, as stacked bars."""
    figure, axes = panels(2, width=9, height=4.6)
    units = {"flops": (1e12, "TFLOPs an update, one prompt"), "bytes": (1e9, "GB")}
    names = list(found)[::-1]
    for panel, (of, (unit, label)) in zip(axes, units.items(), strict=True):
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
