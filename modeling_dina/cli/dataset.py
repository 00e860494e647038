"""The command `dina score-dataset`."""

import json
import time
from functools import partial
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
    rank_within: Annotated[
        str | None,
        typer.Option(
            help="Column with the names of groups, such as prompt: also rank the images of each group, once all rows "
            "are scored. Of WebDataset shards, a field of .json."
        ),
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
    num_workers: options.WorkersOption = None,
    device: Annotated[
        list[str] | None,
        typer.Option(
            help="Device, such as cuda:1; repeat it for several devices, with a process each. Default: cuda if "
            "available.",
            show_default=False,
        ),
    ] = None,
    dtype: options.DtypeOption = None,
    *,
    model: options.SourceOptions,
    ensemble: options.EnsembleOptions,
    as_json: options.JsonOption = False,
) -> None:
    """Score every row of a data set, in Parquet shards. An error is recorded for each row that cannot be scored; the
    exit code is 1 if no row could be scored."""
    options.quieten_libraries()
    from modeling_dina.dataset.ranking import rank_within_groups
    from modeling_dina.dataset.run import score_dataset as run
    from modeling_dina.dataset.shards import WHOLE
    from modeling_dina.dataset.sources import open_source

    share = _share(shard)
    options.check_folder("out", out)
    columns = {"image_column": image_column, "prompt_column": prompt_column, "group_column": rank_within}
    rows = open_source(source, split=split, token=model.token, **columns)
    scorer = _open_scorers(device, model, dtype, batch_size)
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
            num_workers=options.decoding_workers(num_workers, len(device or [None])),
            progress=progress,
            with_levels=levels,
            share=share,
            **ensemble.arguments(),
        )
    rate = (last - (first or 0)) / (time.monotonic() - begun)
    if rank_within is not None and share == WHOLE:
        rank_within_groups(shards, out / "ranked")
    count, errors = shards.count()
    if as_json:
        print(json.dumps({"rows": count, "errors": errors, "rows_per_second": round(rate, 2), "out": str(out)}))
    else:
        console.print(f"{count} rows, {errors} with an error, {rate:.1f} rows/s: {escape(str(out))}")
    if errors == count > 0:
        options.fail(f"no row could be scored; see the column error in {shards.folder}", code=1)


def _open_scorers(devices: list[str] | None, source: options.SourceOptions, dtype: str | None, batch_size: int):
    """A scorer, or several for more than one device."""
    if devices is None or len(devices) == 1:
        return options.open_scorer(devices[0] if devices else None, source, dtype, batch_size=batch_size)
    from modeling_dina.dataset.scorers import DeviceScorers

    if len({device.partition(":")[0] for device in devices}) > 1:
        raise ValueError(f"device: expected devices of one kind, got {', '.join(devices)}")
    source.check()
    open_scorer = partial(options.open_scorer, source=source, dtype=dtype, batch_size=batch_size)
    return DeviceScorers(open_scorer, devices, batch_size)


def _share(text: str):
    from modeling_dina.dataset.shards import Share

    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise ValueError(f"shard: expected I/N with I from 1 to N, such as 2/4, got {text!r}")
    return Share(int(index) - 1, int(count))
