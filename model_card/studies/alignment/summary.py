"""Results of the alignment study: means over seeds and prompts, with their uncertainty, of all runs."""

from typing import Any

import numpy as np

from model_card.studies.alignment.variants import DECODED, LATENT, VARIANTS
from modeling_dina.evaluation.statistics import estimate, verdict

MEASURES = ("utility", "dina", "pixel", "diversity")
# The reward that decides in practice when a run is stopped: one that it does not optimise.
WATCHED = {"dina": "pixel", "pixel": "dina"}


def summarize(
    curves: dict[str, list[list[dict]]], best_of_n: list[dict], costs: dict[str, dict[str, float]]
) -> dict[str, Any]:
    """Results of all variants or of some, from `measurement.measure_run` for each seed, `measurement.best_of_n`, and
    the cost of an update."""
    unaligned = next(iter(curves.values()))[0][0]
    variants = {name: summarize_variant(runs, VARIANTS[name].reward, costs[name]) for name, runs in curves.items()}
    return {
        "unaligned": {name: estimate(np.array([unaligned[name]])) for name in MEASURES},
        "best_of_n": [
            {"reward": each["reward"], "candidates": each["candidates"], **compare([each], [unaligned])}
            for each in best_of_n
        ],
        "variants": [{"variant": name, **variant} for name, variant in variants.items()],
        **({"aim": compare_with_pixels(variants)} if {LATENT, DECODED} <= curves.keys() else {}),
    }


def compare(evaluations: list[dict], before: list[dict]) -> dict[str, dict]:
    """Estimates of every measure of an evaluation of S seeds, each with its "rise" since an earlier evaluation."""
    compared = {}
    for name in MEASURES:
        values, start = (np.array([each[name] for each in points]) for points in (evaluations, before))
        compared[name] = estimate(values) | {"rise": estimate(values - start)}
    return compared


def summarize_variant(curves: list[list[dict]], reward: str, cost: dict[str, float]) -> dict[str, Any]:
    """Results of one variant: "curve" has for every evaluation the "update", the "seconds" that its updates take, and
    what `compare` returns; "last" is its last point; "selected" is the evaluation where the watched reward, the one of
    the two models that is not optimised, was highest in each seed."""
    watched, before = WATCHED[reward], [curve[0] for curve in curves]
    points = [
        {"update": step[0]["update"], "seconds": step[0]["update"] * cost["seconds"], **compare(list(step), before)}
        for step in zip(*curves, strict=True)
    ]
    best = [max(curve, key=lambda point: np.mean(point[watched])) for curve in curves]
    selected = {"updates": [point["update"] for point in best], **compare(best, before)}
    found = {"reward": reward, "watched": watched, "curve": points, "last": points[-1], "selected": selected}
    return found | {"cost": cost}


def compare_with_pixels(variants: dict[str, dict]) -> dict[str, Any]:
    """The aim: ReFL on noisy states significantly increases the utility, and reaches that of ReFL behind the decoder
    in at most half its time, with less memory. "targets" are the utilities of the latter at "last" and at "selected",
    with the seconds that both took (None if it was never reached) and their ratio."""
    latent, decoded = variants[LATENT], variants[DECODED]
    updates = {"last": decoded["last"]["update"], "selected": float(np.mean(decoded["selected"]["updates"]))}
    targets = {}
    for name, count in updates.items():
        utility, seconds = decoded[name]["utility"]["mean"], count * decoded["cost"]["seconds"]
        reached = seconds_to_reach(latent["curve"], utility)
        ratio = None if reached is None or not seconds else reached / seconds
        targets[name] = {"utility": utility, "pixel_seconds": seconds, "seconds": reached, "ratio": ratio}
    rise = latent["selected"]["utility"]["rise"]
    peaks = {"latent": latent["cost"]["peak_bytes"], "pixel": decoded["cost"]["peak_bytes"]}
    return {"targets": targets, "peak_bytes": peaks, "rise": rise, "verdict": verdict(rise)}


def seconds_to_reach(curve: list[dict], utility: float) -> float | None:
    """When the mean over seeds first reaches a utility, by linear interpolation; None if it never does."""
    for before, point in zip([curve[0], *curve], curve, strict=False):
        if point["utility"]["mean"] >= utility:
            means = [each["utility"]["mean"] for each in (before, point)]
            return float(np.interp(utility, means, [before["seconds"], point["seconds"]]))
    return None
