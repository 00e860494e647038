"""From what was measured of every variant and seed to the study's results: means over seeds with their uncertainty."""

from typing import NamedTuple

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
    The study's results, of all variants or of some.

    Args:
        measured: by variant, what `measurement.measure_variant` returned for each seed; of "dina" also "ensemble",
            what `analyze` did.
        best: by set, what `measurement.best_reachable` returned.
        cost: FLOPs and seconds of a comparison by variant and evaluation.
    """

    def by_seed(variant: str, evaluation: str, set_name: str, measure: str) -> np.ndarray:
        return np.array([seed["evaluations"][evaluation][set_name][measure] for seed in measured[variant]])

    def difference(claim: Claim, set_name: str, measure: str) -> dict:
        return estimate(by_seed(*claim.better, set_name, measure) - by_seed(*claim.worse, set_name, measure))

    def summarize_set(*key: str) -> dict:
        found = {measure: estimate(by_seed(*key, measure)) for measure in MEASURES}
        found["calibration_error"] = float(by_seed(*key, "calibration_error").mean())
        variant, evaluation, set_name = key
        reliability = [seed["evaluations"][evaluation][set_name]["reliability"] for seed in measured[variant]]
        return found | {"reliability": average(reliability)}

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
                **cost[VARIANTS[name].cost][evaluation],
            }
            for name in measured
            for evaluation in VARIANTS[name].evaluations
        ],
        "levels": {name: average([seed["levels"] for seed in seeds]) for name, seeds in measured.items()},
        "claims": [
            {
                **claim._asdict(),
                **{set_name: {name: difference(claim, set_name, name) for name in MEASURES} for set_name in SETS},
                "verdict": verdict(difference(claim, "seen", "accuracy")),
            }
            for claim in CLAIMS
            if {claim.better[0], claim.worse[0]} <= measured.keys()
        ],
        **(summarize_ensemble([seed["ensemble"] for seed in measured[DINA]]) if DINA in measured else {}),
    }


def summarize_ensemble(ensembles: list[dict]) -> dict:
    """Means over seeds of what `measurement.analyze` returned."""
    disagreement = [ensemble["disagreement"] for ensemble in ensembles]
    return {
        **{name: average([each[name] for each in ensembles]) for name in ("scaling", "variances", "win_probability")},
        "disagreement": {
            "quintiles": average([each["quintiles"] for each in disagreement]),
            **{name: estimate(np.array([each[name] for each in disagreement])) for name in ("rise", "avoidable_rise")},
        },
    }
