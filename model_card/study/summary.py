"""From what was measured of every row and seed to the study's results: means over seeds with their uncertainty."""

from typing import NamedTuple

import numpy as np

from model_card.study.rows import ROWS
from modeling_dina.evaluation.statistics import estimate, verdict

SETS = ("seen", "held_out")


class Claim(NamedTuple):
    """Of the method: the first (row, reading) agrees with annotators more often than the second."""

    text: str
    better: tuple[str, str]
    worse: tuple[str, str]


CLAIMS = (
    Claim(
        "A variance that grows with the noise is better than a constant one of the same floor, at one level",
        ("dina", "one level"),
        ("constant_floor", "one level"),
    ),
    Claim("The same, with the ensemble", ("dina", "features"), ("constant_floor", "features")),
    Claim(
        "It is better than a constant one of the same mean, at one level",
        ("dina", "one level"),
        ("constant_mean", "one level"),
    ),
    Claim("The same, with the ensemble", ("dina", "features"), ("constant_mean", "features")),
    Claim(
        "A larger constant variance is better than a smaller one, at one level",
        ("constant_mean", "one level"),
        ("constant_floor", "one level"),
    ),
    Claim("Training under noise is better than on clean latents", ("dina", "one level"), ("clean", "clean")),
    Claim(
        "Thurstone's likelihood is better than Bradley and Terry's",
        ("dina", "features"),
        ("bradley_terry", "features"),
    ),
    Claim("The ensemble of features is better than one level", ("dina", "features"), ("dina", "one level")),
    Claim("The mean of levels is better than one level", ("dina", "mean"), ("dina", "one level")),
    Claim("The precision-weighted mean is better than one level", ("dina", "precision"), ("dina", "one level")),
    Claim("A trained backbone is better than a frozen one", ("dina", "features"), ("frozen", "features")),
    Claim("Generative pretraining is better than a random start", ("dina", "features"), ("random_start", "features")),
    Claim("The query head is better than a dot product", ("dina", "features"), ("dot_product", "features")),
    Claim("One level is better than a pixel reward behind the decoder", ("dina", "one level"), ("pixel", "decoded")),
    Claim("One level is better than a pixel reward on the pictures", ("dina", "one level"), ("pixel", "pictures")),
)


def average(trees: list):
    """The mean of nested dicts and lists of one shape, number by number; None, where nothing is, is left out."""
    first = trees[0]
    if isinstance(first, dict):
        return {name: average([tree[name] for tree in trees]) for name in first}
    if isinstance(first, list):
        return [average(list(members)) for members in zip(*trees, strict=True)]
    numbers = [tree for tree in trees if tree is not None]
    return float(np.mean(numbers)) if numbers else None


def summarize(measured: dict[str, list[dict]], best: dict[str, dict], cost: dict[str, dict[str, dict]]) -> dict:
    """
    The study's results, but for what they say in words.

    Args:
        measured: by row, what `measurement.measure_row` returned for each seed; of "dina" also "ensemble", what
            `measure_ensemble` did.
        best: by set, what `measurement.best_reachable` returned.
        cost: FLOPs and seconds of a comparison by row and reading.
    """

    def values(row: str, reading: str, set_name: str, name: str) -> np.ndarray:
        return np.array([seed["readings"][reading][set_name][name] for seed in measured[row]])

    def difference(claim: Claim, set_name: str, name: str) -> dict:
        return estimate(values(*claim.better, set_name, name) - values(*claim.worse, set_name, name))

    pairs = [(row, reading) for row, details in ROWS.items() for reading in details.readings]
    ensembles = [seed["ensemble"] for seed in measured["dina"]]
    disagreement = [ensemble["disagreement"] for ensemble in ensembles]
    return {
        "best": {
            set_name: {name: estimate(np.array([groups])) for name, groups in found.items()}
            for set_name, found in best.items()
        },
        "rows": [
            {
                "row": row,
                "reading": reading,
                **{
                    set_name: {
                        **{
                            name: estimate(values(row, reading, set_name, name))
                            for name in ("accuracy", "log_likelihood")
                        },
                        "calibration_error": float(values(row, reading, set_name, "calibration_error").mean()),
                        "reliability": average(
                            [seed["readings"][reading][set_name]["reliability"] for seed in measured[row]]
                        ),
                    }
                    for set_name in SETS
                },
                **cost[ROWS[row].cost][reading],
            }
            for row, reading in pairs
        ],
        "levels": {row: average([seed["levels"] for seed in seeds]) for row, seeds in measured.items()},
        "claims": [
            {
                **claim._asdict(),
                **{
                    set_name: {name: difference(claim, set_name, name) for name in ("accuracy", "log_likelihood")}
                    for set_name in SETS
                },
                "verdict": verdict(difference(claim, "seen", "accuracy")),
            }
            for claim in CLAIMS
        ],
        **{name: average([each[name] for each in ensembles]) for name in ("scaling", "variances", "win_probability")},
        "disagreement": {
            "quintiles": average([each["quintiles"] for each in disagreement]),
            **{name: estimate(np.array([each[name] for each in disagreement])) for name in ("rise", "avoidable_rise")},
        },
    }
