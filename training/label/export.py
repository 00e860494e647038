"""Convert votes to preference data: `python -m training.label.export VOTES`.

VOTES/data then has the pairs in the schema of `training.preference_data.schema`, and VOTES/errors.jsonl the pairs
whose pictures are missing.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from datasets import Dataset, disable_progress_bars

from modeling_dina.options import exit_on_bad_input
from training.label.pairs import Pair, read_pairs
from training.label.quality import preferences_by_pair
from training.label.votes import Vote, read_votes
from training.preference_data.schema import PAIR_FEATURES, as_pairs, write_pairs

SOURCE = "votes"
AnnotatorsOption = Annotated[
    bool,
    typer.Option("--annotators", help="Write one row per pair and annotator, with the annotator's name."),
]


def export_votes(
    votes: Sequence[Vote], pairs: dict[str, Pair], *, annotators: bool = False, embed: bool = False
) -> tuple[Dataset, list[dict[str, str]]]:
    """
    Votes as preference data.

    An annotator has one vote on a pair: the mean of their votes, if the pair was repeated. The target is the mean over
    annotators, with 0.5 for a tie and for two bad pictures, and the weight is the number of annotators, so that the
    weighted log-likelihood of the target is that of all votes. Skipped pairs are left out.

    Args:
        votes: votes that stand.
        pairs: pairs by key.
        annotators: whether there is one row per pair and annotator, with a column "annotator"; otherwise one per pair,
            without names.
        embed: whether rows contain the bytes of the pictures and no paths, in place of paths alone.

    Returns:
        Pairs in the order of the first vote, and {"name", "error"} of pairs whose pictures are missing.
    """
    columns: dict[str, list[Any]] = {name: [] for name in PAIR_FEATURES}
    names, failures = [], []
    for key, by_name in preferences_by_pair(votes).items():
        pair = pairs[key]
        try:
            cells = [_cell(path, embed) for path in (pair.image_a, pair.image_b)]
        except OSError as error:
            failures.append({"name": f"pair {key}", "error": f"image: expected a file that can be read, got {error}"})
            continue
        means = {name: sum(own) / len(own) for name, own in by_name.items()}
        rows = [([name], mean) for name, mean in means.items()] if annotators else [(list(means), _mean(means))]
        for voters, target in rows:
            row = pair.prompt, *cells, target, float(len(voters)), SOURCE
            for column, value in zip(columns.values(), row, strict=True):
                column.append(value)
            names.append(voters[0])
    dataset = as_pairs(Dataset.from_dict(columns, features=PAIR_FEATURES))
    return dataset.add_column("annotator", names) if annotators else dataset, failures


def _mean(means: dict[str, float]) -> float:
    return sum(means.values()) / len(means)


def _cell(path: str, embed: bool) -> dict[str, Any]:
    if embed:
        return {"bytes": Path(path).read_bytes(), "path": None}
    Path(path).stat()
    return {"bytes": None, "path": path}


def write_export(
    folder: Path, out: Path, *, annotators: bool = False, embed: bool = False
) -> tuple[int, list[dict[str, str]]]:
    """
    Write the votes in `folder` as preference data to `out`, which may be the same folder.

    Returns:
        Number of rows, and {"name", "error"} of pairs whose pictures are missing.

    Raises:
        ValueError: the folder has no votes.
    """
    dataset, failures = export_votes(read_votes(folder), read_pairs(folder), annotators=annotators, embed=embed)
    if not len(dataset):
        raise ValueError(f"votes: expected votes on pairs that can be read, got none in {folder}")
    write_pairs(out, dataset, failures)
    return len(dataset), failures


def main(
    votes: Annotated[Path, typer.Argument(help="Folder with votes, written by training.label.")],
    annotators: AnnotatorsOption = False,
) -> None:
    """Write votes as preference data, ready for training.encode_latents."""
    with exit_on_bad_input():
        rows, failures = write_export(votes, votes, annotators=annotators)
    typer.echo(f"{rows} rows in {votes / 'data'}, {len(failures)} pairs without pictures", err=True)


app = typer.Typer(pretty_exceptions_enable=False)
app.command()(main)

if __name__ == "__main__":
    disable_progress_bars()  # `datasets` prints one per file
    app()
