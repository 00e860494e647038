"""The report of the alignment study: tables and figures, made from its results alone."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from model_card.studies.alignment.variants import LATENT, VARIANTS
from model_card.studies.page import interval, legend_outside, line, number, panels, write_page
from modeling_dina.plotting import INK

REWARDS = {"dina": "DiNa", "pixel": "pixel"}
PARTS = ("#0072B2", "#56B4E9", "#8C8C8C", "#D55E00", "#E69F00")
LABELS = {"dina": "DiNa's ensemble", "pixel": "the pixel reward", "diversity": "diversity of samples of a prompt"}


def write_report(results: dict[str, Any], folder: Path) -> None:
    """Write `tables.md` and the figures."""
    tables = {
        "Variants": variants_table(results),
        "Best of N, without any update": best_table(results["best_of_n"]),
        "ReFL on noisy states against the pixel reward's utility": targets_table(results["aim"]["targets"]),
        "Cost of an update": costs_table(results["variants"]),
        "Agreement of the reward models with a fresh annotator, %": rewards_table(results["reward_models"]),
    }
    resolution = results["settings"]["resolution"]
    full_size = f"Stable Diffusion 3.5 Medium at {resolution} pixels, one prompt an update"
    tables[full_size] = full_size_table(results["full_size"])
    figures = {
        "utility": draw_utility(results),
        "rewards": draw_rewards(results["variants"]),
        "full_size": draw_full_size(results["full_size"]),
    }
    write_page(folder, "The alignment study", tables, figures)


def scores(measured: dict[str, dict]) -> dict[str, str]:
    """Means of both rewards and of diversity."""
    titles = REWARDS | {"diversity": "diversity"}
    return {title: f"{measured[name]['mean']:.2f}" for name, title in titles.items()}


def rise(measured: dict[str, dict]) -> str:
    """The rise of the true utility with its interval."""
    return interval(measured["utility"]["rise"], "+.2f")


def variants_table(results: dict[str, Any]) -> list[dict[str, str]]:
    """A row for the initial generator, and for each variant."""
    before = results["unaligned"]
    found = [("unaligned", "", interval(before["utility"], ".2f"), "", "", "0", before)]
    for each in results["variants"]:
        selected, last, variant = each["selected"], each["last"], VARIANTS[each["variant"]].title
        updates = ", ".join(map(str, selected["updates"])), str(last["update"])
        found.append((variant, REWARDS[each["reward"]], rise(selected), updates[0], rise(last), updates[1], last))
    names = ("variant", "reward", "utility, selected", "selected after", "utility, last", "last after")
    return [dict(zip(names, cells, strict=True)) | scores(measured) for *cells, measured in found]


def best_table(best_of_n: list[dict]) -> list[dict[str, str]]:
    """A row for each reward and N."""
    return [
        {"best of": f"{each['candidates']}", "by": REWARDS[each["reward"]], "utility": rise(each), **scores(each)}
        for each in best_of_n
    ]


def targets_table(targets: dict[str, dict]) -> list[dict[str, str]]:
    """A row for each utility that the pixel reward led to; empty where it was never reached."""
    return [
        {
            "utility of ReFL, pixel reward": name,
            "": f"{target['utility']:.3f}",
            "its seconds": f"{target['pixel_seconds']:.0f}",
            "seconds on noisy states": number(target["seconds"], ".0f"),
            "ratio": number(target["ratio"], ".2f"),
        }
        for name, target in targets.items()
    ]


def costs_table(variants: list[dict]) -> list[dict[str, str]]:
    """A row for each variant."""
    return [
        {
            "variant": VARIANTS[each["variant"]].title,
            "seconds": f"{each['cost']['seconds']:.2f}",
            "MB beyond the weights": f"{each['cost']['peak_bytes'] / 1e6:,.0f}",
            "GFLOPs": f"{each['cost']['flops'] / 1e9:,.0f}",
        }
        for each in variants
    ]


def rewards_table(quality: dict[str, dict[str, dict]]) -> list[dict[str, str]]:
    """A row for each reward and one for the best reachable, a column for each kind of pictures."""
    rows = [(REWARDS[name], sets, "accuracy") for name, sets in quality.items()]
    rows.append(("best reachable", quality["dina"], "best"))
    return [
        {"reward": title, **{kind: f"{100 * each[measure]:.1f}" for kind, each in sets.items()}}
        for title, sets, measure in rows
    ]


def full_size_table(found: dict[str, dict[str, dict]]) -> list[dict[str, str]]:
    """A row for each reward with FLOPs and bytes by part."""
    return [
        {
            "": name,
            **{f"TFLOPs, {part}": f"{value / 1e12:,.1f}" for part, value in parts["flops"].items()},
            **{f"GB, {part}": f"{value / 1e9:,.2f}" for part, value in parts["bytes"].items()},
        }
        for name, parts in found.items()
    ]


def draw_utility(results: dict[str, Any]) -> Figure:
    """Rise of the true utility against updates and against the seconds that they take."""
    figure, axes = panels(1, 2, width=11, height=4.6)
    most = max(each["candidates"] for each in results["best_of_n"])
    for panel, (of, label) in zip(axes, {"update": "updates", "seconds": "seconds of updates"}.items(), strict=True):
        draw_curves(panel, results["variants"], "utility", of)
        panel.axhline(0, color=INK, linewidth=1)
        for each in results["best_of_n"]:
            if each["candidates"] == most:
                words, style = {"dina": ("DiNa", ":"), "pixel": ("the pixel reward", "--")}[each["reward"]]
                best = f"best of {most} by {words}"
                panel.axhline(each["utility"]["rise"]["mean"], color=INK, linewidth=1, linestyle=style, label=best)
        panel.set(xlabel=label, ylabel="rise of the true utility")
    legend_outside(figure, axes[0], fontsize=8)
    return figure


def draw_rewards(variants: list[dict]) -> Figure:
    """Both reward models and diversity against updates: a run that optimises one reward is watched by the other."""
    figure, axes = panels(1, 3, width=13, height=4.2)
    for panel, (name, label) in zip(axes, LABELS.items(), strict=True):
        draw_curves(panel, variants, name, "update")
        panel.set(xlabel="updates", ylabel=f"rise of {label}")
    legend_outside(figure, axes[0], fontsize=8)
    return figure


def draw_curves(panel: Axes, variants: list[dict], name: str, of: str) -> None:
    """The rise of a measure of all variants with its interval."""
    for each in variants:
        variant, curve = VARIANTS[each["variant"]], each["curve"]
        low, high = zip(*(point[name]["rise"]["interval"] for point in curve), strict=True)
        panel.fill_between([point[of] for point in curve], low, high, color=variant.color, alpha=0.12, linewidth=0)
        points = [(point[of], point[name]["rise"]["mean"]) for point in curve]
        line(panel, points, each["variant"] == LATENT, color=variant.color, label=variant.title, markersize=3)


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
