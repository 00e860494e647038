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


ONE_LEVEL, ENSEMBLE = ("dina", "one level"), ("dina", "features")
FLOOR, MEAN = ("constant_floor", "one level"), ("constant_mean", "one level")
GROWING = "A variance that grows with the noise is better than a constant one of the same"
CLAIMS = (
    Claim(f"{GROWING} floor, at one level", ONE_LEVEL, FLOOR),
    Claim(f"{GROWING} floor, with the ensemble", ENSEMBLE, ("constant_floor", "features")),
    Claim(f"{GROWING} mean, at one level", ONE_LEVEL, MEAN),
    Claim(f"{GROWING} mean, with the ensemble", ENSEMBLE, ("constant_mean", "features")),
    Claim("A larger constant variance is better than a smaller one, at one level", MEAN, FLOOR),
    Claim("Training under noise is better than on clean latents", ONE_LEVEL, ("clean", "clean")),
    Claim("Thurstone's likelihood is better than Bradley and Terry's", ENSEMBLE, ("bradley_terry", "features")),
    Claim("The ensemble of features is better than one level", ENSEMBLE, ONE_LEVEL),
    Claim("The mean of levels is better than one level", ("dina", "mean"), ONE_LEVEL),
    Claim("The precision-weighted mean is better than one level", ("dina", "precision"), ONE_LEVEL),
    Claim("A trained backbone is better than a frozen one", ENSEMBLE, ("frozen", "features")),
    Claim("Generative pretraining is better than a random start", ENSEMBLE, ("random_start", "features")),
    Claim("The query head is better than a dot product", ENSEMBLE, ("dot_product", "features")),
    Claim("One level is better than a pixel reward behind the decoder", ONE_LEVEL, ("pixel", "decoded")),
    Claim("One level is better than a pixel reward on the pictures", ONE_LEVEL, ("pixel", "pictures")),
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
    """Results of all variants or of some, from `MethodStudy.run` of each seed, `measurement.best_reachable` by set,
    and the cost of a comparison by `Variant.cost` and evaluation."""
    measured = {
        (name, evaluation): [run["evaluations"][evaluation] for run in by_seed]
        for name, by_seed in runs.items()
        for evaluation in VARIANTS[name].evaluations
    }
    claims = [claim for claim in CLAIMS if {claim.better, claim.worse} <= measured.keys()]

    def values(key: tuple[str, str], of: str, measure: str) -> np.ndarray:
        return np.array([each[of][measure] for each in measured[key]])

    def summarize_set(key: tuple[str, str], of: str) -> dict[str, Any]:
        rest = [{name: each[of][name] for name in ("calibration_error", "reliability")} for each in measured[key]]
        return {measure: estimate(values(key, of, measure)) for measure in MEASURES} | average(rest)

    def compare(claim: Claim) -> dict[str, Any]:
        found = {
            of: {name: estimate(values(claim.better, of, name) - values(claim.worse, of, name)) for name in MEASURES}
            for of in SETS
        }
        return {**claim._asdict(), **found, "verdict": verdict(found["seen"]["accuracy"])}

    return {
        "best": {of: {name: estimate(np.array([each])) for name, each in found.items()} for of, found in best.items()},
        "variants": [
            {"variant": key[0], "evaluation": key[1], **{of: summarize_set(key, of) for of in SETS}}
            | costs[VARIANTS[key[0]].cost][key[1]]
            for key in measured
        ],
        "levels": {name: average([run["levels"] for run in by_seed]) for name, by_seed in runs.items()},
        "claims": [compare(claim) for claim in claims],
        **(summarize_ensemble([run["ensemble"] for run in runs["dina"]]) if "dina" in runs else {}),
    }


def summarize_ensemble(ensembles: list[dict]) -> dict[str, Any]:
    """Means over seeds of what `measurement.analyze` returned."""
    disagreement = [ensemble["disagreement"] for ensemble in ensembles]
    rises = {name: estimate(np.array([each[name] for each in disagreement])) for name in ("rise", "avoidable_rise")}
    return {
        **average([{name: each[name] for name in ("scaling", "variances")} for each in ensembles]),
        "disagreement": {"quintiles": average([each["quintiles"] for each in disagreement]), **rises},
    }
