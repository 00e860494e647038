"""What the studies' figures share."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from modeling_dina.files import atomic_path
from modeling_dina.plotting import FAINT, INK


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


def line(axes: Axes, points: list[tuple[float, float]], color: str, label: str, is_main: bool = False):
    """A curve through points; returns its artist."""
    x, y = zip(*points, strict=True) if points else ((), ())
    (artist,) = axes.plot(
        x,
        y,
        "o-",
        color=color,
        label=label,
        markersize=4,
        linewidth=2.6 if is_main else 1.5,
        zorder=3 if is_main else 2,
    )
    return artist


def save(figure: Figure, path: Path) -> None:
    """Write a figure as `atomic_path` does."""
    with atomic_path(path) as partial:
        figure.savefig(partial, facecolor="white")
