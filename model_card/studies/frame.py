"""What both studies run on: a folder that keeps results, variants that are run with several seeds, and the command."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
import typer
from filelock import FileLock, Timeout

from modeling_dina.evaluation.evaluate import LIBRARIES
from modeling_dina.evaluation.rewards import display_path
from modeling_dina.files import load_or_compute, write_json
from modeling_dina.identity import weights_hash
from modeling_dina.options import EMBEDDED_MODEL, exit_on_bad_input


class Amount(NamedTuple):
    """How much of something a study takes: a whole number or a share, and what a trial of it needs at least."""

    full: float
    least: int = 1


class StudySize(dict[str, Any]):
    """The amounts of a study by name, all times `factor`, but enough to run; shares stay fractions."""

    def __init__(self, amounts: dict[str, Amount], factor: float = 1.0) -> None:
        for name, (full, least) in amounts.items():
            self[name] = factor * full if isinstance(full, float) else max(least, round(factor * full))


class StudyFolder:
    """
    Results of a study's parts, one JSON file each, complete or absent: an interrupted study resumes, and several
    processes can share a folder, each skipping what another one has begun.

    Args:
        path: the folder.
        settings: of the study.

    Attributes:
        path, settings: the same, the latter as JSON has them.

    Raises:
        ValueError: `path` is a file, or the folder of a study with other settings.
    """

    def __init__(self, path: Path, settings: dict) -> None:
        if path.is_file():
            raise ValueError(f"out: expected a folder, new or of the same study, got the file {path}")
        self.path = path
        self.settings = settings = json.loads(json.dumps(settings))
        found = self.load_or_compute("settings", lambda: settings)
        if found != settings:
            different = sorted(name for name in settings if found.get(name) != settings[name])
            raise ValueError(
                f"out: expected a new folder or one of the same study, got {path}, which differs in {different}"
            )

    def lock(self, name: str, wait: bool = True) -> AbstractContextManager:
        """A lock among processes; without `wait`, entering it raises filelock.Timeout if another process has it."""
        path = self.path / "locks" / f"{name.replace('/', '-')}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(path, timeout=-1 if wait else 0)

    def load_or_compute(self, name: str, make: Callable[[], Any], wait: bool = True) -> Any:
        """
        The content of `<name>.json`, which is written with what `make` returns if it does not exist.

        Args:
            name: of the part, relative to the folder.
            make: measures it; returns what JSON can contain.
            wait: for another process that computes it; otherwise None is returned.
        """
        try:
            with self.lock(name, wait):
                return load_or_compute(self.path / f"{name}.json", make)
        except Timeout:
            return None

    def load_or_compute_all(self, parts: dict[str, Callable[[], Any]]) -> list[Any]:
        """`load_or_compute` of each part, first of those that no other process computes."""
        for number, (name, make) in enumerate(parts.items(), start=1):
            typer.echo(f"{number} of {len(parts)}: {name}{', done' * (self.path / f'{name}.json').exists()}")
            self.load_or_compute(name, make, wait=False)
        return [self.load_or_compute(name, make) for name, make in parts.items()]


class Study(ABC):
    """
    Variants that are run with several seeds and compared.

    Args:
        folder: of the study, with its settings.
        pipeline_dir: folder of the small world's pipeline and reward model.
        size: see `StudySize`.
        seeds: runs of each variant.
        names: of the variants to run.

    Attributes:
        kind: of the results, for whoever reads the JSON.
        subject: the part of the pipeline whose weights the results are about; "." is the reward model.
        weights: parts of the pipeline that the results depend on too.
        amounts: of its size.
        variants: all of them, by name, each with a `title`.
        settings: what the results depend on beside weights and size.
    """

    kind: ClassVar[str]
    subject: ClassVar[str]
    weights: ClassVar[tuple[str, ...]]
    amounts: ClassVar[dict[str, Amount]]
    variants: ClassVar[dict[str, Any]]
    settings: ClassVar[dict[str, Any]]

    def __init__(self, folder: StudyFolder, pipeline_dir: str, size: StudySize, seeds: int, names: list[str]) -> None:
        self.folder, self.pipeline_dir, self.size, self.seeds, self.names = folder, pipeline_dir, size, seeds, names

    @abstractmethod
    def measure(self) -> dict:
        """Everything that is measured of the variants of `names`."""

    @staticmethod
    @abstractmethod
    def write_report(results: dict, folder: Path) -> None:
        """Write tables.md and its figures, made of the results of all variants alone."""

    def run_variants(self, part: str, run: Callable[[str, int], Any]) -> dict[str, list]:
        """
        What `run` returns of each variant and seed, as lists over seeds by variant; kept in the folder as `part`.

        Seed by seed: an interrupted study has at least compared all variants once.
        """
        runs = list(product(range(self.seeds), self.names))
        found = self.folder.load_or_compute_all(
            {f"{part}/{name}-{seed}": partial(run, name, seed) for seed, name in runs}
        )
        return {name: found[index :: len(self.names)] for index, name in enumerate(self.names)}

    def results(self, command: str) -> dict:
        """The content of results.json."""
        measured, settings = self.measure(), dict(self.folder.settings)
        settings |= {"pipeline": display_path(self.pipeline_dir), "seeds": self.seeds, "device": device_name()}
        return {
            "kind": self.kind,
            "command": command,
            "revision": settings.pop("revision"),
            "settings": settings | {"libraries": {library: version(library) for library in LIBRARIES}},
            **measured,
        }


def device_name() -> str:
    """What the study runs on."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    return f"{threads} CPU thread{'s' * (threads > 1)}"


