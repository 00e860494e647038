"""From what was measured of every run to the study's results: means over seeds and prompts with their uncertainty."""

import numpy as np

from model_card.studies.alignment.variants import DECODED, LATENT, VARIANTS
from modeling_dina.evaluation.statistics import estimate, verdict

MEASURES = ("utility", "dina", "pixel", "diversity")
# What a run is stopped by in practice: a reward that it does not optimise.
WATCHED = {"dina": "pixel", "pixel": "dina"}


def summarize(
    runs: dict[str, list[list[dict]]], best_of_n: dict[str, dict[str, dict]], updates: dict[str, dict[str, float]]
) -> dict:
    """
    The study's results but for the cost at full size, of all variants or of some.

    Args:
        runs: by variant, for each seed `Evaluator.curve`.
        best_of_n: `Evaluator.measure` of the best of N, by reward and N.
        updates: `costs.measure_updates`.
    """
    unaligned = next(iter(runs.values()))[0][0]
    variants = {name: summarize_variant(curves, VARIANTS[name].reward, updates[name]) for name, curves in runs.items()}
    return {
        "unaligned": {name: estimate(np.array([unaligned[name]])) for name in MEASURES},
        "best_of_n": [
            {"reward": reward, "candidates": int(count), **compare([measured], [unaligned])}
            for reward, by_count in best_of_n.items()
            for count, measured in by_count.items()
        ],
        "variants": [{"variant": name, **variant} for name, variant in variants.items()],
        **({"aim": compare_with_pixels(variants)} if {LATENT, DECODED} <= runs.keys() else {}),
    }


def compare(evaluations: list[dict], before: list[dict]) -> dict:
    """Every measure of an evaluation of S seeds, with its "rise" above what it was `before`, on the same prompts and
    noise."""
    compared = {}
    for name in MEASURES:
        values, start = (np.array([each[name] for each in points]) for points in (evaluations, before))
        compared[name] = {**estimate(values), "rise": estimate(values - start)}
    return compared


def summarize_variant(curves: list[list[dict]], reward: str, cost: dict[str, float]) -> dict:
    """
    Of one variant.

    Returns:
        "curve": at every evaluation the "update", the "seconds" that its updates take, and what `compare` returns;
        "last": its last point; "kept": where the watched reward, the one of the two models that is not optimised, was
        highest in each seed; "reward" and "watched"; and the cost of an update.
    """
    watched = WATCHED[reward]
    before = [curve[0] for curve in curves]
    points = [
        {"update": step[0]["update"], "seconds": step[0]["update"] * cost["seconds"], **compare(list(step), before)}
        for step in zip(*curves, strict=True)
    ]
    best = [max(curve, key=lambda point: np.mean(point[watched])) for curve in curves]
    kept = {"updates": [point["update"] for point in best], **compare(best, before)}
    return {"reward": reward, "watched": watched, "curve": points, "last": points[-1], "kept": kept, "cost": cost}


def compare_with_pixels(variants: dict[str, dict]) -> dict:
    """
    The aim: ReFL on noisy states reaches the final utility of ReFL behind the decoder in at most half its time, with
    less memory, and surely rises.

    Returns:
        "target" utilities of the pixel reward, its "last" and its "kept", each with the seconds that both took (None
        if it was never reached) and their ratio; the ratio of "peak_bytes"; and the rise of the kept weights with
        its verdict.
    """
    latent, decoded = variants[LATENT], variants[DECODED]
    targets = {}
    for name in ("last", "kept"):
        utility = decoded[name]["utility"]["mean"]
        updates = decoded["last"]["update"] if name == "last" else float(np.mean(decoded["kept"]["updates"]))
        seconds = updates * decoded["cost"]["seconds"]
        reached = seconds_to_reach(latent["curve"], utility)
        ratio = None if reached is None or not seconds else reached / seconds
        targets[name] = {"utility": utility, "pixel_seconds": seconds, "seconds": reached, "ratio": ratio}
    return {
        "targets": targets,
        "peak_bytes": {"latent": latent["cost"]["peak_bytes"], "pixel": decoded["cost"]["peak_bytes"]},
        "rise": latent["kept"]["utility"]["rise"],
        "verdict": verdict(latent["kept"]["utility"]["rise"]),
    }


def seconds_to_reach(curve: list[dict], utility: float) -> float | None:
    """When the mean over seeds first reaches a utility, by linear interpolation; None if it never does."""
    seconds = [point["seconds"] for point in curve]
    values = [point["utility"]["mean"] for point in curve]
    if values[0] >= utility:
        return seconds[0]
    for index in range(1, len(curve)):
        if values[index] >= utility:
            share = (utility - values[index - 1]) / (values[index] - values[index - 1])
            return seconds[index - 1] + share * (seconds[index] - seconds[index - 1])
    return None
