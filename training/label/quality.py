"""How far votes can be trusted: `python -m training.label.quality VOTES`.

Annotators are compared with themselves, on hidden repeats, and with one another. Their noise is fitted to Thurstone's
model, and an annotator who prefers one side of the page is flagged.
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.polynomial.hermite_e import hermegauss
from scipy.optimize import minimize
from scipy.stats import binomtest
from torch.special import log_ndtr

from modeling_dina.evaluation.statistics import clustered_mean
from modeling_dina.options import JsonOption, exit_on_bad_input
from training.label.pairs import Pair, read_pairs
from training.label.votes import Vote, read_votes

# An annotator is flagged if fair sides would be as unequal with at most this probability.
SIDE_PROBABILITY = 0.001
# Nodes of the quadrature over the difference of utilities.
NODES = 64
Preferences = dict[str, dict[str, list[float]]]


def preferences_by_pair(votes: Iterable[Vote]) -> Preferences:
    """For each pair and annotator, all preferences for a, in order. Skipped pairs are left out."""
    found: Preferences = defaultdict(lambda: defaultdict(list))
    for vote in votes:
        if vote.preference is not None:
            found[vote.pair][vote.annotator].append(vote.preference)
    return found


def quality_report(votes: Sequence[Vote], pairs: dict[str, Pair]) -> dict[str, Any]:
    """
    Quality of votes.

    Agreement of two votes on a pair is 1 for the same preference, 0 for opposite ones, and 0.5 for a tie and a
    preference. Intervals have 95 %; those of means are by a bootstrap over prompts, and None for a single prompt.

    Args:
        votes: votes that stand.
        pairs: pairs by key.

    Returns:
        "votes", "pairs": numbers; "between": agreement of any two annotators, as by `clustered_mean` with the number
        of comparisons as "count", or None; "annotators": for each name "votes", "skipped", "ties" (numbers),
        "seconds" (median time of a vote, or None), "within" (agreement of repeats with the first vote, as "between"),
        "others" (agreement with other annotators, as "between"), "left" and "one_side" (`side_bias`), and "noise" with
        its "noise_interval" (`fit_noise`).
    """
    preferences = preferences_by_pair(votes)
    names = sorted({vote.annotator for vote in votes})
    noise = fit_noise(preferences, names)
    compared = [
        (pairs[key].prompt, {one, other}, _agreement(by_name[one][0], by_name[other][0]))
        for key, by_name in preferences.items()
        for one, other in combinations(sorted(by_name), 2)
    ]

    def describe(name: str) -> dict[str, Any]:
        own = [vote for vote in votes if vote.annotator == name]
        times = [vote.seconds for vote in own if vote.seconds is not None]
        repeated = [
            (pairs[key].prompt, _agreement(by_name[name][0], again))
            for key, by_name in preferences.items()
            for again in by_name.get(name, [])[1:]
        ]
        return {
            "votes": len(own),
            "skipped": sum(vote.choice == "skip" for vote in own),
            "ties": sum(vote.preference == 0.5 for vote in own),
            "seconds": float(np.median(times)) if times else None,
            "within": _mean(repeated),
            "others": _mean([(prompt, value) for prompt, both, value in compared if name in both]),
            **side_bias(own),
            "noise": noise[name][0],
            "noise_interval": list(noise[name][1:]),
        }

    return {
        "votes": len(votes),
        "pairs": len(preferences),
        "between": _mean([(prompt, value) for prompt, _, value in compared]),
        "annotators": {name: describe(name) for name in names},
    }


def _agreement(one: float, other: float) -> float:
    return 1 - abs(one - other)


def _mean(values: Sequence[tuple[str, float]]) -> dict[str, Any] | None:
    """Mean of values with the prompts of their pairs, or None without values."""
    if not values:
        return None
    prompts, numbers = zip(*values, strict=True)
    return {**clustered_mean(np.array(numbers), np.array(prompts)), "count": len(values)}


def side_bias(votes: Iterable[Vote]) -> dict[str, Any]:
    """Share "left" of the left side among the preferences of one annotator, or None, and "one_side": whether sides
    that are shuffled would be as unequal with a probability of at most `SIDE_PROBABILITY`, by an exact test."""
    sides = [vote.choice for vote in votes if vote.choice in ("left", "right")]
    if not sides:
        return {"left": None, "one_side": False}
    left = sides.count("left")
    return {"left": left / len(sides), "one_side": bool(binomtest(left, len(sides)).pvalue <= SIDE_PROBABILITY)}


def fit_noise(preferences: Preferences, names: Sequence[str]) -> dict[str, tuple[float, float, float]]:
    """
    Fit Thurstone's model with a noise of its own for each annotator.

    Annotator k perceives the utility of a picture with a normal error of standard deviation s_k, in units of the
    standard deviation of utilities between the pictures of a prompt. For a pair with the difference d of utilities,
    P(a is preferred) = Phi(d / (sqrt(2) s_k)), and d is normal with variance 2, over which the likelihood of all votes
    on the pair is integrated. A tie counts as half a vote for each picture. Pairs are taken as independent.

    The log of s_k has a normal prior with mean 0 and standard deviation 1. The mode of the posterior is returned: with
    neither repeats nor pairs in common, it is the prior's, 1.

    Args:
        preferences: from `preferences_by_pair`.
        names: K names of annotators.

    Returns:
        For each annotator s_k and the bounds of its interval of 95 %, by a normal approximation for the log of s_k.
    """
    if not names:
        return {}
    # Votes for a and for b by pair and annotator, [P, K] each.
    own = [[by_name.get(name, []) for name in names] for by_name in preferences.values()]
    wins = torch.tensor([[sum(each) for each in row] for row in own], dtype=torch.float64).reshape(-1, len(names))
    totals = torch.tensor([[len(each) for each in row] for row in own], dtype=torch.float64).reshape(-1, len(names))
    losses = totals - wins
    # d / sqrt(2) is standard normal.
    nodes, weights = (torch.from_numpy(each) for each in hermegauss(NODES))
    log_weights = weights.log() - 0.5 * math.log(2 * math.pi)

    def loss(log_noise: torch.Tensor) -> torch.Tensor:
        z = nodes[:, None] / log_noise.exp()  # [NODES, K]
        likelihood = wins @ log_ndtr(z).T + losses @ log_ndtr(-z).T  # [P, NODES]
        return 0.5 * log_noise.square().sum() - torch.logsumexp(likelihood + log_weights, dim=1).sum()

    def with_gradient(log_noise: np.ndarray) -> tuple[float, np.ndarray]:
        point = torch.from_numpy(log_noise).requires_grad_()
        value = loss(point)
        (gradient,) = torch.autograd.grad(value, point)
        return value.item(), gradient.numpy()

    found = minimize(with_gradient, np.zeros(len(names)), jac=True, method="L-BFGS-B")
    mode = torch.from_numpy(found.x)
    information = torch.autograd.functional.hessian(loss, mode)
    margin = 1.96 * torch.linalg.inv(information).diagonal().sqrt()
    estimates = torch.stack([mode, mode - margin, mode + margin]).exp().T.tolist()
    return {name: (noise, low, high) for name, (noise, low, high) in zip(names, estimates, strict=True)}


def render(report: dict[str, Any]) -> str:
    """The report as text, with one line for each annotator."""

    def share(mean: dict[str, Any] | None) -> str:
        if mean is None:
            return "unknown"
        low, high = mean["interval"] or (math.nan, math.nan)
        return f"{mean['mean']:.2f} [{low:.2f}, {high:.2f}] of {mean['count']}"

    lines = [
        f"{report['votes']} votes on {report['pairs']} pairs; agreement between annotators {share(report['between'])}"
    ]
    for name, each in report["annotators"].items():
        noise = "{:.2f} [{:.2f}, {:.2f}]".format(each["noise"], *each["noise_interval"])
        lines.append(
            f"{name}: {each['votes']} votes, {each['skipped']} skipped, {each['ties']} ties; agreement with "
            f"themselves {share(each['within'])}, with others {share(each['others'])}; noise {noise}"
        )
        if each["one_side"]:
            lines.append(f"{name}: chose the left side in {each['left']:.0%} of preferences; do not trust these votes")
    return "\n".join(lines)


def main(
    votes: Annotated[Path, typer.Argument(help="Folder with votes, written by training.label.")],
    as_json: JsonOption = False,
) -> None:
    """Report the agreement and the noise of annotators."""
    with exit_on_bad_input():
        report = quality_report(read_votes(votes), read_pairs(votes))
    typer.echo(json.dumps(report, indent=2) if as_json else render(report))


app = typer.Typer(pretty_exceptions_enable=False)
app.command()(main)

if __name__ == "__main__":
    app()
