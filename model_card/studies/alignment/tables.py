"""The alignment study's report: tables and figures, made of its results alone."""

from pathlib import Path

from model_card.studies.alignment.figures import draw_figures
from model_card.studies.alignment.variants import VARIANTS
from model_card.studies.report import interval, markdown, write_tables

REWARDS = {"dina": "DiNa", "pixel": "pixel"}
SCORES = ("dina", "pixel", "diversity")


def write_report(results: dict, folder: Path) -> None:
    """Write `tables.md` and the figures, but for "pictures"."""
    tables = {
        "Variants": variants_table(results),
        "Best of N, without any update": best_table(results),
        "ReFL on noisy states against the pixel reward's utility": targets_table(results["aim"]["targets"]),
        "Cost of an update": costs_table(results),
        "Agreement of the reward models with a fresh annotator, %": rewards_table(results["reward_models"]),
        f"Stable Diffusion 3.5 Medium at {results['settings']['resolution']} pixels, one prompt an update": (
            full_size_table(results["full_size"])
        ),
    }
    write_tables(folder, "The alignment study", tables, draw_figures(results))


def scores_of(measured: dict) -> list[str]:
    """Means of both rewards and of diversity."""
    return [f"{measured[name]['mean']:.2f}" for name in SCORES]


def rise(measured: dict) -> str:
    """The rise of the true utility with its interval."""
    return interval(measured["utility"]["rise"], "+.2f")


def variants_table(results: dict) -> str:
    """A line for each variant."""
    header = ("variant", "reward", "utility, kept", "after", "utility, last", "after", "DiNa", "pixel", "diversity")
    before = results["unaligned"]
    lines = [("unaligned", "", interval(before["utility"], ".2f"), "", "", "0", *scores_of(before))]
    for variant in results["variants"]:
        kept, last = variant["kept"], variant["last"]
        lines.append(
            (
                VARIANTS[variant["variant"]].title,
                REWARDS[variant["reward"]],
                rise(kept),
                ", ".join(map(str, kept["updates"])),
                rise(last),
                f"{last['update']}",
                *scores_of(last),
            )
        )
    return markdown(header, lines)


def best_table(results: dict) -> str:
    """A line for each reward and N."""
    header = ("best of", "by", "utility", "DiNa", "pixel", "diversity")
    lines = [
        (f"{each['candidates']}", REWARDS[each["reward"]], rise(each), *scores_of(each))
        for each in results["best_of_n"]
    ]
    return markdown(header, lines)


def targets_table(targets: dict[str, dict]) -> str:
    """A line for each utility that the pixel reward led to; empty where it was never reached."""
    header = ("utility of ReFL, pixel reward", "", "its seconds", "seconds on noisy states", "ratio")
    lines = [
        (
            name,
            f"{target['utility']:.3f}",
            f"{target['pixel_seconds']:.0f}",
            "" if target["seconds"] is None else f"{target['seconds']:.0f}",
            "" if target["ratio"] is None else f"{target['ratio']:.2f}",
        )
        for name, target in targets.items()
    ]
    return markdown(header, lines)


def costs_table(results: dict) -> str:
    """A line for each variant."""
    units = {"seconds": (1, ".2f"), "peak_bytes": (1e6, ",.0f"), "flops": (1e9, ",.0f")}
    lines = [
        (
            VARIANTS[each["variant"]].title,
            *(format(each["cost"][name] / unit, form) for name, (unit, form) in units.items()),
        )
        for each in results["variants"]
    ]
    return markdown(("variant", "seconds", "MB beyond the weights", "GFLOPs"), lines)


def rewards_table(quality: dict[str, dict[str, dict]]) -> str:
    """A line for each reward and one for the best reachable, a column for each kind of pictures."""
    lines = [
        (REWARDS[name], *(f"{100 * each['accuracy']:.1f}" for each in by_kind.values()))
        for name, by_kind in quality.items()
    ]
    best = next(iter(quality.values()))
    lines.append(("best reachable", *(f"{100 * each['best']:.1f}" for each in best.values())))
    return markdown(("reward", *best), lines)


def full_size_table(found: dict) -> str:
    """A line for each reward with FLOPs and bytes by part."""
    first = next(iter(found.values()))
    header = ("", *(f"TFLOPs, {part}" for part in first["flops"]), *(f"GB, {part}" for part in first["bytes"]))
    lines = [
        (
            name,
            *(f"{value / 1e12:,.1f}" for value in parts["flops"].values()),
            *(f"{value / 1e9:,.2f}" for value in parts["bytes"].values()),
        )
        for name, parts in found.items()
    ]
    return markdown(header, lines)
