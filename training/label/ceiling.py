"""The accuracy that annotators reach against one another, which bounds what a reward can reach against them."""

from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import Any

import numpy as np

from modeling_dina.evaluation.statistics import agreement, clustered_mean


def annotator_ceiling(
    preferences: Mapping[str, Mapping[str, Sequence[float]]], prompts: Mapping[str, str]
) -> dict[str, Any] | None:
    """
    Accuracy of one annotator's preference for the vote of another on the same pair, on the scale of a reward's
    accuracy: a tie agrees by one half with everything.

    Args:
        preferences: for each pair and annotator, their votes: 1 for a, 0 for b, 0.5 for a tie. An annotator's votes on
            a pair are averaged.
        prompts: prompt of each pair.

    Returns:
        The fields of `clustered_mean` over prompts; "pairs", the number of pairs with two annotators or more; and
        "best_reachable", by `best_reachable` of the upper end of the interval. None if there is no such pair.
    """
    means = {pair: [float(np.mean(votes)) for votes in by_name.values()] for pair, by_name in preferences.items()}
    shared = {pair: votes for pair, votes in means.items() if len(votes) > 1}
    if not shared:
        return None
    values = [np.mean([_accuracy(*both) for both in permutations(votes, 2)]) for votes in shared.values()]
    found = clustered_mean(np.array(values), np.array([prompts[pair] for pair in shared]))
    highest = found["mean"] if found["interval"] is None else found["interval"][1]
    return {**found, "pairs": len(shared), "best_reachable": best_reachable(highest)}


def _accuracy(choice: float, target: float) -> float:
    """Expected agreement of an annotator who prefers a with probability `choice` with one of `target`."""
    for_a, for_b = agreement(np.array([1.0, -1.0]), np.array([target, target]), ties="half")
    return choice * for_a + (1 - choice) * for_b


def best_reachable(accuracy: float) -> float:
    """
    An upper bound of the accuracy of any predictor against annotators who reach `accuracy` against one another.

    If a is preferred with probability p, annotators agree with probability p^2 + (1 - p)^2, and the best predictor,
    which knows the majority, reaches max(p, 1 - p) = (1 + sqrt(2 (p^2 + (1 - p)^2) - 1)) / 2. The root is concave, so
    that the mean over pairs is at most its value at the mean agreement (Jensen). It is reached if p or 1 - p is the
    same for all pairs.
    """
    return (1 + max(0.0, 2 * accuracy - 1) ** 0.5) / 2
