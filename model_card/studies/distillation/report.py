"""The variants of the distillation study, the summary of their measurements, and the report, made from the results
alone."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from model_card.studies.method.report import TITLES, percent
from model_card.studies.method.summary import MEASURES, SETS
from model_card.studies.method.variants import Variant
from model_card.studies.page import panels, write_page
from modeling_dina.evaluation.statistics import estimate, verdict

ENSEMBLE = ("features",)
VARIANTS = {
    "votes": Variant("trained on all votes", "#009E73", evaluations=ENSEMBLE),
    "few_votes": Variant("trained on few votes", "#56B4E9", evaluations=ENSEMBLE),
    "scorer": Variant("pixel scorer, trained on few votes", "#000000", evaluations=("pictures",)),
    "distilled": Variant("distilled from the pixel scorer", "#0072B2", evaluations=ENSEMBLE),
}
# For each text: the variant that it says is better, and the other one.
CLAIMS = {
    "Distillation is better than training on the scorer's votes alone": ("distilled", "few_votes"),
    "Distillation is better than its scorer": ("distilled", "scorer"),
    "All votes are better than distillation": ("votes", "distilled"),
}
PARTS = {"scorer": "training the scorer", "labels": "labelling", "reward": "training the reward"}


def summarize(runs: dict[str, list[dict]], best: dict[str, dict]) -> dict[str, Any]:
    """Results of all variants or of some, from `DistillationStudy.run` of each seed and `measurement.best_reachable`
    by set."""

    def values(name: str, of: str, measure: str) -> np.ndarray:
        (evaluation,) = VARIANTS[name].evaluations
        return np.array([run["evaluations"][evaluation][of][measure] for run in runs[name]])

    def compare(better: str, worse: str) -> dict[str, Any]:
        found = {of: estimate(values(better, of, "accuracy") - values(worse, of, "accuracy")) for of in SETS}
        return {**found, "verdict": verdict(found["seen"])}

    return {
        "best": {of: estimate(np.array([found["accuracy"]])) for of, found in best.items()},
        "variants": [
            {
                "variant": name,
                **{of: {measure: estimate(values(name, of, measure)) for measure in MEASURES} for of in SETS},
                **{count: by_seed[0][count] for count in ("votes", "pairs")},
                # A median, because a process may have had to wait for others.
                "parts": {
                    part: float(np.median([run["parts"][part] for run in by_seed])) for part in by_seed[0]["parts"]
                },
            }
            for name, by_seed in runs.items()
        ],
        "claims": [{"text": text, **compare(*names)} for text, names in CLAIMS.items() if set(names) <= runs.keys()],
    }


def write_report(results: dict[str, Any], folder: Path) -> None:
    """Write `tables.md` and the figure."""
    tables = {"Variants": variants_table(results), "Claims": claims_table(results["claims"])}
    write_page(folder, "The distillation study", tables, {"accuracy": draw_accuracy(results)})


def variants_table(results: dict[str, Any]) -> list[dict[str, str]]:
    """A row for the best reachable, and for each variant: accuracy, numbers of pairs, and median minutes of each
    part."""
    rows = [{"title": "best reachable", **{of: percent(results["best"][of]) for of in SETS}}]
    for each in results["variants"]:
        minutes = {part: f"{seconds / 60:.1f}" for part, seconds in each["parts"].items()}
        minutes["all"] = f"{sum(each['parts'].values()) / 60:.1f}"
        rows.append(
            {
                "title": VARIANTS[each["variant"]].title,
                **{of: percent(each[of]["accuracy"]) for of in SETS},
                **{count: f"{each[count]:,}" for count in ("votes", "pairs")},
                **minutes,
            }
        )
    headings = {"title": "reward"} | {of: f"accuracy, {title}" for of, title in TITLES.items()}
    headings |= {"votes": "pairs with votes", "pairs": "pairs trained on"}
    headings |= {part: f"minutes, {title}" for part, title in {**PARTS, "all": "all"}.items()}
    return [{heading: row.get(name, "") for name, heading in headings.items()} for row in rows]


def claims_table(claims: list[dict]) -> list[dict[str, str]]:
    """A row for each claim with the difference of accuracies, in percentage points."""
    return [
        {
            "claim": claim["text"],
            **{f"points, {title}": percent(claim[of], "+") for of, title in TITLES.items()},
            "verdict": claim["verdict"],
        }
        for claim in claims
    ]


def draw_accuracy(results: dict[str, Any]) -> Figure:
    """Accuracy against the number of pairs with votes."""
    figure, (panel,) = panels(1, width=7, height=4)
    for each in results["variants"]:
        accuracy, variant = each["seen"]["accuracy"], VARIANTS[each["variant"]]
        error = [[abs(accuracy["mean"] - bound)] for bound in accuracy["interval"]]
        style: dict[str, Any] = {"color": variant.color, "label": variant.title, "fmt": "o", "capsize": 4}
        panel.errorbar([each["votes"]], [accuracy["mean"]], yerr=error, **style)
    panel.axhline(results["best"]["seen"]["mean"], color="#8C8C8C", linestyle="--", label="best reachable")
    panel.set(xlabel="pairs with votes", ylabel="accuracy", xscale="log")
    panel.legend(frameon=False, fontsize=9)
    return figure
