"""The study as a page: what it found in words, its tables and its figures."""

from model_card.markdown import figures_of, markdown
from model_card.study.measurement import SWEEP
from model_card.study.rows import ROWS
from model_card.study.summary import SETS

READING_TITLES = {
    "one level": "one level",
    "features": "ensemble, features",
    "mean": "ensemble, mean",
    "precision": "ensemble, precision",
    "clean": "clean",
    "decoded": "latents, through the decoder",
    "pictures": "pictures",
}


def study_page(results: dict, figures: list[str]) -> str:
    """The page as Markdown."""
    settings, minutes = results["settings"], sum(results["seconds"].values()) / 60
    size = settings["size"]
    answers = "\n\n".join(f"**{question}** {words}" for question, words in results["answers"].items())
    return f"""# The method's claims in the small world

`python -m model_card.world_study --out DIR`: every row was trained with {settings["seeds"]} seeds for {size["steps"]}
steps on the same {size["train_groups"]} captions with four pictures each, in all six pairs with annotators' votes, in
{minutes:.0f} minutes on {settings["device"]}. Measured on {size["test_groups"]} captions of seen combinations of
colour and shape, and as many of held-out ones. Accuracy is the probability that a fresh annotator agrees, with an
interval of 95 % over seeds and captions; log-likelihood is that of its vote, in nats. The ensemble reads the noise
levels {", ".join(f"{level:g}" for level in settings["ensemble"]["levels"])} with {settings["ensemble"]["draws"]} draws
each, one level is {settings["ensemble"]["levels"][0]:g} with one draw. A comparison of two images costs what it takes
from the text and the latents, or the pictures, on. Every number is in `results.json`.

## What it says

{answers}

## Rows

{rows_table(results)}

## Claims

{claims_table(results["claims"])}

## Accuracy by noise level

{levels_table(results["levels"])}

{figures_of(figures)}
"""


def rows_table(results: dict) -> str:
    """A line for each reading of each row."""
    header = (
        "row",
        "read",
        *("accuracy, " + name.replace("_", "-") for name in SETS),
        "calibration error",
        "log-likelihood",
        "MFLOPs",
        "ms",
    )
    best = [results["best"][name] for name in SETS]
    lines = [
        (
            "best reachable",
            "",
            *(share(found["accuracy"]) for found in best),
            "0",
            f"{best[0]['log_likelihood']['mean']:.4f}",
            "",
            "",
        )
    ]
    for each in results["rows"]:
        seen = each["seen"]
        lines.append(
            (
                ROWS[each["row"]].title,
                READING_TITLES[each["reading"]],
                *(share(each[name]["accuracy"]) for name in SETS),
                f"{seen['calibration_error']:.3f}",
                f"{seen['log_likelihood']['mean']:.4f}",
                f"{each['flops'] / 1e6:,.0f}",
                f"{each['seconds'] * 1e3:.1f}",
            )
        )
    return markdown(header, lines)


def claims_table(claims: list[dict]) -> str:
    """A line for each claim with the difference of accuracies, in percentage points."""
    lines = []
    for claim in claims:
        differences = [claim[name]["accuracy"] for name in SETS]
        lines.append((claim["text"], *(share(difference, sign="+") for difference in differences), claim["verdict"]))
    return markdown(("claim", *(f"points, {name.replace('_', '-')}" for name in SETS), "verdict"), lines)


def levels_table(levels: dict[str, list[dict]]) -> str:
    """A line for each row, on seen combinations; a model of pictures sees decoded noisy latents."""
    lines = [
        (ROWS[row].title, *(f"{100 * point['accuracy']:.1f}" for point in curve)) for row, curve in levels.items()
    ]
    return markdown(("row", *(f"{sigma:g}" for sigma in SWEEP)), lines)


def share(found: dict, sign: str = "") -> str:
    """An estimate with its interval, in percent."""
    low, high = found["interval"]
    return f"{100 * found['mean']:{sign}.1f} [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"
