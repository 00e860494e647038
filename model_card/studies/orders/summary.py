"""Results of the study of orders: curves, and how many votes each order saves over a random one."""

from typing import Any

import numpy as np

from model_card.studies.orders.variants import BASELINE
from modeling_dina.evaluation.statistics import estimate, verdict

MEASURES = ("accuracy", "log_likelihood")
RESAMPLES = 1000


def summarize(
    runs: dict[str, list[dict]], bounds: dict[str, dict[str, list[float]]], costs: dict[str, float]
) -> dict[str, Any]:
    """
    Results of all orders or of some.

    Args:
        runs: what `OrderStudy.run` returned for each seed, by order.
        bounds: accuracy and log-likelihood of each test group, of the "present" reward and the "best" reachable.
        costs: what `OrderStudy.measure_costs` returned.

    Returns:
        "bounds", with estimates; "seconds_per_pair"; "orders", for each its "variant" and the "points" by number of
        votes; and if there are runs of the random order, "against_random" with the `gain` in both measures,
        the "verdict" on the gain in accuracy, the difference in accuracy "by_size", and the `equivalents`.
    """
    first = next(iter(runs.values()))[0]["points"]
    votes = np.array([point["votes"] for point in first])

    def values(name: str, measure: str) -> np.ndarray:
        """[seeds, sizes, groups]"""
        return np.array([[point[measure] for point in run["points"]] for run in runs[name]])

    def points(name: str) -> list[dict[str, Any]]:
        return [
            {
                "votes": int(count),
                **{measure: estimate(values(name, measure)[:, size]) for measure in MEASURES},
                **{
                    each: float(np.mean([run["points"][size][each] for run in runs[name]]))
                    for each in ("calibration_error", "prompts")
                },
            }
            for size, count in enumerate(votes)
        ]

    def against_random(name: str) -> dict[str, Any]:
        differences = {measure: values(name, measure) - values(BASELINE, measure) for measure in MEASURES}
        gains = {measure: gain(each) for measure, each in differences.items()}
        by_size = [estimate(differences["accuracy"][:, size]) for size in range(len(votes))]
        found = equivalents(values(name, "accuracy"), values(BASELINE, "accuracy"), votes)
        return {**gains, "verdict": verdict(gains["accuracy"]), "by_size": by_size, "equivalents": found}

    return {
        "bounds": {
            name: {measure: estimate(np.array([found[measure]])) for measure in MEASURES}
            for name, found in bounds.items()
        },
        "seconds_per_pair": costs["seconds"],
        "orders": [
            {"variant": name, "points": points(name)}
            | ({"against_random": against_random(name)} if BASELINE in runs and name != BASELINE else {})
            for name in runs
        ],
    }


def gain(differences: np.ndarray) -> dict[str, Any]:
    """The mean difference [seeds, sizes, groups] over all numbers of votes but the first, after which uncertainty
    orders are still random."""
    return estimate(differences[:, 1:].mean(axis=1))


def equivalents(order: np.ndarray, baseline: np.ndarray, votes: np.ndarray) -> list[dict[str, Any]]:
    """
    How many votes in random order reach the accuracy of another order.

    Args:
        order, baseline: accuracies [seeds, sizes, groups].
        votes: numbers of votes, [sizes].

    Returns:
        For each number of votes but the first, the number in random order, as "mean", and its "interval": the 2.5 and
        97.5 percentiles of a bootstrap over seeds and groups. The random curve is interpolated in the logarithm of the
        votes; numbers outside of it are those at its ends.
    """
    seeds, _, groups = order.shape
    rng = np.random.default_rng(0)

    def numbers(chosen: np.ndarray, members: np.ndarray) -> np.ndarray:
        of_order, of_random = (each[chosen][:, :, members].mean(axis=(0, 2)) for each in (order, baseline))
        # More votes do not make a reward worse, except by chance.
        return np.exp2(np.interp(of_order[1:], np.maximum.accumulate(of_random), np.log2(votes)))

    found = numbers(np.arange(seeds), np.arange(groups))
    drawn = [
        numbers(rng.integers(seeds, size=(seeds,)), rng.integers(groups, size=(groups,))) for _ in range(RESAMPLES)
    ]
    intervals = np.percentile(drawn, [2.5, 97.5], axis=0).T.tolist()
    return [
        {"votes": int(count), "mean": float(number), "interval": interval}
        for count, number, interval in zip(votes[1:], found, intervals, strict=True)
    ]
