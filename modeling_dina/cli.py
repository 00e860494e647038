"""`dina`: the reward model on the command line. Each command parses its options, makes one call, and prints."""

import inspect
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass
from enum import Enum
from functools import wraps
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, NoReturn, get_type_hints

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from typer.core import TyperGroup

# Whatever needs torch is imported inside the command that needs it, so that `dina --help` answers at once.

EMBEDDED_MODEL = str(Path(__file__).parent / "tiny")
COMMAND_GROUP = "dina.commands"
EMBEDDED_NOTE = "The embedded model judges 64 x 64 scenes of coloured shapes and nothing else; --model names another."
PLOT_SIGMAS = [level / 10 for level in range(1, 10)]
PLOT_DRAWS = 8
PLOT_SUFFIXES = (".png", ".pdf", ".svg", ".jpg", ".jpeg", ".webp")

console = Console()
error_console = Console(stderr=True)


class _Commands(TyperGroup):
    """The commands of this file and those that other packages enter under `dina.commands`, which this one need not
    know. Bad input ends in one paragraph on stderr and exit code 2, whichever command it was given to."""

    def list_commands(self, ctx):
        return [*super().list_commands(ctx), *sorted(entry_points(group=COMMAND_GROUP).names)]

    def get_command(self, ctx, cmd_name):
        entered = entry_points(group=COMMAND_GROUP)
        if cmd_name not in entered.names:
            return super().get_command(ctx, cmd_name)
        other = typer.Typer(add_completion=False)
        other.command(cmd_name)(entered[cmd_name].load())
        return typer.main.get_command(other)

    def invoke(self, ctx):
        try:
            with exit_on_bad_input():
                return super().invoke(ctx)
        except ModuleNotFoundError as error:
            entered = entry_points(group=COMMAND_GROUP)
            if ctx.invoked_subcommand not in entered.names:
                raise
            extras = ", ".join(entered[ctx.invoked_subcommand].extras)
            _fail(f"{ctx.invoked_subcommand}: expected dina-lrm[{extras}] to be installed, got: {error}", error)


@contextmanager
def exit_on_bad_input() -> Iterator[None]:
    """
    Ends the program on bad input, with one line on stderr and exit code 2.

    Every entry point of the project puts it around what reads and checks its input. What trains for hours stays
    outside: a fault there is no bad input, and keeps its traceback.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except (ValueError, TypeError, OSError) as error:
        _fail(str(error), error)


def _fail(message: str, cause: Exception) -> NoReturn:
    message = " ".join(message.split())
    error_console.print(f"[bold red]Error:[/] {escape(message)}", soft_wrap=True, highlight=False)
    raise SystemExit(2) from cause


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    help="Score, compare and rank images for a prompt with a DiNa latent reward model.",
)


class Mode(str, Enum):
    """How noise levels are combined, as the model's config names it."""

    features = "features"
    mean = "mean"
    precision = "precision"


