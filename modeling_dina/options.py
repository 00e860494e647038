"""Shared parts of all commands: options for the model and the noise ensemble, checks of paths, and the handling of bad
input."""

import inspect
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, get_type_hints

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

# torch is imported only inside the functions that need it, so that `dina --help` starts fast.

EMBEDDED_MODEL = str(Path(__file__).parent / "tiny")
EMBEDDED_NOTE = "The embedded model scores only 64 x 64 scenes of coloured shapes; use --model to choose another."

console = Console(highlight=False)
error_console = Console(stderr=True, highlight=False)

Mode = Literal["features", "mean", "precision"]  # as in `DinaConfig.ensemble_mode`
DtypeOption = Annotated[
    Literal["float32", "bfloat16", "float16"] | None,
    typer.Option(help="Floating-point type of the weights. Default: as stored."),
]
DeviceOption = Annotated[
    str | None, typer.Option(help="Device: cpu, cuda, cuda:1 and so on. Default: cuda if available.")
]
LevelBatchingOption = Annotated[
    bool,
    typer.Option(
        "--level-batching", help="Process the noise levels in one pass: faster for few or small images, more memory."
    ),
]
BatchSizeOption = Annotated[int, typer.Option(min=1, help="Number of images scored at a time.")]
AutoBatchSizeOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Number of images scored at a time. Default: as many as have 8 megapixels, at most 32.",
        show_default=False,
    ),
]
WorkersOption = Annotated[
    int | None,
    typer.Option(help="Number of processes that decode images. Default: one per CPU, at most 4 per device.", min=0),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def decoding_workers(given: int | None, devices: int = 1) -> int:
    """The number of decoding processes for so many devices, by default one per CPU and at most four per device."""
    return min(4 * devices, os.cpu_count() or 1) if given is None else given


@contextmanager
def exit_on_bad_input() -> Iterator[None]:
    """Exit on bad input, with one line on stderr and exit code 2.

    Every entry point uses it around the code that reads and checks its input. Training itself stays outside, because
    an error there is not bad input and should show its traceback.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except (ValueError, TypeError, OSError) as error:
        fail(str(error), error)


def fail(message: str, cause: Exception | None = None, code: int = 2) -> NoReturn:
    """Print an error as one line on stderr and exit."""
    message = " ".join(message.split())
    error_console.print(f"[bold red]Error:[/] {escape(message)}", soft_wrap=True)
    raise SystemExit(code) from cause


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
    """Options for downloads from the Hub."""

    cache_dir: Annotated[
        Path | None, typer.Option(help="Folder for downloads from the Hub. Default: the Hub's cache.")
    ] = None
    token: Annotated[
        str | None, typer.Option(help="Access token for the Hub. Default: HF_TOKEN, or the login of `hf auth login`.")
    ] = None
    local_files_only: Annotated[
        bool, typer.Option("--local-files-only", help="Use only files that are already downloaded.")
    ] = False

    def hub_arguments(self) -> dict[str, Any]:
        """The options that are set, as keyword arguments of the loaders of transformers and diffusers."""
        given = {
            "cache_dir": self.cache_dir and str(self.cache_dir),
            "token": self.token,
            "local_files_only": self.local_files_only,
        }
        return {name: value for name, value in given.items() if value}


@dataclass
class LoadingOptions(HubOptions):
    """Options for loading a reward model: its version, and the diffusion model that it is based on."""

    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the model on the Hub.")] = None
    backbone: Annotated[
        str | None,
        typer.Option(
            help="Diffusion model that the reward model is based on: a folder or a Hub id. Default: the one that it "
            "names."
        ),
    ] = None
    backbone_revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of the backbone on the Hub.")
    ] = None

    def loading_arguments(self) -> dict[str, Any]:
        """The options as keyword arguments of `DinaRewardModel.from_pretrained`."""
        if self.backbone is not None:
            check_model(self.backbone, "backbone")
        given = {"backbone": self.backbone, "backbone_revision": self.backbone_revision}
        given = {name: value for name, value in given.items() if value is not None}
        return {"revision": self.revision or "main", **given, **self.hub_arguments()}


@dataclass
class SourceOptions(LoadingOptions):
    """Options that select the reward model."""

    model: Annotated[
        str,
        typer.Option(
            help="Reward model: a folder or a Hub id. Default: the small model in the package.", show_default=False
        ),
    ] = EMBEDDED_MODEL

    def check(self) -> None:
        """Check the path of the model, and print a note if it is the embedded one."""
        check_model(self.model)
        if self.model == EMBEDDED_MODEL:
            error_console.print(EMBEDDED_NOTE, style="dim")


@dataclass
class ModelOptions(SourceOptions):
    """Options that select the reward model, its device and its precision."""

    device: DeviceOption = None
    dtype: DtypeOption = None
    level_batching: LevelBatchingOption = False

    def open_scorer(self, **options):
        """Load the `DinaScorer` for these options; raises a ValueError that names the invalid option."""
        self.check()
        return open_scorer(self.device, self, self.dtype, level_batching=self.level_batching, **options)


def open_scorer(device: str | None, source: SourceOptions, dtype: str | None, **options):
    """Load the `DinaScorer` of a source on a device; raises a ValueError that names the invalid option.

    Args:
        device, dtype: as in `ModelOptions`.
        source: options that select the model.
        options: `batch_size`, `max_pixels` and `level_batching` of the scorer.
    """
    import torch

    quieten_libraries()
    from .scoring_dina import DinaScorer

    device = usable_device(device)
    check_model(source.model)
    kind = None if dtype is None else getattr(torch, dtype)
    with loading("model", source.model):
        return DinaScorer.from_pretrained(
            source.model, device=device, dtype=kind, **source.loading_arguments(), **options
        )


@dataclass
class EnsembleOptions:
    """Options of the noise ensemble, for commands that score images."""

    sigmas: Annotated[
        Any,
        typer.Option(
            parser=_noise_levels,
            metavar="0.2,0.5,…",
            help="Noise levels in [0, 1] of the ensemble. Default: the model's.",
        ),
    ] = None
    draws: Annotated[
        int | None, typer.Option(min=1, help="Number of noise draws at each level. Default: the model's.")
    ] = None
    mode: Annotated[Mode | None, typer.Option(help="How noise levels are combined. Default: the model's mode.")] = None
    seed: Annotated[int, typer.Option(min=0, help="Seed of the ensemble's noise.")] = 0

    def arguments(self) -> dict[str, Any]:
        """The options as keyword arguments of `DinaScorer.score`."""
        return {"sigmas": self.sigmas, "num_draws": self.draws, "mode": self.mode, "seed": self.seed}


def with_option_groups(command: Callable) -> Callable:
    """Allow parameters of a command that are dataclasses such as `ModelOptions`: each field becomes an option."""
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


def quieten_libraries() -> None:
    """Switch off progress bars and notes of libraries, which would hide the result."""
    import diffusers
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.disable_progress_bar()


def usable_device(device: str | None) -> str:
    """The given device, or cuda if available, else cpu; raises a ValueError if torch cannot use it here."""
    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device: expected one that torch can use here, got {device!r}: {error}") from error
    return device


def check_model(model: str, name: str = "model") -> None:
    """Raise a ValueError for a path that does not exist, which would be taken for a malformed Hub id."""
    if not os.path.isdir(model) and (os.path.exists(model) or model.startswith(("/", ".", "~"))):
        raise ValueError(f"{name}: expected a folder or a Hub id, got {model}")


@contextmanager
def loading(name: str, source: Any) -> Iterator[None]:
    """Convert any exception during loading to a ValueError that names the argument and the source. Invalid folders can
    raise exceptions of any type."""
    try:
        yield
    except Exception as error:
        reason = error if isinstance(error, ValueError | OSError) else repr(error)
        raise ValueError(f"{name}: cannot load {source}: {reason}") from error


def check_output(name: str, path: Path, suffixes: tuple[str, ...]) -> None:
    """Raise a ValueError unless a file with one of `suffixes` can be written, before the work begins."""
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{name}: expected a file ending in {', '.join(suffixes)}, got {path}")
    try:
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder")
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise ValueError(f"{name}: expected a file that can be written, got {path}: {error}") from error


def check_folder(name: str, path: Path) -> None:
    """Raise a ValueError if a file has the path of the folder or of one of its parents."""
    for place in (path, *path.parents):
        if place.exists() and not place.is_dir():
            raise ValueError(
                f"{name}: expected a folder that exists or can be created, got {path}, where {place} is a file"
            )


class _RateColumn(ProgressColumn):
    """Images per second."""

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:.1f}/s")


@contextmanager
def scoring_progress(label: str = "scoring") -> Iterator[Any]:
    """A progress bar, as a function of the numbers of finished and of all images; the second may be None."""
    columns = (TextColumn(label), BarColumn(), MofNCompleteColumn(), _RateColumn(), TimeRemainingColumn())
    with Progress(*columns, console=error_console) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
