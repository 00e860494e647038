"""The command `dina`. Each subcommand parses its options, makes one call and prints the result."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table
from typer.core import TyperGroup

from modeling_dina import options
from modeling_dina.cli.dataset import score_dataset
from modeling_dina.cli.evaluation import calibrate, evaluate
from modeling_dina.cli.serving import serve
from modeling_dina.files import atomic_path
from modeling_dina.options import console

# The extra of the package that a command needs.
EXTRAS = {"score-dataset": "dataset", "serve": "serving", "evaluate": "evaluation", "calibrate": "evaluation"}
PLOT_SUFFIXES = (".png", ".pdf", ".svg", ".jpg", ".jpeg", ".webp")

ImagesArgument = Annotated[list[Path], typer.Argument(help="Image files.", metavar="IMAGE")]
PromptOption = Annotated[str, typer.Option(help="Prompt for which all images are scored.")]


class _Commands(TyperGroup):
    """Every command ends with one line on stderr and exit code 2 on bad input, or if its extra is not installed."""

    def invoke(self, ctx):
        try:
            with options.exit_on_bad_input():
                return super().invoke(ctx)
        except ModuleNotFoundError as error:
            extra = EXTRAS.get(ctx.invoked_subcommand)
            if extra is None:
                raise
            options.fail(f"{ctx.invoked_subcommand}: expected dina-lrm[{extra}] to be installed, got: {error}", error)


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    help="Score, compare and rank images for a prompt with a DiNa latent reward model.",
)


@app.command()
@options.with_option_groups
def score(
    images: ImagesArgument,
    prompt: Annotated[
        list[str], typer.Option(help="Prompt: one for all images, or one per image, in the same order.")
    ],
    *,
    model: options.ModelOptions,
    ensemble: options.EnsembleOptions,
    as_json: options.JsonOption = False,
) -> None:
    """Score images for their prompts. Scores of different prompts are not comparable."""
    prompts = prompt * len(images) if len(prompt) == 1 else prompt
    result = model.open_scorer().score(prompts=prompts, images=images, **ensemble.arguments())
    if as_json:
        return _print_json(result.to_dict())
    table = Table("image", "prompt", "score", "spread over draws")
    for image, text, value, spread in zip(images, prompts, result.scores, result.spread, strict=True):
        table.add_row(escape(str(image)), escape(text), f"{value:+.4f}", _number(spread))
    console.print(table)


@app.command()
@options.with_option_groups
def compare(
    image_a: Annotated[Path, typer.Argument(help="File of the first image.")],
    image_b: Annotated[Path, typer.Argument(help="File of the second image.")],
    prompt: PromptOption,
    *,
    model: options.ModelOptions,
    ensemble: options.EnsembleOptions,
    as_json: options.JsonOption = False,
    plot: Annotated[
        Path | None, typer.Option(help="Write a figure of both images and their rewards at each noise level.")
    ] = None,
) -> None:
    """Compare two images: the probability that the first is preferred, and its uncertainty."""
    from modeling_dina.images_dina import load_image

    if plot is not None:
        options.check_output("plot", plot, PLOT_SUFFIXES)
    images = [load_image(image_a, "IMAGE_A"), load_image(image_b, "IMAGE_B")]
    result = model.open_scorer().compare(
        prompt=prompt, images=images, with_levels=plot is not None, **ensemble.arguments()
    )
    if plot is not None:
        from modeling_dina.plotting import plot_comparison

        plot_comparison(plot, prompt, images, result)
    if as_json:
        return _print_json(result.to_dict())
    _print_comparison(prompt, [image_a, image_b], result)
    if plot is not None:
        console.print(f"wrote {escape(str(plot))}")


@app.command()
@options.with_option_groups
def rank(
    images: Annotated[list[Path] | None, typer.Argument(help="Image files for one prompt.", metavar="IMAGE")] = None,
    prompt: Annotated[str | None, typer.Option(help="Prompt for which the images are ranked.")] = None,
    manifest: Annotated[
        Path | None,
        typer.Option(help="Table of images, as .csv, .jsonl or .parquet, with the columns prompt and image."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Table to write for a manifest, as .csv, .jsonl or .parquet. An interrupted run resumes."),
    ] = None,
    batch_size: options.AutoBatchSizeOption = None,
    num_workers: options.WorkersOption = None,
    *,
    model: options.ModelOptions,
    ensemble: options.EnsembleOptions,
    as_json: options.JsonOption = False,
) -> None:
    """Rank images for one prompt, or all rows of a manifest within their prompts. The table records an error for each
    row that cannot be scored; the exit code is 1 if no row could be scored."""
    noise = ensemble.arguments()
    if manifest is None and out is None and prompt is not None and images:
        result = model.open_scorer(batch_size=batch_size).rank(prompt=prompt, images=images, **noise)
        return _print_json(result.to_dict()) if as_json else _print_ranking(prompt, images, result)
    if manifest is None or out is None or prompt is not None or images:
        raise ValueError("rank: expected --prompt and image files, or --manifest and --out, got another combination")

    options.quieten_libraries()
    from modeling_dina.dataset.manifests import TABLE_SUFFIXES, Manifest
    from modeling_dina.manifest import rank_manifest

    options.check_output("out", out, TABLE_SUFFIXES)
    if out.exists():
        raise ValueError(f"out: expected a new file, got {out}, which exists")
    Manifest(manifest)  # reports a bad manifest before a large model is loaded
    scorer = model.open_scorer(batch_size=batch_size)
    with options.scoring_progress() as advance:
        workers = options.decoding_workers(num_workers)
        rows, errors, first_error = rank_manifest(
            scorer, manifest, out, num_workers=workers, progress=advance, **noise
        )
    if as_json:
        _print_json({"rows": rows, "errors": errors, "out": str(out)})
    else:
        console.print(f"{rows} rows, {errors} with an error: {escape(str(out))}")
    if errors == rows:
        options.fail(f"no row could be scored; row 0: {first_error}", code=1)


@app.command()
@options.with_option_groups
def convert(
    checkpoint: Annotated[
        str, typer.Argument(help="Checkpoint in the published layout: a folder or a Hub id.", show_default=False)
    ],
    out_dir: Annotated[Path, typer.Argument(help="New folder for the converted model.")],
    *,
    source: options.LoadingOptions,
    keep_adapter: Annotated[
        bool, typer.Option("--keep-adapter", help="Write only LoRA and head, which are loaded on top of the backbone.")
    ] = False,
) -> None:
    """Convert a published checkpoint to a folder that AutoModel can load."""
    options.quieten_libraries()
    from modeling_dina.modeling_dina import DinaRewardModel

    out_dir = out_dir.absolute()
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise ValueError(f"OUT_DIR: expected a new or an empty folder, got {out_dir}")
    options.check_model(checkpoint, "CHECKPOINT")
    named = source.backbone or "the backbone it names"
    with options.loading("CHECKPOINT, backbone", f"{checkpoint} on {named}"):
        model = DinaRewardModel.from_official(checkpoint, keep_adapter=keep_adapter, **source.loading_arguments())
    with atomic_path(out_dir) as partial:
        model.save_pretrained(partial, adapter_only=keep_adapter)
    console.print(f"wrote {escape(str(out_dir))}")


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="Model folder with config.json, weights and other files to publish.")],
    repo_id: Annotated[
        str, typer.Argument(metavar="OWNER/NAME", help="Model repository on the Hub; created if it does not exist.")
    ],
    public: Annotated[
        bool,
        typer.Option(
            "--public", help="Create a public repository, not a private one. An existing one keeps its visibility."
        ),
    ] = False,
    tag: Annotated[str | None, typer.Option(help="New Git tag for the commit, such as v1.0.")] = None,
) -> None:
    """Push a model to the Hub in one commit. The token comes from HF_TOKEN or `hf auth login`."""
    from modeling_dina.hub.push import check_model_folder, push_folder

    check_model_folder(folder)
    commit = push_folder(folder, repo_id, private=not public, tag=tag)
    console.print(commit.commit_url, soft_wrap=True)


@app.command()
@options.with_option_groups
def info(model: options.SourceOptions, as_json: options.JsonOption = False) -> None:
    """Show a model's configuration, its size, and where its text encoders and VAE come from."""
    options.quieten_libraries()
    from modeling_dina.modeling_dina import DinaRewardModel

    model.check()
    with options.loading("model", model.model):
        loaded = DinaRewardModel.from_pretrained(model.model, dtype="auto", **model.loading_arguments())
    parts = {"backbone": loaded.backbone, "head": loaded.head}
    config = loaded.config
    sizes = config.dimensions
    facts = {
        "model": model.model,
        "parameters": {name: sum(weight.numel() for weight in part.parameters()) for name, part in parts.items()},
        "bytes": sum(weight.nbytes for weight in loaded.parameters()),
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "latents": [sizes.latent_channels, sizes.training_side, sizes.training_side],
        "conditioning": loaded.conditioning_location()[:2] if config.conditioning_source else None,
        "config": config.to_diff_dict(),
    }
    _print_json(facts) if as_json else _print_info(facts)


