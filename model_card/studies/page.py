"""What the reports of both studies share: Markdown tables, formatted estimates, and the style of figures."""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from modeling_dina.files import atomic_path, write_text
from modeling_dina.plotting import FAINT, INK


def write_page(
    folder: Path, title: str, tables: dict[str, list[dict[str, str]]], figures: dict[str, Figure | None]
) -> None:
    """
    Write `tables.md` and its figures.

    Args:
        folder: folder of results.json, from which everything is made.
        title: title of the page.
        tables: rows of each table, as `markdown` takes them, by heading.
        figures: figures by name; None for one that the study itself has drawn.
    """
    for name, figure in figures.items():
        if figure is not None:
            save(figure, folder / f"{name}.png")
    sections = [f"# {title}", "Made from `results.json`. [What follows from it](conclusions.md) is written by hand."]
    sections += [f"## {heading}\n\n{markdown(rows)}" for heading, rows in tables.items()]
    sections += [f"![{name.replace('_', ' ').capitalize()}]({name}.png)" for name in figures]
    write_text(folder / "tables.md", "\n\n".join(sections) + "\n")


def save(figure: Figure, path: Path) -> None:
    """Write a figure, complete or not at all."""
    with atomic_path(path) as partial:
        figure.savefig(partial, facecolor="white")


def markdown(rows: list[dict[str, str]]) -> str:
    """A table of rows with the same columns, which map headings to cells. The first column is aligned to the left."""
    header = list(rows[0])
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *(row.values() for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


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


def line(
    axes: Axes, points: list[tuple[float, float]], color: str, label: str, is_main: bool = False, **style: Any
) -> None:
    """Draw a curve through points; `style` goes to matplotlib."""
    defaults = {"marker": "o", "markersize": 4, "linewidth": 2.6 if is_main else 1.5, "zorder": 3 if is_main else 2}
    axes.plot(*zip(*points, strict=True), color=color, label=label, **(defaults | style))


def legend_outside(figure: Figure, axes: Axes, fontsize: int) -> None:
    """Draw the legend of one panel to the right of all."""
    figure.legend(*axes.get_legend_handles_labels(), frameon=False, fontsize=fontsize, loc="outside right upper")
