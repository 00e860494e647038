"""The method's claims, where the truth is known: `python -m model_card.world_study --out DIR`.

Every row is trained and measured on the same pictures of the small world, with several seeds, one after another; an
interrupted study goes on where it stopped, and the same command in another process shares the work. The results are
`results.json`, `study.md` and its figures.
"""

import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Annotated

import torch
import typer
from datasets import Dataset
from diffusers import StableDiffusion3Pipeline

from model_card.cost_counters import measure_seconds
from model_card.study.answers import answer
from model_card.study.figures import draw_figures
from model_card.study.measurement import (
    ENSEMBLE_DRAWS,
    ENSEMBLE_LEVELS,
    LEVELS,
    READINGS,
    best_reachable,
    group_pairs,
    measure_ensemble,
    measure_row,
)
from model_card.study.rows import ROWS, Decoder, build_row, read_arguments, show_pictures, train_row
from model_card.study.summary import summarize
from model_card.study.table import study_page
from model_card.study_folder import StudyFolder, device_name
from modeling_dina.evaluation.evaluate import LIBRARIES
from modeling_dina.evaluation.rewards import shown
from modeling_dina.files import write_json, write_text
from modeling_dina.identity import weights_hash
from modeling_dina.options import EMBEDDED_MODEL, exit_on_bad_input
from training.costs import count_flops
from training.encode_world import write_rendered_pairs
from training.reward.data import load_pairs
from training.world.latents import rendered_groups, to_pixels
from training.world.models.reward import CONFIG
from training.world.seeds import Seed

TEST_SEEDS = {"seen": Seed.STUDY_SEEN, "held_out": Seed.STUDY_HELD_OUT}


@dataclass(frozen=True)
class Size:
    """
    How much of everything. Unscaled, the study should take about three hours on two cores: a step with 64 pairs takes
    0.4 seconds there (half of it with a frozen backbone), which for 750 steps of nine rows and three seeds is two
    hours; measuring a seed's rows on 400 captions takes a quarter of an hour, and drawing all pictures five minutes.

    Attributes:
        steps: of each training.
        train_groups, test_groups: captions with four pictures each, to train on and in each test set.
        rounds: of the measurement of seconds.
    """

    steps: int = 750
    train_groups: int = 4000
    test_groups: int = 400
    rounds: int = 50

    def scaled(self, factor: float) -> "Size":
        """All of it times `factor`, but enough to run."""
        least = {"steps": 2, "train_groups": 12, "test_groups": 6, "rounds": 1}
        return Size(**{name: max(least[name], round(factor * number)) for name, number in asdict(self).items()})


class Material:
    """
    What all rows share: the pipeline, the pairs to train on, and the sets to measure on.

    Args:
        data: folder that pictures and latents are kept in.
        pipeline_dir: diffusers pipeline of the small world.
        size: of the study.
    """

    def __init__(self, data: Path, pipeline_dir: str, size: Size) -> None:
        self.pipeline = StableDiffusion3Pipeline.from_pretrained(pipeline_dir, transformer=None, dtype=torch.float32)
        self.pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
        self.pipeline.vae.requires_grad_(False)
        self.pipeline_dir, self.train = pipeline_dir, data / "train"
        self.groups = write_rendered_pairs(self.train, pipeline_dir, groups=size.train_groups, seed=Seed.STUDY_TRAIN)
        self.pairs = load_pairs([self.train])
        self.sets = {
            name: rendered_groups(
                data / name, self.pipeline.vae, groups=size.test_groups, seed=seed, held_out=name == "held_out"
            )
            for name, seed in TEST_SEEDS.items()
        }

    @cached_property
    def decoded_pairs(self) -> Dataset:
        """The pairs for a model of pictures."""
        return show_pictures(self.pairs, self.groups.latents, self.pipeline)


