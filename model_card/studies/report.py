"""What the reports of both studies share: tables in Markdown, estimates in words, and the style of figures."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from modeling_dina.files import atomic_path, write_text
from modeling_dina.plotting import FAINT, INK


def write_tables(folder: Path, title: str, tables: dict[str, str], figures: dict[str, Figure | None]) -> None:
    """
    Write `tables.md` and its figures.

    Args:
        folder: of results.json, from which everything is made.
        title: of the page.
        tables: Markdown by heading.
        figures: by name; None for one that the study itself has drawn.
    """
    for name, figure in figures.items():
        if figure is not None:
            save(figure, folder / f"{name}.png")
    sections = [f"# {title}", "Made from `results.json`. [What follows from it](conclusions.md) is written by hand."]
    sections += [f"## {heading}\n\n{table}" for heading, table in tables.items()]
    write_text(folder / "tables.md", "\n\n".join([*sections, *map(picture, figures)]) + "\n")


def save(figure: Figure, path: Path) -> None:
    """Write a figure, complete or not at all."""
    with atomic_path(path) as partial:
        figure.savefig(partial, facecolor="white")


def picture(name: str) -> str:
    """A figure in Markdown."""
    return f"![{name.replace('_', ' ').capitalize()}]({name}.png)"


def markdown(header: tuple[str, ...], lines: list[tuple[str, ...]]) -> str:
    """A table whose first column is aligned to the left."""
    rule = ("---", *("---:" for _ in header[1:]))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *lines))


def interval(estimate: dict, form: str, scale: float = 1) -> str:
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
    axes: Axes, points: list[tuple[float, float]], color: str, label: str, is_main: bool = False, **style
) -> None:
    """A curve through points; `style` goes to matplotlib."""
    x, y = zip(*points, strict=True) if points else ((), ())
    style = {"markersize": 4, "linewidth": 2.6 if is_main else 1.5, "zorder": 3 if is_main else 2, **style}
    axes.plot(x, y, "o", color=color, label=label, **{"linestyle": "-", **style})


def legend_outside(figure: Figure, axes: Axes, fontsize: int) -> None:
    """The legend of one panel to the right of all."""
    figure.legend(*axes.get_legend_handles_labels(), frameon=False, fontsize=fontsize, loc="outside right upper")
