"""The alignment study as a page: what it found in words, its tables and its figures."""

from model_card.alignment.rows import DECODED, LATENT, ROWS
from model_card.markdown import figures_of, markdown

REWARDS = {"dina": "DiNa", "pixel": "pixel"}


def alignment_page(results: dict, figures: list[str]) -> str:
    """The page as Markdown; every number of it is in `results`."""
    settings, minutes = results["settings"], sum(results["seconds"].values()) / 60
    size, quality = settings["size"], results["reward_models"]
    return f"""# Aligning the small world's generator

`python -m model_card.alignment_study --out DIR`: {settings["seeds"]} seeds of every row, {minutes:.0f} minutes of
updates on {settings["device"]}. Measured on {size["eval_samples"]} samples, two for each caption, always from the
same noise; intervals of 95 % are over seeds and captions. The true utility is read off the picture, nobody optimises
it. DiNa is the embedded default with its own ensemble; the pixel reward was trained on the same kind of votes, sees
decoded pictures and agrees with a fresh annotator in {share(quality["pixel"])} % of the pairs of generated pictures
(DiNa: {share(quality["dina"])} %, best reachable {100 * quality["pixel"]["generated"]["best"]:.1f} %). "Kept" are the
weights at the evaluation where the reward that is watched, not optimised, was highest. Seconds and memory of an update
are measured side by side. Every number is in `results.json`.

The steps that carry the gradient and the learning rate of ReFL were chosen by short runs on DiNa's reward, by the true
utility under captions among these: its rows are that much too good, and ReFL on the pixel reward takes the same rate
without a choice of its own. The rates of all other algorithms are hardly searched, and their updates few.

## What it says

{answer(results)}

## Rows

{rows_table(results)}

## Best of N, without any update

{best_table(results)}

## What an update costs

{costs_table(results)}

## Stable Diffusion 3.5 Medium at {settings["resolution"]} pixels, one prompt an update

{full_size_table(results["full_size"])}

{figures_of(figures)}
"""


def share(quality: dict) -> str:
    """An accuracy on generated pictures in percent."""
    return f"{100 * quality['generated']['accuracy']:.1f}"


def answer(results: dict) -> str:
    """Whether the aim was reached, in words, whichever way it came out."""
    aim, rows = results["aim"], {row["row"]: row for row in results["rows"]}
    latent, decoded = rows[LATENT], rows[DECODED]
    memory = aim["peak_bytes"]["latent"] / aim["peak_bytes"]["pixel"]
    surely = {"held": "surely rises", "reversed": "surely falls", "undecided": "does not surely rise"}[aim["verdict"]]
    sentences = [
        f"With {ROWS[LATENT].title} the true utility {surely}: by {signed(aim['rise'])} from "
        f"{plain(results['unaligned']['utility'])}, with the weights that the watched pixel reward would keep (after "
        f"{updates_of(latent)} updates); after all {latent['last']['update']} updates the change is "
        f"{signed(latent['last']['utility']['rise'])}.",
        *(reached(name, target) for name, target in aim["targets"].items()),
        f"An update takes {latent['cost']['seconds'] / decoded['cost']['seconds']:.2f} times the seconds and "
        f"{memory:.2f} times the memory of one of {ROWS[DECODED].title}.",
        overoptimised(results["rows"]),
    ]
    return "\n".join(f"- {sentence}" for sentence in sentences)


def reached(name: str, target: dict) -> str:
    """How long it took to what the pixel reward led to."""
    what = "final" if name == "last" else "kept"
    known = (
        f"The pixel reward's {what} utility under ReFL, {target['utility']:.3f} after {target['pixel_seconds']:.0f} s"
    )
    if target["seconds"] is None:
        return f"{known}, is never reached on latents."
    if target["ratio"] is None:
        return f"{known}, is that of the unaligned generator."
    return f"{known}, is reached on noisy states after {target['seconds']:.0f} s: {target['ratio']:.2f} of its time."


def overoptimised(rows: list[dict]) -> str:
    """Which rows end below where they have been."""
    falling = []
    for row in rows:
        best = max(row["curve"], key=lambda point: point["utility"]["mean"])
        last, reward = row["last"], row["reward"]
        if last["utility"]["mean"] < best["utility"]["mean"] - last["utility"]["standard_error"]:
            falling.append(
                f"{ROWS[row['row']].title} ({best['utility']['mean']:.2f} after {best['update']} updates, "
                f"{last['utility']['mean']:.2f} at the end, while its own reward changes by "
                f"{last[reward]['mean'] - best[reward]['mean']:+.2f})"
            )
    if not falling:
        return "No row ends a standard error below the best utility of its way."
    return f"The true utility falls from its best by more than a standard error with {'; '.join(falling)}."


def rows_table(results: dict) -> str:
    """A line for each row."""
    lines = [
        (
            ROWS[row["row"]].title,
            REWARDS[row["reward"]],
            signed(row["kept"]["utility"]["rise"]),
            updates_of(row),
            signed(row["last"]["utility"]["rise"]),
            f"{row['last']['update']}",
            f"{row['last']['dina']['mean']:.2f}",
            f"{row['last']['pixel']['mean']:.2f}",
            f"{row['last']['diversity']['mean']:.2f}",
        )
        for row in results["rows"]
    ]
    before = results["unaligned"]
    values = (f"{before[name]['mean']:.2f}" for name in ("dina", "pixel", "diversity"))
    lines.insert(0, ("unaligned", "", plain(before["utility"]), "", "", "0", *values))
    header = ("row", "reward", "utility, kept", "after", "utility, last", "after", "DiNa", "pixel", "diversity")
    return markdown(header, lines)


def best_table(results: dict) -> str:
    """A line for each reward and N."""
    header = ("best of", "by", "utility", "DiNa", "pixel", "diversity")
    return markdown(
        header,
        [
            (
                f"{each['candidates']}",
                REWARDS[each["reward"]],
                signed(each["utility"]["rise"]),
                *(f"{each[name]['mean']:.2f}" for name in ("dina", "pixel", "diversity")),
            )
            for each in results["best_of_n"]
        ],
    )


def costs_table(results: dict) -> str:
    """A line for each row."""
    return markdown(
        ("row", "seconds", "MB beyond the weights", "GFLOPs"),
        [
            (
                ROWS[row["row"]].title,
                f"{row['cost']['seconds']:.2f}",
                f"{row['cost']['peak_bytes'] / 1e6:,.0f}",
                f"{row['cost']['flops'] / 1e9:,.0f}",
            )
            for row in results["rows"]
        ],
    )


def full_size_table(found: dict) -> str:
    """A line for each reward with FLOPs and bytes by part."""
    first = next(iter(found.values()))
    header = ("", *(f"TFLOPs, {part}" for part in first["flops"]), *(f"GB, {part}" for part in first["bytes"]))
    return markdown(
        header,
        [
            (
                name,
                *(f"{value / 1e12:,.1f}" for value in parts["flops"].values()),
                *(f"{value / 1e9:,.2f}" for value in parts["bytes"].values()),
            )
            for name, parts in found.items()
        ],
    )


def updates_of(row: dict) -> str:
    """After how many updates each seed's weights were kept."""
    return ", ".join(map(str, row["kept"]["updates"]))


def plain(found: dict) -> str:
    """An estimate with its interval."""
    low, high = found["interval"]
    return f"{found['mean']:.2f} [{low:.2f}, {high:.2f}]"


def signed(found: dict) -> str:
    """A difference with its interval."""
    low, high = found["interval"]
    return f"{found['mean']:+.2f} [{low:+.2f}, {high:+.2f}]"
