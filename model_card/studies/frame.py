"""The runner of both studies: variants that are run with several seeds, in a folder that can be resumed."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property, partial
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
import typer
from diffusers import StableDiffusion3Pipeline
from filelock import FileLock, Timeout

from modeling_dina.evaluation.evaluate import LIBRARIES
from modeling_dina.evaluation.rewards import display_path
from modeling_dina.files import load_or_compute, write_json
from modeling_dina.identity import weights_hash
from modeling_dina.options import EMBEDDED_MODEL, exit_on_bad_input


class Amount(NamedTuple):
    """An amount that a study scales: a fraction, or an integer with the minimum that a trial needs."""

    full: float
    least: int = 1

    def scaled(self, factor: float) -> Any:
        """The amount times `factor`."""
        product = factor * self.full
        return product if isinstance(self.full, float) else max(self.least, round(product))


@dataclass(frozen=True)
class Variant:
    """A variant of a study; `overrides` are fields of the configuration that differ from the study's."""

    title: str
    color: str
    overrides: dict[str, Any] = field(default_factory=dict)


class Study(ABC):
    """
    Variants that are run with several seeds and compared.

    Each part of the results is a JSON file in the study's folder, which is complete or absent: an interrupted study
    resumes, and several processes can share the folder.

    Args:
        path: folder of the study.
        pipeline_dir: folder of the small world's pipeline and reward model.
        scale: factor on all amounts.
        seeds: number of runs of each variant.
        names: names of the variants to run.

    Raises:
        ValueError: `path` is a file, or the folder of a study with other settings.
    """

    kind: ClassVar[str]  # of the results, for readers of the JSON
    subject: ClassVar[str]  # part of the pipeline whose weights the results describe; "." is the reward model
    weights: ClassVar[tuple[str, ...]]  # parts of the pipeline that the results depend on
    amounts: ClassVar[dict[str, Amount]]
    variants: ClassVar[dict[str, Any]]
    constants: ClassVar[dict[str, Any]]  # everything else that the results depend on

    def __init__(self, path: Path, pipeline_dir: str, scale: float, seeds: int, names: list[str]) -> None:
        if path.is_file():
            raise ValueError(f"out: expected a folder, new or of the same study, got the file {path}")
        self.path, self.pipeline_dir, self.seeds, self.names = path, pipeline_dir, seeds, names
        self.size = {name: amount.scaled(scale) for name, amount in self.amounts.items()}
        hashes = {part: weights_hash(Path(pipeline_dir, part)) for part in (self.subject, *self.weights)}
        settings = {"revision": hashes[self.subject], "weights": {part: hashes[part] for part in self.weights}}
        self.settings = json.loads(json.dumps(settings | {"size": self.size, **self.constants}))
        found = self.part("settings", lambda: self.settings)
        if different := sorted(name for name in self.settings if found.get(name) != self.settings[name]):
            raise ValueError(
                f"out: expected a new folder or one of the same study, got {path}, which differs in {different}"
            )

    @cached_property
    def pipeline(self) -> StableDiffusion3Pipeline:
        """The small world's text encoders and autoencoder."""
        pipeline = StableDiffusion3Pipeline.from_pretrained(self.pipeline_dir, transformer=None, dtype=torch.float32)
        pipeline.vae.requires_grad_(False)
        return pipeline.to("cuda" if torch.cuda.is_available() else "cpu")

    @abstractmethod
    def run(self, name: str, seed: int) -> dict[str, Any]:
        """Train and measure a variant: the "seconds" that this took, and what `summarize` reads."""

    @abstractmethod
    def measure_costs(self) -> dict[str, Any]:
        """Measure the costs of the study's variants, which take turns."""

    @abstractmethod
    def summarize(self, runs: dict[str, list[dict]], costs: dict[str, Any]) -> dict[str, Any]:
        """The results, from what `run` returned for each seed, by variant, and from `measure_costs`."""

    @staticmethod
    @abstractmethod
    def write_report(results: dict[str, Any], folder: Path) -> None:
        """Write tables.md and its figures from the results of all variants alone."""

    def lock(self, name: str, wait: bool = True) -> AbstractContextManager:
        """A lock among processes. Without `wait`, entering it raises filelock.Timeout if another process has it."""
        path = self.path / "locks" / f"{name.replace('/', '-')}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(path, timeout=-1 if wait else 0)

    def part(self, name: str, compute: Callable[[], Any], wait: bool = True) -> Any:
        """The content of `<name>.json`, which is computed and written if it does not exist. If another process is
        computing it and `wait` is false, the result is None."""
        try:
            with self.lock(name, wait):
                return load_or_compute(self.path / f"{name}.json", compute)
        except Timeout:
            return None

    def run_all(self) -> dict[str, list[dict]]:
        """What `run` returns, as lists over seeds by variant. All variants are run with one seed before the next, so
        that an interrupted study can compare them; runs that no other process is computing come first."""
        order = product(range(self.seeds), self.names)
        runs = {f"variants/{name}-{seed}": partial(self.run, name, seed) for seed, name in order}
        for number, (name, run) in enumerate(runs.items(), start=1):
            typer.echo(f"{number} of {len(runs)}: {name}")
            self.part(name, run, wait=False)
        found = [self.part(name, run) for name, run in runs.items()]
        return {name: found[index :: len(self.names)] for index, name in enumerate(self.names)}

    def results(self, command: str) -> dict[str, Any]:
        """Run the study; returns the content of results.json, with the command that made it."""
        runs = self.run_all()
        costs = self.part(f"costs-{'-'.join(self.names)}", self.measure_costs)
        libraries = {library: version(library) for library in LIBRARIES}
        threads = f"{torch.get_num_threads()} CPU threads"
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else threads
        settings = self.settings | {"pipeline": display_path(self.pipeline_dir), "seeds": self.seeds, "device": device}
        return {
            "kind": self.kind,
            "command": command,
            "revision": settings.pop("revision"),
            "settings": settings | {"libraries": libraries},
            "seconds": {name: sum(run["seconds"] for run in by_seed) for name, by_seed in runs.items()},
            **self.summarize(runs, costs),
        }


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
            running = study(out, pipeline, scale, seeds, names)
        options = {"out": display_path(str(out)), "pipeline": display_path(pipeline), "scale": scale, "seeds": seeds}
        words = [*options.items(), *(("variant", name) for name in variant or ())]
        results = running.results(" ".join([f"python -m {module}", *(f"--{name} {value}" for name, value in words)]))
        write_json(out / "results.json", results)
        if names == list(study.variants):
            study.write_report(results, out)
            typer.echo((out / "tables.md").read_text("utf-8"))
        return None

    return main
