"""Figure of a comparison: two images and their rewards at every noise level."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from PIL import Image

from .files import atomic_path
from .scoring_dina import Comparison

# Blue and vermilion of Okabe and Ito, distinguishable with any colour vision and in grey.
COLORS = ("#0072B2", "#D55E00")
INK, FAINT = "#222222", "#d9d9d9"


def plot_comparison(path: Path, prompt: str, images: Sequence[Image.Image], comparison: Comparison) -> None:
    """Plot two images and their rewards against the noise level, as mean and standard deviation over draws, and write
    the figure atomically.

    Args:
        path: output file; its suffix selects the format PNG, PDF, SVG, JPEG or WebP.
        prompt: title of the figure.
        images: the two RGB images.
        comparison: comparison of the two images, computed with `with_levels=True`.
    """
    figure = Figure(figsize=(11, 4.3), dpi=200, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08))
    grid = figure.add_gridspec(1, 3, width_ratios=(1, 1, 1.75))
    title = " ".join(prompt.split())
    title = textwrap.fill(title if len(title) <= 200 else f"{title[:199]}…", 100)
    figure.suptitle(f"“{title}”", fontsize=13, color=INK, parse_math=False)
    for column, (name, color, image) in enumerate(zip("AB", COLORS, images, strict=True)):
        axes = figure.add_subplot(grid[column])
        _draw_image(axes, image, color)
        axes.set_title(name, color=color, fontweight="bold", fontsize=14)
        axes.set_xlabel(_caption(comparison, column), color=INK, fontsize=10, labelpad=8)
    draw_rewards(figure.add_subplot(grid[2]), comparison)
    with atomic_path(path) as partial:
        figure.savefig(partial, facecolor="white")


def _draw_image(axes, image: Image.Image, color: str) -> None:
    # Small images are drawn without interpolation, which would hide their defects.
    axes.imshow(image, interpolation="nearest" if max(image.size) <= 128 else "antialiased")
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color=color, linewidth=2.5)


def _caption(comparison: Comparison, column: int) -> str:
    probability = comparison.win_probability if column == 0 else 1 - comparison.win_probability
    spread = comparison.spread[column]
    deviation = "" if spread.isnan() else f" ± {spread:.3f}"
    return f"reward {comparison.scores[column]:+.3f}{deviation}\npreferred with probability {probability:.2f}"


def draw_rewards(axes, comparison: Comparison) -> None:
    """Plot both images' rewards at each noise level on matplotlib axes; `comparison` is as in `plot_comparison`."""
    if comparison.level_samples is None:
        raise ValueError("comparison: expected level_samples, computed with with_levels=True, got None")
    num_draws = comparison.level_samples.shape[1]
    means = comparison.level_samples.mean(dim=1)
    spreads = comparison.level_samples.std(dim=1) if num_draws > 1 else torch.zeros_like(means)
    # Shifted slightly, so that neither error bar hides the other.
    for column, (name, color, marker, shift) in enumerate(zip("AB", COLORS, "os", (-0.006, 0.006), strict=True)):
        axes.errorbar(
            comparison.sigmas + shift,
            means[:, column],
            yerr=spreads[:, column],
            color=color,
            marker=marker,
            markersize=5,
            linewidth=1.8,
            elinewidth=1.2,
            capsize=3,
            label=name,
        )
    axes.set_xlim(0, min(1, 1.15 * comparison.sigmas.max().item()))
    axes.set_xlabel(r"noise level $\sigma$ (0: clean, 1: pure noise)", fontsize=11, color=INK)
    axes.set_ylabel("reward", fontsize=11, color=INK)
    title = f"mean ± standard deviation of {num_draws} noise draws" if num_draws > 1 else "one noise draw"
    axes.set_title(title, fontsize=10, color=INK)
    plain_axes(axes, ticks=6)
    axes.legend(frameon=False, fontsize=11, loc="best")


def plain_axes(axes, ticks: int) -> None:
    """Horizontal grid lines at about `ticks` values, and no frame at the top and on the right."""
    axes.yaxis.set_major_locator(MaxNLocator(ticks))
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