class Dtype(str, Enum):
    """Names of torch's floating-point types."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def _noise_levels(text: str) -> list[float]:
    try:
        levels = [float(part) for part in text.split(",")]
    except ValueError:
        levels = []
    if not levels or not all(0 <= level <= 1 for level in levels):
        raise typer.BadParameter(f"expected noise levels in [0, 1] such as 0.2,0.5,0.7, got {text!r}")
    return levels


@dataclass
class HubOptions:
    """How a command reaches the Hub."""

    cache_dir: Annotated[
        Path | None, typer.Option(help="Folder of downloads from the Hub. Default: the Hub's own.")
    ] = None
    token: Annotated[
        str | None, typer.Option(help="Access token of the Hub. Default: HF_TOKEN, or that of `hf auth login`.")
    ] = None
    local_files_only: Annotated[
        bool, typer.Option("--local-files-only", help="Read what has been downloaded already, without a network.")
    ] = False

    def hub_arguments(self) -> dict[str, Any]:
        """Those that are given, as keyword arguments of the loaders of transformers and diffusers."""
        given = {
            "cache_dir": None if self.cache_dir is None else str(self.cache_dir),
            "token": self.token,
            "local_files_only": self.local_files_only,
        }
        return {name: value for name, value in given.items() if value}


@dataclass
class SourceOptions(HubOptions):
    """Which reward model a command reads."""

    model: Annotated[
        str, typer.Option(help="A folder or a Hub id. Default: the small model in the package.", show_default=False)
    ] = EMBEDDED_MODEL
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub id.")] = None

    def check(self) -> None:
        """Refuse a path that leads nowhere, which would be taken for a Hub id; point out the embedded model."""
        check_model(self.model)
        if self.model == EMBEDDED_MODEL:
            error_console.print(EMBEDDED_NOTE, style="dim", highlight=False)


@dataclass
class ModelOptions(SourceOptions):
    """Which reward model a command computes with, where, and in which precision."""

    device: Annotated[
        str | None, typer.Option(help="Device: cpu, cuda, cuda:1 and so on. Default: cuda if there is one.")
    ] = None
    dtype: Annotated[Dtype | None, typer.Option(help="Floating-point type. Default: that of the weights.")] = None

    def open_scorer(self, **options):
        """The `DinaScorer` that the options describe; ValueError that names the option at fault."""
        import torch

        quieten_libraries()
        from .scoring_dina import DinaScorer

        device = usable_device(self.device)
        self.check()
        dtype = None if self.dtype is None else getattr(torch, self.dtype.value)
        with loading("model", self.model):
            return DinaScorer.from_pretrained(
                self.model, device=device, dtype=dtype, revision=self.revision, **self.hub_arguments(), **options
            )


@dataclass
class EnsembleOptions:
    """The options of a command that scores images: the noise of the ensemble."""

    sigmas: Annotated[
        Any,
        typer.Option(parser=_noise_levels, metavar="0.2,0.5,…", help="Noise levels in [0, 1]. Default: the model's."),
    ] = None
    draws: Annotated[int | None, typer.Option(min=1, help="Noise draws at each level. Default: the model's.")] = None
    mode: Annotated[Mode | None, typer.Option(help="How levels are combined. Default: the model's.")] = None
    seed: Annotated[int, typer.Option(min=0, help="Seed of the noise.")] = 0

    def arguments(self) -> dict[str, Any]:
        """As keyword arguments of `DinaScorer.score`."""
        mode = None if self.mode is None else self.mode.value
        return {"sigmas": self.sigmas, "num_draws": self.draws, "mode": mode, "seed": self.seed}


def with_option_groups(command: Callable) -> Callable:
    """Let a command take dataclasses such as `ModelOptions`: each of their fields becomes an option of its own."""
    signature, hints = inspect.signature(command), get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    parameters = []
    for name, parameter in signature.parameters.items():
        if name in groups:
            types = get_type_hints(groups[name], include_extras=True)
            options = inspect.signature(groups[name]).parameters.values()
            parameters += [each.replace(annotation=types[each.name], kind=each.KEYWORD_ONLY) for each in options]
        else:
            parameters.append(parameter.replace(annotation=hints[name], kind=parameter.KEYWORD_ONLY))

    @wraps(command)
    def call(**values):
        grouped = {
            name: group(**{option: values.pop(option) for option in inspect.signature(group).parameters})
            for name, group in groups.items()
        }
        return command(**values, **grouped)

    call.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return call


ImagesArgument = Annotated[list[Path], typer.Argument(help="Image files.", metavar="IMAGE")]
PromptOption = Annotated[str, typer.Option(help="The prompt that all images are scored for.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@app.command()
@with_option_groups
def score(
    images: ImagesArgument,
    prompt: Annotated[list[str], typer.Option(help="One for all images, or one for each, in their order.")],
    *,
    model: ModelOptions,
    ensemble: EnsembleOptions,
    as_json: JsonOption = False,
) -> None:
    """Score images, each for its prompt. Scores of different prompts do not compare."""
    prompts = prompt * len(images) if len(prompt) == 1 else prompt
    result = model.open_scorer().score(prompts=prompts, images=images, **ensemble.arguments())
    if as_json:
        return _print_json(result.to_dict())
    table = Table("image", "prompt", "score", "spread over draws")
    for image, text, value, spread in zip(images, prompts, result.scores, result.spread, strict=True):
        table.add_row(escape(str(image)), escape(text), f"{value:+.4f}", _number(spread))
    console.print(table)


@app.command()
@with_option_groups
def compare(
    image_a: Annotated[Path, typer.Argument(help="The first image.")],
    image_b: Annotated[Path, typer.Argument(help="The second image.")],
    prompt: PromptOption,
    *,
    model: ModelOptions,
    ensemble: EnsembleOptions,
    as_json: JsonOption = False,
    plot: Annotated[
        Path | None, typer.Option(help="Write a figure: both images, and their rewards at every noise level.")
    ] = None,
) -> None:
    """Say which of two images is preferred, how probably, and how sure that is."""
    from .images_dina import load_image

    if plot is not None:
        check_output("plot", plot, PLOT_SUFFIXES)
    images = [load_image(image_a, "IMAGE_A"), load_image(image_b, "IMAGE_B")]
    scorer = model.open_scorer()
    result = scorer.compare(prompt=prompt, images=images, **ensemble.arguments())
    if plot is not None:
        at_levels = EnsembleOptions(PLOT_SIGMAS, max(ensemble.draws or 0, PLOT_DRAWS), Mode.mean, ensemble.seed)
        levels = scorer.compare(prompt=prompt, images=images, **at_levels.arguments())

        from .plotting import plot_comparison

        plot_comparison(plot, prompt, images, result, levels)
    if as_json:
        return _print_json(result.to_dict())
    _print_comparison(prompt, [image_a, image_b], result)
    if plot is not None:
        console.print(f"wrote {escape(str(plot))}", highlight=False)


@app.command()
@with_option_groups
def rank(
    images: Annotated[list[Path] | None, typer.Argument(help="Image files of one prompt.", metavar="IMAGE")] = None,
    prompt: Annotated[str | None, typer.Option(help="What the images are judged by.")] = None,
    manifest: Annotated[
        Path | None, typer.Option(help="A .csv, .jsonl or .parquet file with the columns prompt and image.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Table to write for a manifest: .csv, .jsonl or .parquet. An interrupted run goes on."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in memory at a time.")] = 8,
    *,
    model: ModelOptions,
    ensemble: EnsembleOptions,
    as_json: JsonOption = False,
) -> None:
    """Rank images of one prompt, or all rows of a manifest within their prompts. A row that cannot be scored has an
    error in the table; the exit code is 1 if no row could be scored."""
    options = ensemble.arguments()
    if manifest is None and out is None and prompt is not None and images:
        result = model.open_scorer(batch_size=batch_size).rank(prompt=prompt, images=images, **options)
        return _print_json(result.to_dict()) if as_json else _print_ranking(prompt, images, result)
    if manifest is None or out is None or prompt is not None or images:
        raise ValueError("rank: expected --prompt and image files, or --manifest and --out, got another combination")

    quieten_libraries()
    from .manifest import TABLE_SUFFIXES, rank_manifest, read_manifest

    check_output("out", out, TABLE_SUFFIXES)
    if out.exists():
        raise ValueError(f"out: expected a new file, got {out}, which exists")
    read_manifest(manifest)  # a bad one is told of before a large model is loaded
    scorer = model.open_scorer(batch_size=batch_size)
    with scoring_progress() as advance:
        table = rank_manifest(scorer, manifest, out, progress=advance, **options)
    errors = int(table["error"].notna().sum())
    if as_json:
        _print_json({"rows": len(table), "errors": errors, "out": str(out)})
    else:
        console.print(f"{len(table)} rows, {errors} with an error: {escape(str(out))}", highlight=False)
    if errors == len(table):
        first = f"row {table['row'][0]}: {table['error'][0]}"
        message = f"[bold red]Error:[/] no row could be scored; {escape(first)}"
        error_console.print(message, soft_wrap=True, highlight=False)
        raise typer.Exit(1)


@app.command()
@with_option_groups
def convert(
    official_dir: Annotated[Path, typer.Argument(help="A folder of the published layout.")],
    out_dir: Annotated[Path, typer.Argument(help="A new folder.")],
    backbone: Annotated[
        str | None,
        typer.Option(help="The diffusion model it was trained on: a diffusers folder or a Hub id. Default: as named."),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a backbone on the Hub.")] = None,
    *,
    hub: HubOptions,
    keep_adapter: Annotated[
        bool, typer.Option("--keep-adapter", help="Write LoRA and head alone, to be read on top of the backbone.")
    ] = False,
) -> None:
    """Convert a published checkpoint to a folder that AutoModel loads."""
    quieten_libraries()
    from .modeling_dina import DinaRewardModel

    out_dir = out_dir.absolute()
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise ValueError(f"OUT_DIR: expected a new or an empty folder, got {out_dir}")
    # What is written names its backbone; a path relative to this shell would be lost.
    source = os.path.abspath(backbone) if backbone and os.path.isdir(backbone) else backbone
    with loading("OFFICIAL_DIR, backbone", f"{official_dir} on {backbone or 'the backbone it names'}"):
        model = DinaRewardModel.from_official(
            official_dir, source, revision=revision, keep_adapter=keep_adapter, **hub.hub_arguments()
        )
    partial = out_dir.with_name(f".{out_dir.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        model.save_pretrained(partial, adapter_only=keep_adapter)
        os.replace(partial, out_dir)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    console.print(f"wrote {escape(str(out_dir))}", highlight=False)


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="A model: config.json, weights, and what else is to be published.")],
    repo_id: Annotated[
        str, typer.Argument(metavar="OWNER/NAME", help="A model repository; created if there is none.")
    ],
    public: Annotated[
        bool, typer.Option("--public", help="Create it public, not private. One that exists stays as it is.")
    ] = False,
    tag: Annotated[str | None, typer.Option(help="A new tag for the commit, such as v1.0.")] = None,
) -> None:
    """Push a model to the Hub, in one commit, as the owner of HF_TOKEN or of `hf auth login`."""
    from .pushing import check_model_folder, push_folder

    check_model_folder(folder)
    commit = push_folder(folder, repo_id, private=not public, tag=tag)
    console.print(commit.commit_url, soft_wrap=True, highlight=False)


@app.command()
@with_option_groups
def info(model: SourceOptions, as_json: JsonOption = False) -> None:
    """Show what a model is: its configuration, its size, and where its text encoders and VAE come from."""
    quieten_libraries()
    from .modeling_dina import DinaRewardModel

    model.check()
    with loading("model", model.model):
        loaded = DinaRewardModel.from_pretrained(
            model.model, dtype="auto", revision=model.revision or "main", **model.hub_arguments()
        )
    parts = {"backbone": loaded.backbone, "head": loaded.head}
    config = loaded.config
    sample_size = config.transformer_config["sample_size"]
    facts = {
        "model": model.model,
        "parameters": {name: sum(weight.numel() for weight in part.parameters()) for name, part in parts.items()},
        "bytes": sum(weight.nbytes for weight in loaded.parameters()),
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "latents": [config.transformer_config["in_channels"], sample_size, sample_size],
        "conditioning": loaded.conditioning_location()[:2] if config.conditioning_source else None,
        "config": config.to_diff_dict(),
    }
    _print_json(facts) if as_json else _print_info(facts)


def quieten_libraries() -> None:
    """Bars of a second's loading and notes on absent extras would push the result off the screen."""
    import diffusers
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.disable_progress_bar()