app.command()(score_dataset)
app.command()(evaluate)
app.command()(calibrate)
app.command()(serve)


def _print_comparison(prompt: str, images: list[Path], result) -> None:
    table = Table("", "image", "score", "spread over draws", "preferred with probability", title=escape(prompt))
    probabilities = (result.win_probability, 1 - result.win_probability)
    for name, image, value, spread, probability in zip(
        "AB", images, result.scores, result.spread, probabilities, strict=True
    ):
        table.add_row(name, escape(str(image)), f"{value:+.4f}", _number(spread), f"{probability:.3f}")
    console.print(table)
    console.print(
        f"uncertainty: {result.entropy:.2f} nats ({result.disagreement:.3f} from noise levels and draws); "
        f"standard error of the score difference: {_number(result.difference_error)}"
    )


def _print_ranking(prompt: str, images: list[Path], result) -> None:
    table = Table("rank", "image", "score", "probability of beating the next", title=escape(prompt))
    probabilities = [f"{each:.3f}" for each in result.probability(result.order[:-1], result.order[1:])]
    for place, (index, beats) in enumerate(zip(result.order, [*probabilities, ""], strict=True), start=1):
        table.add_row(str(place), escape(str(images[index])), f"{result.scores[index]:+.4f}", beats)
    console.print(table)


def _print_info(facts: dict[str, Any]) -> None:
    table = Table("", escape(facts["model"]))
    for name, count in facts["parameters"].items():
        table.add_row(f"{name} parameters", f"{count:,}")
    table.add_row("weights", f"{facts['bytes'] / 1e6:,.1f} MB in {facts['dtype']}")
    table.add_row("trained on latents", " x ".join(map(str, facts["latents"])))
    place, revision = facts["conditioning"] or ("nothing", None)
    table.add_row("conditioned by", escape(place if revision is None else f"{place} at {revision}"))
    table.add_section()
    for name, value in facts["config"].items():
        table.add_row(name, escape(str(value)))
    console.print(table)


def _number(value) -> str:
    # The spread of a single draw is NaN.
    return f"{value:.4f}" if value == value else "unknown (one draw)"


def _print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value, allow_nan=False))
