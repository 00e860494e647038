"""What the reports of both studies share: Markdown tables, formatted estimates, and the style of figures."""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from modeling_dina.files import atomic_path, write_text
from modeling_dina.plotting import FAINT, INK


def write_page(folder: Path, title: str, tables: dict[str, list[dict[str, str]]], figures: dict[str, Figure]) -> None:
    """Write `tables.md` and its figures into the folder of results.json; `markdown` formats the rows of `tables`."""
    for name, figure in figures.items():
        with atomic_path(folder / f"{name}.png") as partial:
            figure.savefig(partial, facecolor="white")
    sections = [f"# {title}", "Made from `results.json`. [What follows from it](conclusions.md) is written by hand."]
    sections += [f"## {heading}\n\n{markdown(rows)}" for heading, rows in tables.items()]
    sections += [f"![{name.replace('_', ' ').capitalize()}]({name}.png)" for name in figures]
    write_text(folder / "tables.md", "\n\n".join(sections) + "\n")


def markdown(rows: list[dict[str, str]]) -> str:
    """A table of rows with the same columns, which map headings to cells. The first column is aligned to the left."""
    header = list(rows[0])
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *(row.values() for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: float | None, form: str, scale: float = 1) -> str:
    """`value` times `scale` in the format `form`; empty for None."""
    return "" if value is None else format(scale * value, form)


def interval(estimate: dict[str, Any], form: str, scale: float = 1) -> str:
    """`estimate` times `scale` as "mean [low, high]", each number in the format `form`."""
    mean, low, high = (format(scale * number, form) for number in (estimate["mean"], *estimate["interval"]))
    return f"{mean} [{low}, {high}]"


def panels(rows: int, columns: int = 1, *, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of empty panels, row by row; sizes in inches."""
    figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for panel in axes:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(color=FAINT, linewidth=0.8)
        panel.set_axisbelow(True)
        panel.tick_params(labelsize=9, colors=INK)
    return figure, axes


def line(axes: Axes, points: list[tuple[float, float]], is_main: bool = False, **style: Any) -> None:
    """Draw a curve through points; `style` goes to matplotlib."""
    weight: dict[str, Any] = {"linewidth": 2.6, "zorder": 3} if is_main else {"linewidth": 1.5, "zorder": 2}
    axes.plot(*zip(*points, strict=True), **{"marker": "o", "markersize": 4, **weight, **style})


def legend_outside(figure: Figure, axes: Axes, fontsize: int) -> None:
    """Draw the legend of one panel to the right of all."""
    figure.legend(*axes.get_legend_handles_labels(), frameon=False, fontsize=fontsize, loc="outside right upper")