def study_command(study: type[Study], module: str) -> Callable[..., None]:
    """The function of `python -m module`: run a study in a folder, or write the report of a finished one again."""

    def main(
        out: Annotated[Path, typer.Option(help="Folder of the study. An interrupted study resumes.")],
        pipeline: Annotated[
            str, typer.Option(help="Folder of the small world's pipeline and reward model.")
        ] = EMBEDDED_MODEL,
        scale: Annotated[float, typer.Option(help="Factor on all amounts, for a trial.", min=0.0)] = 1.0,
        seeds: Annotated[int, typer.Option(help="Runs of each variant. More can be added later.", min=1)] = 3,
        variant: Annotated[
            list[str] | None, typer.Option(help="Run only this variant; may be repeated. No report is written.")
        ] = None,
        report: Annotated[
            bool, typer.Option("--report", help="Only write tables and figures again, from results.json.")
        ] = False,
    ) -> None:
        """Run and measure every variant of the study."""
        with exit_on_bad_input():
            if report:
                return study.write_report(json.loads((out / "results.json").read_text("utf-8")), out)
            unknown = sorted(set(variant or ()) - set(study.variants))
            if unknown:
                raise ValueError(f"variant: expected one of {', '.join(study.variants)}, got {', '.join(unknown)}")
            if not Path(pipeline, "model_index.json").is_file():
                raise ValueError(f"pipeline: expected a folder with a pipeline's model_index.json, got {pipeline}")
            size = StudySize(study.amounts, scale)
            hashes = {part: weights_hash(Path(pipeline, part)) for part in {study.subject, *study.weights}}
            settings = {"revision": hashes[study.subject], "weights": {part: hashes[part] for part in study.weights}}
            folder = StudyFolder(out, settings | {"size": size, **study.settings})
        options = {"out": display_path(str(out)), "pipeline": display_path(pipeline), "scale": scale, "seeds": seeds}
        words = [f"--{name} {value}" for name, value in options.items()] + [
            f"--variant {name}" for name in variant or ()
        ]
        names = [name for name in study.variants if not variant or name in variant]
        results = study(folder, pipeline, size, seeds, names).results(" ".join([f"python -m {module}", *words]))
        write_json(out / "results.json", results)
        if names == list(study.variants):
            study.write_report(results, out)
            typer.echo((out / "tables.md").read_text("utf-8"))
        return None

    return main