def usable_device(device: str | None) -> str:
    """The device asked for, or the best there is; ValueError for one that torch cannot use here."""
    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device: expected one that torch can use here, got {device!r}: {error}") from error
    return device


def check_model(model: str, name: str = "model") -> None:
    """A path that leads nowhere would be taken for a Hub id, and refused as a malformed one."""
    if not os.path.isdir(model) and (os.path.exists(model) or model.startswith(("/", ".", "~"))):
        raise ValueError(f"{name}: expected a folder or a Hub id, got {model}")


@contextmanager
def loading(name: str, source: Any) -> Iterator[None]:
    """Names what was being read in the error. A stranger's folder fails in whatever way it likes: any exception is
    its fault."""
    try:
        yield
    except Exception as error:
        reason = error if isinstance(error, ValueError | OSError) else repr(error)
        raise ValueError(f"{name}: cannot load {source}: {reason}") from error


def check_output(name: str, path: Path, suffixes: tuple[str, ...]) -> None:
    """Told before the work rather than after it."""
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{name}: expected a file ending in {', '.join(suffixes)}, got {path}")
    try:
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder")
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise ValueError(f"{name}: expected a file that can be written, got {path}: {error}") from error


def check_folder(name: str, path: Path) -> None:
    """ValueError where a file is in the way of a folder."""
    for place in (path, *path.parents):
        if place.exists() and not place.is_dir():
            raise ValueError(f"{name}: expected a folder, there or to be made, got {path}, where {place} is a file")


@contextmanager
def scoring_progress() -> Iterator[Any]:
    """A progress bar, as a callable on the numbers of finished and of all images."""
    columns = (TextColumn("scoring"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=error_console) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _print_comparison(prompt: str, images: list[Path], result) -> None:
    table = Table("", "image", "score", "spread over draws", "preferred with probability", title=escape(prompt))
    probabilities = (result.win_probability, 1 - result.win_probability)
    for name, image, value, spread, probability in zip(
        "AB", images, result.scores, result.spread, probabilities, strict=True
    ):
        table.add_row(name, escape(str(image)), f"{value:+.4f}", _number(spread), f"{probability:.3f}")
    console.print(table)
    console.print(
        f"uncertainty of the preference: {result.entropy:.4f} nats, {result.disagreement:.4f} of it disagreement "
        f"between noise levels and draws; standard error of the score difference: {_number(result.difference_error)}",
        highlight=False,
    )


def _print_ranking(prompt: str, images: list[Path], result) -> None:
    table = Table("rank", "image", "score", "beats the next with probability", title=escape(prompt))
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
    # A NaN is a spread over a single draw.
    return f"{value:.4f}" if value == value else "unknown (one draw)"


def _print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value, allow_nan=False))