def run_row(name: str, seed: int, material: Material, size: Size, folder: Path) -> dict:
    """
    Train and measure a row.

    Args:
        name: of `ROWS`.
        seed: of the fresh weights, the order of the pairs and the noise.
        material: to train and to measure on.
        size: of the study.
        folder: for the training; it is emptied at the end.
    """
    row, start = ROWS[name], time.monotonic()
    arguments, args = read_arguments(
        material.pipeline_dir,
        row,
        output_dir=folder,
        max_steps=size.steps,
        warmup_steps=size.steps // 10,
        logging_steps=max(1, size.steps // 10),
        eval_strategy="no",
        save_steps=max(1, size.steps // 3),
        save_total_limit=1,
        ema_decay=0,
        seed=seed,
    )
    pairs = material.decoded_pairs if row.sees_pictures else material.pairs
    model, encode = train_row(row, arguments, args, material.pipeline, pairs)
    trained = time.monotonic()
    measured = measure_row(row, model, encode, material.sets, material.pipeline.vae)
    if name == "dina":
        measured["ensemble"] = measure_ensemble(model, encode, material.sets["seen"])
    shutil.rmtree(folder, ignore_errors=True)
    return {"seconds": {"training": trained - start, "measurement": time.monotonic() - trained}, **measured}


@torch.no_grad()
def measure_costs(material: Material, rounds: int) -> dict[str, dict[str, dict]]:
    """FLOPs and seconds of a comparison of two images, from the text on, by the row that has the cost and reading."""
    kinds = dict.fromkeys((row.cost, name) for row in ROWS.values() for name in row.readings)
    cases = {(row, name): comparison(row, name, material) for row, name in kinds}
    seconds = measure_seconds(cases, material.pipeline.device.type, rounds)
    costs: dict[str, dict[str, dict]] = {}
    for (row, name), case in cases.items():
        costs.setdefault(row, {})[name] = {"flops": count_flops(case), "seconds": seconds[row, name]}
    return costs


def comparison(row: str, name: str, material: Material) -> Callable[[], object]:
    """A comparison of two images as a row's reading makes it, with untrained weights: they do not change its cost."""
    reading, seen, vae = READINGS[name], material.sets["seen"], material.pipeline.vae
    arguments, _ = read_arguments(material.pipeline_dir, ROWS[row], output_dir=material.train)
    objective, encode = build_row(ROWS[row], arguments, material.pipeline)
    model = objective.model.eval().requires_grad_(False).to(material.pipeline.device)
    if name == "decoded":
        model.backbone.picture = Decoder(vae)
    images = (to_pixels(seen.pictures[0]) if reading.of == "pictures" else seen.latents[0])[:2]
    images = images.float().to(model.device)
    sigmas = LEVELS[: reading.levels] if reading.of == "noisy latents" else [0.0]

    def compare():
        conditioning = [each.repeat_interleave(2, dim=0) for each in encode(seen.captions[:1])]
        return model.reward(images, *conditioning, sigmas=sigmas, num_draws=reading.draws, mode=reading.mode)

    return compare


def study_settings(pipeline_dir: str, size: Size) -> dict:
    """What a study cannot go on with other values of; ValueError if there is no such pipeline."""
    folder = Path(pipeline_dir)
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"pipeline: expected a folder with a pipeline's model_index.json, got {pipeline_dir}")
    return {
        "pipeline": {part: weights_hash(folder / part) for part in ("transformer", "vae", "text_encoder")},
        "size": asdict(size),
        "ensemble": {"levels": LEVELS[:ENSEMBLE_LEVELS], "draws": ENSEMBLE_DRAWS},
        "training": CONFIG.read_text(),
    }


def study(found: StudyFolder, pipeline_dir: str, size: Size, seeds: int, tell: Callable[[str], None]) -> dict:
    """
    Train and measure every row that the folder has no result of yet, and write what all of them say.

    Args:
        found: folder of the study, of `study_settings`.
        pipeline_dir: diffusers pipeline of the small world.
        size: see `Size`.
        seeds: trainings of each row.
        tell: called with what is about to be done.
    """
    out, settings = found.path, found.settings
    material = Material(out / "data", pipeline_dir, size)
    # Seed by seed: an interrupted study has at least compared all rows once.
    runs = list(product(range(seeds), ROWS))
    rows = found.keep_all(
        {
            f"rows/{name}-{seed}": partial(run_row, name, seed, material, size, out / "training" / f"{name}-{seed}")
            for seed, name in runs
        },
        tell,
    )
    measured = {name: [each for (_, other), each in zip(runs, rows, strict=True) if other == name] for name in ROWS}
    tell("cost")
    cost = found.keep("cost", partial(measure_costs, material, size.rounds))
    best = {name: best_reachable(group_pairs(world)) for name, world in material.sets.items()}
    results = summarize(measured, best, cost)
    results = {
        "settings": settings
        | {
            "pipeline": shown(pipeline_dir),
            "weights": settings["pipeline"],
            "seeds": seeds,
            "device": device_name(),
            "libraries": {library: version(library) for library in LIBRARIES},
        },
        "seconds": {name: sum(sum(each["seconds"].values()) for each in rows) for name, rows in measured.items()},
        "answers": answer(results),
        **results,
    }
    write_json(out / "results.json", results)
    write_text(out / "study.md", study_page(results, draw_figures(results, out)))
    return results


def main(
    out: Annotated[Path, typer.Option(help="Folder of the study; an interrupted one goes on.")],
    pipeline: Annotated[
        str, typer.Option(help="Diffusers pipeline of the small world whose transformer is the backbone.")
    ] = EMBEDDED_MODEL,
    scale: Annotated[float, typer.Option(help="Factor on steps, captions and rounds, for a trial.", min=0.0)] = 1.0,
    seeds: Annotated[int, typer.Option(help="Trainings of each row; more can be added later.", min=1)] = 3,
) -> None:
    """Train and measure every row of the study."""
    size = Size().scaled(scale)
    with exit_on_bad_input():
        folder = StudyFolder(out, study_settings(pipeline, size))
    results = study(folder, pipeline, size, seeds, tell=typer.echo)
    for question, words in results["answers"].items():
        typer.echo(f"\n{question}\n{words}")


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
