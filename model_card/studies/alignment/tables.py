"""The report of the alignment study: tables and figures, made from its results alone."""

from pathlib import Path
from typing import Any

from model_card.studies.alignment.figures import draw_figures
from model_card.studies.alignment.variants import VARIANTS
from model_card.studies.report import interval, write_page

REWARDS = {"dina": "DiNa", "pixel": "pixel"}


def write_report(results: dict[str, Any], folder: Path) -> None:
    """Write `tables.md` and the figures except "pictures", which the study draws."""
    tables = {
        "Variants": variants_table(results),
        "Best of N, without any update": best_table(results["best_of_n"]),
        "ReFL on noisy states against the pixel reward's utility": targets_table(results["aim"]["targets"]),
        "Cost of an update": costs_table(results["variants"]),
        "Agreement of the reward models with a fresh annotator, %": rewards_table(results["reward_models"]),
        f"Stable Diffusion 3.5 Medium at {results['settings']['resolution']} pixels, one prompt an update": (
            full_size_table(results["full_size"])
        ),
    }
    write_page(folder, "The alignment study", tables, draw_figures(results))


def scores(measured: dict[str, dict]) -> dict[str, str]:
    """Means of both rewards and of diversity."""
    names = REWARDS | {"diversity": "diversity"}
    return {title: f"{measured[name]['mean']:.2f}" for name, title in names.items()}


def rise(measured: dict[str, dict]) -> str:
    """The rise of the true utility with its interval."""
    return interval(measured["utility"]["rise"], "+.2f")


def variants_table(results: dict[str, Any]) -> list[dict[str, str]]:
    """A row for each variant."""

    def row(variant: str, reward: str, selected: str, updates: str, last: str, count: int, measured: dict) -> dict:
        columns = {"variant": variant, "reward": reward, "utility, selected": selected, "selected after": updates}
        return columns | {"utility, last": last, "last after": f"{count}"} | scores(measured)

    before = results["unaligned"]
    rows = [row("unaligned", "", interval(before["utility"], ".2f"), "", "", 0, before)]
    for each in results["variants"]:
        selected, last, title = each["selected"], each["last"], VARIANTS[each["variant"]].title
        updates = ", ".join(map(str, selected["updates"]))
        rows.append(row(title, REWARDS[each["reward"]], rise(selected), updates, rise(last), last["update"], last))
    return rows


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
            "seconds on noisy states": "" if target["seconds"] is None else f"{target['seconds']:.0f}",
            "ratio": "" if target["ratio"] is None else f"{target['ratio']:.2f}",
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
    measured = {
        REWARDS[name]: {kind: each["accuracy"] for kind, each in sets.items()} for name, sets in quality.items()
    }
    measured["best reachable"] = {kind: each["best"] for kind, each in quality["dina"].items()}
    return [
        {"reward": name, **{kind: f"{100 * share:.1f}" for kind, share in shares.items()}}
        for name, shares in measured.items()
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
