"""The report of the study of orders: tables and a figure, made from its results alone."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from model_card.studies.orders.variants import VARIANTS
from model_card.studies.page import interval, legend_outside, line, number, panels, write_page
from modeling_dina.plotting import INK

BOUNDS = {"present": "present reward, without votes", "best": "best reachable"}


def write_report(results: dict[str, Any], folder: Path) -> None:
    """Write `tables.md` and the figure."""
    tables = {
        "Accuracy by number of votes": accuracy_table(results),
        "Calibration error by number of votes": calibration_table(results["orders"]),
        "Against a random order": gains_table(results["orders"]),
        "Votes in random order that reach the same accuracy": equivalents_table(results["orders"]),
    }
    write_page(folder, "The study of orders", tables, {"accuracy_by_votes": draw_accuracy(results)})


def percent(estimate: dict, sign: str = "") -> str:
    """An estimate of shares with its interval, in percent."""
    return interval(estimate, f"{sign}.1f", 100)


def accuracy_table(results: dict[str, Any]) -> list[dict[str, str]]:
    """A row for each order, in percent, and for each bound."""
    rows = [
        {"order": VARIANTS[each["variant"]].title}
        | {f"{point['votes']} votes": percent(point["accuracy"]) for point in each["points"]}
        for each in results["orders"]
    ]
    for name, title in BOUNDS.items():
        bound = percent(results["bounds"][name]["accuracy"])
        rows.append(dict(zip(rows[0], [title, *[bound] * (len(rows[0]) - 1)], strict=True)))
    return rows


def calibration_table(orders: list[dict]) -> list[dict[str, str]]:
    """A row for each order, with the calibration error, and the number of different prompts at the end."""
    return [
        {"order": VARIANTS[each["variant"]].title}
        | {f"{point['votes']} votes": number(point["calibration_error"], ".3f") for point in each["points"]}
        | {"prompts at the end": number(each["points"][-1]["prompts"], ".0f")}
        for each in orders
    ]


def gains_table(orders: list[dict]) -> list[dict[str, str]]:
    """A row for each order but the random one: the mean gain over all numbers of votes but the first."""
    return [
        {
            "order": VARIANTS[each["variant"]].title,
            "points of accuracy": percent(each["against_random"]["accuracy"], "+"),
            "log-likelihood": interval(each["against_random"]["log_likelihood"], "+.4f"),
            "better than random": each["against_random"]["verdict"],
        }
        for each in compared(orders)
    ]


def equivalents_table(orders: list[dict]) -> list[dict[str, str]]:
    """A row for each order but the random one."""
    return [
        {"order": VARIANTS[each["variant"]].title}
        | {f"{found['votes']} votes": interval(found, ".0f") for found in each["against_random"]["equivalents"]}
        for each in compared(orders)
    ]


def compared(orders: list[dict]) -> list[dict]:
    """The orders that are compared with the random one."""
    return [each for each in orders if "against_random" in each]


def draw_accuracy(results: dict[str, Any]) -> Figure:
    """Accuracy against the number of votes, and its difference from that of a random order with intervals."""
    figure, (accuracy, difference) = panels(2, width=8.5, height=7)
    orders = results["orders"]
    for each in orders:
        variant, points = VARIANTS[each["variant"]], each["points"]
        curve: dict[str, Any] = {"color": variant.color, "label": variant.title}
        line(accuracy, [(point["votes"], point["accuracy"]["mean"]) for point in points], **curve)
    for (name, title), style in zip(BOUNDS.items(), (":", "--"), strict=True):
        bound = results["bounds"][name]["accuracy"]["mean"]
        accuracy.axhline(bound, color=INK, linestyle=style, linewidth=1, label=title)
    shifts = np.linspace(-0.09, 0.09, len(compared(orders)))
    for shift, each in zip(shifts, compared(orders), strict=True):
        color, by_size = VARIANTS[each["variant"]].color, each["against_random"]["by_size"]
        votes = [point["votes"] * 2**shift for point in each["points"]]
        line(difference, [(x, 100 * found["mean"]) for x, found in zip(votes, by_size, strict=True)], color=color)
        for x, found in zip(votes, by_size, strict=True):
            difference.vlines(x, *(100 * bound for bound in found["interval"]), color=color, linewidth=1)
    difference.axhline(0, color=INK, linewidth=1)
    ticks = [point["votes"] for point in orders[0]["points"]]
    for axes in (accuracy, difference):
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel("votes")
    accuracy.set_ylabel("accuracy")
    difference.set_ylabel("points of accuracy over random")
    legend_outside(figure, accuracy, fontsize=9)
    return figure
