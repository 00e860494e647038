"""The command `dina score-dataset`."""

import json
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from modeling_dina import options
from modeling_dina.options import console


@options.with_option_groups
def score_dataset(
    source: Annotated[
        str,
        typer.Argument(
            help="Data set: a manifest (.csv, .jsonl or .parquet), a folder of images with metadata.csv, a pattern of "
            "WebDataset shards (.tar), a folder of cached latents, or a Hub id.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the scores; an interrupted run resumes.")],
    split: Annotated[str, typer.Option(help="Split of the data set.")] = "train",
    image_column: Annotated[
        str | None, typer.Option(help="Column with images. Default: the columns of type Image.")
    ] = None,
    prompt_column: Annotated[
        str | None, typer.Option(help="Column with prompts. Default: prompt, caption, text, txt or json.")
    ] = None,
    levels: Annotated[bool, typer.Option("--levels", help="Also write the score at each noise level.")] = False,
    shard_size: Annotated[int, typer.Option(help="Number of rows per shard.", min=1)] = 4096,
    shard: Annotated[
        str,
        typer.Option(
            metavar="I/N", help="Compute only part I of N, from 1 to N, for N processes or machines that share --out."
        ),
    ] = "1/1",
    batch_size: options.BatchSizeOption = 8,
    num_workers: Annotated[int, typer.Option(help="Number of processes that decode images.", min=0)] = 4,
    *,
    model: options.ModelOptions,
    ensemble: options.EnsembleOptions,
    as_json: options.JsonOption = False,
) -> None:
    """Score every row of a data set, in Parquet shards. An error is recorded for each row that cannot be scored; the
    exit code is 1 if no row could be scored."""
    options.quieten_libraries()
    from modeling_dina.dataset.run import score_dataset as run
    from modeling_dina.dataset.sources import open_source

    share = _share(shard)
    options.check_folder("out", out)
    columns = {"image_column": image_column, "prompt_column": prompt_column}
    rows = open_source(source, split=split, token=model.token, **columns)
    scorer = model.open_scorer(batch_size=batch_size)
    begun = time.monotonic()
    first, last = None, 0
    with options.scoring_progress() as show:

        def progress(done: int, total: int | None) -> None:
            nonlocal first, last
            first, last = done if first is None else first, done
            show(done, total)

        shards = run(
            scorer,
            rows,
            out,
            shard_size=shard_size,
            num_workers=num_workers,
            progress=progress,
            with_levels=levels,
            share=share,
            **ensemble.arguments(),
        )
    count, errors = shards.count()
    rate = (last - (first or 0)) / (time.monotonic() - begun)
    if as_json:
        print(json.dumps({"rows": count, "errors": errors, "rows_per_second": round(rate, 2), "out": str(out)}))
    else:
        console.print(f"{count} rows, {errors} with an error, {rate:.1f} rows/s: {escape(str(out))}")
    if errors == count > 0:
        options.fail(f"no row could be scored; see the column error in {shards.folder}", code=1)


def _share(text: str):
    from modeling_dina.dataset.shards import Share

    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise ValueError(f"shard: expected I/N with I from 1 to N, such as 2/4, got {text!r}")
    return Share(int(index) - 1, int(count))
