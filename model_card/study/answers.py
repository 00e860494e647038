"""What the numbers of the study say, in words, whichever way they have come out."""

from modeling_dina.evaluation.statistics import verdict

# Of accuracy: what less is gained by is not worth another draw or level.
SATURATION = 0.002
# A measured variance within this factor of the likelihood's agrees with it.
VARIANCE_FACTOR = 1.25
MODES = {
    "features": "The ensemble of features",
    "mean": "The mean of levels",
    "precision": "The mean weighted by precision",
}
EFFECTS = {"held": "helps", "reversed": "harms", "undecided": "makes no difference that this study can tell"}
CALIBRATION = {
    ("dina", "constant_floor"): "Against a constant variance with the same floor, calibration",
    ("dina", "constant_mean"): "Against a constant variance with the same mean, where only the slope differs, it",
    ("constant_mean", "constant_floor"): "A constant variance of that mean, against one of that floor,",
}


def answer(results: dict) -> dict[str, str]:
    """The four questions of the study with their answers; `results` is what `summary.summarize` returned."""
    return {
        "Does noise calibration help over a constant variance?": answer_calibration(results["claims"]),
        "Does the ensemble help, and where does it saturate?": answer_ensemble(results["claims"], results["scaling"]),
        "Is the likelihood's variance right?": answer_variance(results["variances"]),
        "Is disagreement a sign of error?": answer_disagreement(results["disagreement"]),
    }


def answer_calibration(claims: list[dict]) -> str:
    """Slope and floor apart, at one level and with the ensemble."""
    sentences = []
    for claim in claims:
        (better, reading), (worse, _) = claim["better"], claim["worse"]
        if (better, worse) in CALIBRATION:
            where = "at one level" if reading == "one level" else "with the ensemble"
            sentences.append(f"{CALIBRATION[better, worse]} {EFFECTS[claim['verdict']]} {where}: {gains(claim)}.")
    return " ".join(sentences)


def answer_ensemble(claims: list[dict], scaling: dict) -> str:
    """The gain over one level by mode, and from where on more draws or levels stop to matter."""
    sentences = []
    for claim in claims:
        (row, mode), (other, _) = claim["better"], claim["worse"]
        if row == other == "dina":
            sentences.append(f"{MODES[mode]} {EFFECTS[claim['verdict']]}: {gains(claim)}.")
    for mode, words in MODES.items():
        draws, levels = (saturation(scaling[of][mode], of) for of in ("draws", "levels"))
        sentences.append(f"{words} comes within {100 * SATURATION:.1f} points of its best at {draws} and {levels}.")
    return " ".join(sentences)


def saturation(curve: list[dict], of: str) -> str:
    """The least number of `of` ("draws" or "levels") within `SATURATION` of the curve's best accuracy, in words."""
    best = max(point["accuracy"] for point in curve)
    number = next(point[of] for point in curve if point["accuracy"] >= best - SATURATION)
    return f"{number:g} {of if number > 1 else of[:-1]}"


def answer_variance(variances: list[dict]) -> str:
    """The likelihood's variance against both that were measured, level by level."""
    levels = "; ".join(
        f"at sigma {level['sigma']:g} the likelihood says {level['likelihood']:.3f}, draws of a reward "
        f"{level['draws']:.3f}, draws of a difference {level['draws_of_differences']:.3f} for each reward, the votes "
        f"{'more than can be told' if level['votes'] is None else format(level['votes'], '.3f')}"
        for level in variances
    )
    votes = compare_variances(variances, "votes")
    draws = compare_variances(variances, "draws")
    return (
        f"As the variance of what annotators will say it is {votes}; as the variance of a reward over noise draws it "
        f"is {draws} (right is within a factor of {VARIANCE_FACTOR:g}). In numbers: {levels}."
    )


def compare_variances(variances: list[dict], measured: str) -> str:
    """Whether the likelihood's variance is right, too small or too large, by level."""
    by_verdict: dict[str, list[str]] = {}
    for level in variances:
        ratio = None if level[measured] is None else level[measured] / level["likelihood"]
        if ratio is None or ratio > VARIANCE_FACTOR:
            found = "too small"
        else:
            found = "too large" if ratio < 1 / VARIANCE_FACTOR else "right"
        by_verdict.setdefault(found, []).append(f"{level['sigma']:g}")
    if len(by_verdict) == 1:
        return f"{next(iter(by_verdict))} at every level"
    return ", ".join(f"{found} at sigma {' and '.join(sigmas)}" for found, sigmas in by_verdict.items())


def answer_disagreement(found: dict) -> str:
    """Error rates from the fifth of least disagreement to that of most."""
    rates = ", ".join(f"{100 * fifth['error']:.1f}" for fifth in found["quintiles"])
    avoidable = ", ".join(f"{100 * fifth['avoidable']:.1f}" for fifth in found["quintiles"])
    is_sign = {"held": "Yes", "reversed": "No, the reverse", "undecided": "Not that this study can tell"}
    return (
        f"{is_sign[verdict(found['rise'])]}: from the fifth of the pairs with the least disagreement to that with the "
        f"most, the reward's choice is not a fresh annotator's in {rates} %, a rise of {points(found['rise'])}. Less "
        f"what an annotator's own noise explains it is {avoidable} %, a rise of {points(found['avoidable_rise'])}."
    )


def gains(claim: dict) -> str:
    """The differences of a claim on seen combinations."""
    accuracy, likelihood = claim["seen"]["accuracy"], claim["seen"]["log_likelihood"]
    low, high = likelihood["interval"]
    return (
        f"{points(accuracy)} of accuracy, {likelihood['mean']:+.4f} [{low:+.4f}, {high:+.4f}] nats of log-likelihood"
    )


def points(found: dict) -> str:
    """A difference of shares in percentage points, with its interval."""
    low, high = found["interval"]
    return f"{100 * found['mean']:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]"
