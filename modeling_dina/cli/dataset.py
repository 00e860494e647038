"""The command `dina score-dataset`."""

import json
import time
from collections.abc import Callable
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
    subset: Annotated[
        str | None, typer.Option(help="Subset (configuration) of the data set, if it has several.")
    ] = None,
    source_revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of a data set on the Hub.")
    ] = None,
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
    batch_size: options.AutoBatchSizeOption = None,
    num_workers: options.WorkersOption = None,
    device: Annotated[
        list[str] | None,
        typer.Option(
            help="Device, such as cuda:1; repeat it for several devices, with a process each. Default: cuda if "
            "available.",
            show_default=False,
        ),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Score on this Ray cluster, such as auto, or on a new one on this machine (local). It has one actor "
            "per --device, by default one per GPU of the cluster.",
        ),
    ] = None,
    dtype: options.DtypeOption = None,
    level_batching: options.LevelBatchingOption = False,
    *,
    model: options.SourceOptions,
    ensemble: options.EnsembleOptions,
    as_json: options.JsonOption = False,
) -> None:
    """Score every row of a data set, in Parquet shards. An error is recorded for each row that cannot be scored; the
    exit code is 1 if no row could be scored."""
    options.quieten_libraries()
    from modeling_dina.dataset.ranking import rank_within_groups
    from modeling_dina.dataset.shards import WHOLE
    from modeling_dina.dataset.sources import open_source

    share = _share(shard)
    options.check_folder("out", out)
    if ray is not None and share != WHOLE:
        raise ValueError(f"shard: expected none with a Ray cluster, which divides the work itself, got {shard}")
    if device and len({each.partition(":")[0] for each in device}) > 1:
        raise ValueError(f"device: expected devices of one kind, got {', '.join(device)}")
    columns = {"image_column": image_column, "prompt_column": prompt_column, "group_column": rank_within}
    part = {"split": split, "subset": subset, "revision": source_revision}
    open_rows = partial(open_source, source, token=model.token, **part, **columns)
    open_scorer = partial(
        options.open_scorer, source=model, dtype=dtype, batch_size=batch_size, level_batching=level_batching
    )
    model.check()
    if ray is None:
        workers = options.decoding_workers(num_workers, len(device or [None]))
        score = _on_this_machine(open_rows, open_scorer, device, num_workers=workers, share=share)
    else:
        score = _on_ray(ray, open_rows, open_scorer, devices=device, num_workers=num_workers)
    begun = time.monotonic()
    first, last = None, 0
    with options.scoring_progress() as show:

        def progress(done: int, total: int | None) -> None:
            nonlocal first, last
            first, last = done if first is None else first, done
            show(done, total)

        shards = score(out=out, shard_size=shard_size, progress=progress, with_levels=levels, **ensemble.arguments())
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


def _on_this_machine(open_rows: Callable, open_scorer: Callable, devices: list[str] | None, **options):
    """What scores with one scorer in this process, or with one process per device if there are several."""
    from modeling_dina.dataset.run import score_dataset
    from modeling_dina.dataset.scorers import DeviceScorers

    rows = open_rows()  # reports a bad source before a large model is loaded
    if devices is None or len(devices) == 1:
        return partial(score_dataset, open_scorer(devices[0] if devices else None), rows, **options)
    return partial(score_dataset, DeviceScorers(open_scorer, devices), rows, **options)


def _on_ray(address: str, open_rows: Callable, open_scorer: Callable, **options) -> Callable:
    """What scores on a Ray cluster."""
    try:
        from modeling_dina.dataset.on_ray import score_dataset_on_ray
    except ModuleNotFoundError as error:
        raise ValueError(f"ray: expected dina-lrm[ray] to be installed, got: {error}") from error
    return partial(score_dataset_on_ray, address, open_scorer, open_rows, **options)


def _share(text: str):
    from modeling_dina.dataset.shards import Share

    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise ValueError(f"shard: expected I/N with I from 1 to N, such as 2/4, got {text!r}")
    return Share(int(index) - 1, int(count))
