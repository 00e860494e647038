"""Figures as SVG in the font and colours of the page, light or dark."""

import io
import itertools
import math
from collections.abc import Sequence
from html import escape

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from judge import SamplingState
from modeling_dina.plotting import COLORS, FAINT, INK, draw_rewards, plain_axes
from modeling_dina.scoring_dina import Comparison
from views import percent

# Text stays text: it takes the page's font, can be selected, and is small.
matplotlib.rcParams["svg.fonttype"] = "none"

# Colours of `modeling_dina.plotting` and matplotlib, and the style sheet's colours that replace them.
PAGE_COLORS = {
    COLORS[0]: "var(--dina-a)",
    COLORS[1]: "var(--dina-b)",
    INK: "currentColor",
    "#000000": "currentColor",
    FAINT: "var(--dina-faint)",
}
SIZE = (5.0, 3.2)
# Least distance between the labels of curves, as a fraction of the axis.
LABEL_GAP = 0.055


def reward_figure(comparison: Comparison) -> str:
    """Rewards of both images at each noise level, with error bars; `comparison` comes from `Judge.compare`."""
    figure = Figure(figsize=SIZE, layout="constrained")
    draw_rewards(figure.add_subplot(), comparison)
    assert comparison.level_samples is not None
    means = comparison.level_samples.mean(dim=1)
    gaps = "; ".join(
        f"at {sigma:.1f} A {a:+.2f}, B {b:+.2f}"
        for sigma, (a, b) in zip(comparison.sigmas, means.tolist(), strict=True)
    )
    return to_svg(figure, f"Rewards of both images at each noise level: {gaps}")


def settling_figure(comparisons: Sequence[Comparison], most_draws: int) -> str:
    """Scores and win probability against the number of draws, with one comparison for each number so far."""
    figure = Figure(figsize=(5.0, 4.8), layout="constrained")
    scores, probability = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    draws = [comparison.samples.shape[1] for comparison in comparisons]
    for column, (name, color, marker, shift) in enumerate(zip("AB", COLORS, "os", (0.98, 1.02), strict=True)):
        errors = [_standard_error(comparison, column) for comparison in comparisons]
        scores.errorbar(
            [shift * count for count in draws],
            [comparison.scores[column].item() for comparison in comparisons],
            yerr=errors,
            color=color,
            marker=marker,
            linewidth=1.8,
            capsize=3,
            label=name,
        )
    probability.plot(draws, [comparison.win_probability for comparison in comparisons], "o-", color=COLORS[0])
    probability.axhline(0.5, color=INK, linewidth=0.8, linestyle=":")
    probability.set(xscale="log", xlim=(0.85, 1.2 * most_draws), ylim=(0, 1), xlabel="noise draws at each level")
    probability.set_xticks([2**power for power in range(most_draws.bit_length())], minor=False)
    probability.minorticks_off()
    probability.xaxis.set_major_formatter(ScalarFormatter())
    probability.set_ylabel("A preferred with\nprobability")
    scores.set_ylabel("score ± standard error")
    scores.legend(frameon=False, loc="best")
    for axes in (scores, probability):
        plain_axes(axes, ticks=5)
    last = comparisons[-1]
    return to_svg(
        figure,
        f"Scores and win probability after {', '.join(map(str, draws))} draws; the last: "
        f"A {last.scores[0]:+.3f}, B {last.scores[1]:+.3f}, A preferred with probability {last.win_probability:.3f}",
    )


def _standard_error(comparison: Comparison, column: int) -> float:
    """Standard error over draws of one image's mean over levels; 0, which draws no error bar, for a single draw."""
    draws = comparison.samples[..., column].mean(dim=0)
    return (draws.std() / math.sqrt(len(draws))).item() if len(draws) > 1 else 0.0


def sampling_figure(states: Sequence[SamplingState], best: int | None = None) -> str:
    """Rewards of the noisy states during sampling, from noise on the left to clean on the right. Marks the picture
    `best`, by default the one with the highest reward."""
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.add_subplot()
    last = states[-1]
    leader = int(last.scores.argmax()) if best is None else best
    sigmas = [state.sigma for state in states]
    for index in range(len(last.scores)):
        rewards = [state.scores[index].item() for state in states]
        if index == leader:
            axes.plot(sigmas, rewards, color=COLORS[1], linewidth=2.4, zorder=3)
        else:
            axes.plot(sigmas, rewards, color=INK, alpha=0.35)
    axes.set(
        xlim=(1, -0.04), xlabel="noise level of the state (1: noise alone, 0: clean)", ylabel="reward of the state"
    )
    low, high = axes.get_ylim()
    for index, height in enumerate(_apart(last.scores.tolist(), LABEL_GAP * (high - low))):
        is_leader = index == leader
        color, weight = (COLORS[1], "bold") if is_leader else (INK, "normal")
        axes.annotate(
            str(index + 1),
            (sigmas[-1], height),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            color=color,
            fontweight=weight,
        )
    plain_axes(axes, ticks=5)
    return to_svg(
        figure,
        f"Rewards of {len(last.scores)} noisy states after {percent(last.step / last.num_steps)} of the steps; "
        f"picture {leader + 1} is marked",
    )


def _apart(heights: Sequence[float], gap: float) -> list[float]:
    """Heights of labels near `heights`, in the same order and at least `gap` apart."""
    places = list(heights)
    rising = sorted(range(len(heights)), key=heights.__getitem__)
    for lower, upper in itertools.pairwise(rising):
        places[upper] = max(places[upper], places[lower] + gap)
    # The labels are as far below their curves as above, on average.
    shift = (sum(heights) - sum(places)) / len(places)
    return [place + shift for place in places]


def to_svg(figure: Figure, description: str) -> str:
    """The figure as an SVG element in the page's colours, with a description for screen readers."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    for color, page_color in PAGE_COLORS.items():
        svg = svg.replace(color.lower(), page_color)
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{escape(description)}"', 1)
    return f'<figure class="dina-figure">{svg}</figure>'
