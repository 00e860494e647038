"""The runner of both studies: a folder of results that can be resumed, variants run with several seeds, the command."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
import typer
from filelock import FileLock, Timeout

from modeling_dina.evaluation.evaluate import LIBRARIES
from modeling_dina.evaluation.rewards import shown
from modeling_dina.files import load_or_compute, write_json
from modeling_dina.identity import weights_hash
from modeling_dina.options import EMBEDDED_MODEL, exit_on_bad_input


class Amount(NamedTuple):
    """An amount that a study scales: an integer or a fraction in full, and the minimum of a trial (of an integer)."""

    full: float
    least: int = 1


class StudySize(dict[str, Any]):
    """The amounts of a study by name, multiplied by `factor`. Integers are at least their minimum."""

    def __init__(self, amounts: dict[str, Amount], factor: float = 1.0) -> None:
        for name, (full, least) in amounts.items():
            self[name] = factor * full if isinstance(full, float) else max(least, round(factor * full))


@dataclass(frozen=True, kw_only=True)
class Variant:
    """
    A variant of a study.

    Attributes:
        title: title in tables and figures.
        color: color in figures.
        overrides: fields of the configuration that differ from the study's.
    """

    title: str
    color: str
    overrides: dict[str, Any] = field(default_factory=dict)


class StudyFolder:
    """
    Results of a study's parts, one JSON file each, which is complete or absent. An interrupted study resumes, and
    several processes can share a folder: each skips the parts that another one is computing.

    Args:
        path: the folder.
        settings: settings of the study.

    Raises:
        ValueError: `path` is a file, or the folder of a study with other settings.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        if path.is_file():
            raise ValueError(f"out: expected a folder, new or of the same study, got the file {path}")
        self.path = path
        self.settings = json.loads(json.dumps(settings))
        found = self.load_or_compute("settings", lambda: self.settings)
        if found != self.settings:
            different = sorted(name for name in self.settings if found.get(name) != self.settings[name])
            raise ValueError(
                f"out: expected a new folder or one of the same study, got {path}, which differs in {different}"
            )

    def lock(self, name: str, wait: bool = True) -> AbstractContextManager:
        """A lock among processes. Without `wait`, entering it raises filelock.Timeout if another process has it."""
        path = self.path / "locks" / f"{name.replace('/', '-')}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(path, timeout=-1 if wait else 0)

    def load_or_compute(self, name: str, make: Callable[[], Any], wait: bool = True) -> Any:
        """
        Load the part `name` from `<name>.json`, or compute and write it.

        Args:
            name: path of the part in the folder, without suffix.
            make: computes the part; returns what JSON can represent.
            wait: wait for another process that computes the part; if False, None is returned.
        """
        try:
            with self.lock(name, wait):
                return load_or_compute(self.path / f"{name}.json", make)
        except Timeout:
            return None


class Study(ABC):
    """
    Variants that are run with several seeds and compared.

    Args:
        folder: folder of the study, with its settings.
        pipeline_dir: folder of the small world's pipeline and reward model.
        size: amounts of the study.
        seeds: number of runs of each variant.
        names: names of the variants to run.

    Attributes:
        kind: kind of the results, for readers of the JSON.
        subject: part of the pipeline whose weights the results describe; "." is the reward model.
        weights: other parts of the pipeline that the results depend on.
        amounts: amounts of its full size.
        variants: all variants by name.
        settings: everything else that the results depend on.
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
    def run(self, name: str, seed: int) -> dict[str, Any]:
        """Train and measure a variant: the "seconds" that this took, and what `summarize` reads."""

    @abstractmethod
    def measure_costs(self) -> dict[str, Any]:
        """Measure the cost of each variant, with all of them in turn."""

    @abstractmethod
    def summarize(self, runs: dict[str, list[dict]], costs: dict[str, Any]) -> dict[str, Any]:
        """The results, from what `run` returned for each seed, by variant, and from `measure_costs`."""

    @staticmethod
    @abstractmethod
    def write_report(results: dict[str, Any], folder: Path) -> None:
        """Write tables.md and its figures from the results of all variants alone."""

    def run_all(self) -> dict[str, list[dict]]:
        """
        `run` of each variant and seed, as lists over seeds by variant.

        All variants are run with one seed before the next seed, so that an interrupted study can compare them. Runs
        that no other process is computing come first.
        """
        runs = {
            f"variants/{name}-{seed}": partial(self.run, name, seed)
            for seed, name in product(range(self.seeds), self.names)
        }
        for number, (name, run) in enumerate(runs.items(), start=1):
            done = ", done" if (self.folder.path / f"{name}.json").exists() else ""
            typer.echo(f"{number} of {len(runs)}: {name}{done}")
            self.folder.load_or_compute(name, run, wait=False)
        found = [self.folder.load_or_compute(name, run) for name, run in runs.items()]
        return {name: found[index :: len(self.names)] for index, name in enumerate(self.names)}

    def results(self, command: str) -> dict[str, Any]:
        """Run the study; returns the content of results.json, with the command that made it."""
        runs = self.run_all()
        costs = self.folder.load_or_compute(f"costs-{'-'.join(self.names)}", self.measure_costs)
        settings = self.folder.settings | {"pipeline": shown(self.pipeline_dir), "seeds": self.seeds}
        return {
            "kind": self.kind,
            "command": command,
            "revision": settings.pop("revision"),
            "settings": settings
            | {"device": device_name(), "libraries": {library: version(library) for library in LIBRARIES}},
            "seconds": {name: sum(run["seconds"] for run in by_seed) for name, by_seed in runs.items()},
            **self.summarize(runs, costs),
        }


def device_name() -> str:
    """The device that the study runs on."""
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
        names = [name for name in study.variants if not variant or name in variant]
        with exit_on_bad_input():
            if report:
                return study.write_report(json.loads((out / "results.json").read_text("utf-8")), out)
            if unknown := sorted(set(variant or ()) - set(names)):
                raise ValueError(f"variant: expected one of {', '.join(study.variants)}, got {', '.join(unknown)}")
            if not Path(pipeline, "model_index.json").is_file():
                raise ValueError(f"pipeline: expected a folder with a pipeline's model_index.json, got {pipeline}")
            size = StudySize(study.amounts, scale)
            hashes = {part: weights_hash(Path(pipeline, part)) for part in {study.subject, *study.weights}}
            settings = {"revision": hashes[study.subject], "weights": {part: hashes[part] for part in study.weights}}
            folder = StudyFolder(out, settings | {"size": size, **study.settings})
        options = {"out": shown(str(out)), "pipeline": shown(pipeline), "scale": scale, "seeds": seeds}
        words = [f"--{name} {value}" for name, value in options.items()]
        words += [f"--variant {name}" for name in variant or ()]
        results = study(folder, pipeline, size, seeds, names).results(" ".join([f"python -m {module}", *words]))
        write_json(out / "results.json", results)
        if names == list(study.variants):
            study.write_report(results, out)
            typer.echo((out / "tables.md").read_text("utf-8"))
        return None

    return main
