"""Results of the method study: means over seeds, with their uncertainty, of the measurements of every variant."""

from typing import Any, NamedTuple

import numpy as np

from model_card.studies.method.variants import VARIANTS
from modeling_dina.evaluation.statistics import estimate, verdict

SETS = ("seen", "held_out")
MEASURES = ("accuracy", "log_likelihood")


class Claim(NamedTuple):
    """A claim of the method: one (variant, evaluation) agrees with annotators more often than another."""

    text: str
    better: tuple[str, str]
    worse: tuple[str, str]


DINA, ONE_LEVEL, ENSEMBLE = "dina", "one level", "features"
GROWING = "A variance that grows with the noise is better than a constant one of the same"
BETTER = "is better than one level"
CLAIMS = (
    Claim(f"{GROWING} floor, at one level", (DINA, ONE_LEVEL), ("constant_floor", ONE_LEVEL)),
    Claim(f"{GROWING} floor, with the ensemble", (DINA, ENSEMBLE), ("constant_floor", ENSEMBLE)),
    Claim(f"{GROWING} mean, at one level", (DINA, ONE_LEVEL), ("constant_mean", ONE_LEVEL)),
    Claim(f"{GROWING} mean, with the ensemble", (DINA, ENSEMBLE), ("constant_mean", ENSEMBLE)),
    Claim(
        "A larger constant variance is better than a smaller one, at one level",
        ("constant_mean", ONE_LEVEL),
        ("constant_floor", ONE_LEVEL),
    ),
    Claim("Training under noise is better than on clean latents", (DINA, ONE_LEVEL), ("clean", "clean")),
    Claim("Thurstone's likelihood is better than Bradley and Terry's", (DINA, ENSEMBLE), ("bradley_terry", ENSEMBLE)),
    Claim(f"The ensemble of features {BETTER}", (DINA, ENSEMBLE), (DINA, ONE_LEVEL)),
    Claim(f"The mean of levels {BETTER}", (DINA, "mean"), (DINA, ONE_LEVEL)),
    Claim(f"The precision-weighted mean {BETTER}", (DINA, "precision"), (DINA, ONE_LEVEL)),
    Claim("A trained backbone is better than a frozen one", (DINA, ENSEMBLE), ("frozen", ENSEMBLE)),
    Claim("Generative pretraining is better than a random start", (DINA, ENSEMBLE), ("random_start", ENSEMBLE)),
    Claim("The query head is better than a dot product", (DINA, ENSEMBLE), ("dot_product", ENSEMBLE)),
    Claim("One level is better than a pixel reward behind the decoder", (DINA, ONE_LEVEL), ("pixel", "decoded")),
    Claim("One level is better than a pixel reward on the pictures", (DINA, ONE_LEVEL), ("pixel", "pictures")),
)


def average(trees: list) -> Any:
    """The mean of nested dicts and lists of the same shape, number by number, without numbers that are None."""
    first = trees[0]
    if isinstance(first, dict):
        return {name: average([tree[name] for tree in trees]) for name in first}
    if isinstance(first, list):
        return [average(list(members)) for members in zip(*trees, strict=True)]
    numbers = [tree for tree in trees if tree is not None]
    return float(np.mean(numbers)) if numbers else None


def summarize(
    runs: dict[str, list[dict]], best: dict[str, dict], costs: dict[str, dict[str, dict[str, float]]]
) -> dict[str, Any]:
    """
    Results of all variants or of some.

    Args:
        runs: `MethodStudy.run` of each seed, by variant.
        best: `measurement.best_reachable` by set.
        costs: FLOPs and seconds of a comparison by `Variant.cost` and evaluation.
    """

    def by_seed(variant: str, evaluation: str, set_name: str, measure: str) -> np.ndarray:
        return np.array([run["evaluations"][evaluation][set_name][measure] for run in runs[variant]])

    def summarize_set(variant: str, evaluation: str, set_name: str) -> dict[str, Any]:
        measured = [run["evaluations"][evaluation][set_name] for run in runs[variant]]
        means = average([{name: each[name] for name in ("calibration_error", "reliability")} for each in measured])
        return {name: estimate(by_seed(variant, evaluation, set_name, name)) for name in MEASURES} | means

    def differences(claim: Claim, set_name: str) -> dict[str, dict]:
        pairs = {name: [by_seed(*side, set_name, name) for side in claim[1:]] for name in MEASURES}
        return {name: estimate(better - worse) for name, (better, worse) in pairs.items()}

    return {
        "best": {
            set_name: {measure: estimate(np.array([groups])) for measure, groups in found.items()}
            for set_name, found in best.items()
        },
        "variants": [
            {
                "variant": name,
                "evaluation": evaluation,
                **{set_name: summarize_set(name, evaluation, set_name) for set_name in SETS},
                **costs[VARIANTS[name].cost][evaluation],
            }
            for name in runs
            for evaluation in VARIANTS[name].evaluations
        ],
        "levels": {name: average([run["levels"] for run in by_seed]) for name, by_seed in runs.items()},
        "claims": [
            {**claim._asdict(), **found, "verdict": verdict(found["seen"]["accuracy"])}
            for claim in CLAIMS
            if {claim.better[0], claim.worse[0]} <= runs.keys()
            for found in [{set_name: differences(claim, set_name) for set_name in SETS}]
        ],
        **(summarize_ensemble([run["ensemble"] for run in runs[DINA]]) if DINA in runs else {}),
    }


def summarize_ensemble(ensembles: list[dict]) -> dict[str, Any]:
    """Means over seeds of what `measurement.analyze` returned."""
    disagreement = [ensemble["disagreement"] for ensemble in ensembles]
    return {
        **average([{name: each[name] for name in ("scaling", "variances")} for each in ensembles]),
        "disagreement": {
            "quintiles": average([each["quintiles"] for each in disagreement]),
            **{name: estimate(np.array([each[name] for each in disagreement])) for name in ("rise", "avoidable_rise")},
        },
    }
