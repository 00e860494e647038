"""Preference optimisation, where the truth is known: `python -m model_card.alignment_study --out DIR`.

The small world's generator is aligned by every algorithm, to the latent reward and to a pixel reward behind the
decoder, with several seeds. An interrupted study goes on where it stopped, and the same command in another process
shares the work. The results are `results.json`, `alignment.md` and its figures.
"""

import math
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from safetensors.torch import load_file, save_file

from model_card.alignment.costs import RESOLUTION, count_full_size, measure_updates
from model_card.alignment.figures import CANDIDATES, draw_figures
from model_card.alignment.measurement import Judges
from model_card.alignment.page import alignment_page
from model_card.alignment.rows import CONFIGS, ROWS, read_arguments
from model_card.alignment.summary import summarize
from model_card.study_folder import StudyFolder, device_name
from modeling_dina.evaluation.evaluate import LIBRARIES
from modeling_dina.evaluation.rewards import shown
from modeling_dina.files import write_json, write_text
from modeling_dina.identity import weights_hash
from modeling_dina.options import EMBEDDED_MODEL, exit_on_bad_input
from training.align.run import run
from training.run_control import TERMINATED
from training.world.groups import pairwise_accuracy
from training.world.models.pixel_reward import measure, test_groups, train_pixel_reward
from training.world.models.scores import group_scores

BEST_OF_N = "best_of_n.safetensors"
SHOWN = 8  # prompts in the figure of pictures


@dataclass(frozen=True)
class Size:
    """
    How much of everything. Unscaled, the study takes two to three hours on two cores, as two processes.

    Attributes:
        updates: of a row, times its share.
        prompts: share of the configurations' prompts that an update takes.
        evaluations: of a row, beside that before its first update.
        eval_samples: two for each caption.
        rendered, generated: groups of four pictures that the pixel reward is trained on.
        test_groups: that both reward models are compared on, of each kind.
        rounds: of the measurement of seconds.
    """

    updates: int = 80
    prompts: float = 1.0
    evaluations: int = 4
    eval_samples: int = 96
    rendered: int = 8192
    generated: int = 1000
    test_groups: int = 250
    rounds: int = 5

    def scaled(self, factor: float) -> "Size":
        """All of it times `factor`, but enough to run."""
        least = {"updates": 4, "eval_samples": 16, "rendered": 16, "generated": 4, "test_groups": 4}
        scaled = {name: max(least.get(name, 1), round(factor * number)) for name, number in asdict(self).items()}
        return Size(**scaled | {"prompts": factor, "eval_samples": scaled["eval_samples"] // 2 * 2})


def train_pixels(pipeline_dir: str, folder: Path, size: Size, judges: Callable[[], Judges]) -> dict:
    """Train the pixel reward; how often it and the latent reward agree with a fresh annotator."""
    train_pixel_reward(pipeline_dir, folder, rendered=size.rendered, generated=size.generated, epochs=4)
    judged = judges()
    pipeline, pixel, dina = judged.policy.pipeline, judged.rewards["pixel"].network, judged.rewards["dina"].model
    quality: dict = {"pixel": {}, "dina": {}}
    for name, groups in test_groups(folder, pipeline, size.test_groups).items():
        quality["pixel"][name] = measure(pixel, pipeline, groups)
        quality["dina"][name] = pairwise_accuracy(group_scores(dina, pipeline, groups), groups.utilities)
    return quality


def run_row(name: str, seed: int, pipeline_dir: str, pixel_dir: Path, size: Size, out: Path) -> dict:
    """
    Align.

    Args:
        name: of `ROWS`.
        seed: of the fresh LoRA, the prompts and the noise.
        out: folder of the run; an interrupted one is gone on with.

    Returns:
        The "seconds" of its updates.

    Raises:
        SystemExit: a SIGTERM came; there is a checkpoint to go on from.
    """
    updates = max(2, round(size.updates * ROWS[name].updates))
    trainer = run(
        *read_arguments(
            ROWS[name],
            pipeline_dir,
            pixel_dir,
            size.prompts,
            **evaluation(size),
            eval_every=math.ceil(updates / size.evaluations),
            output_dir=out,
            updates=updates,
            save_every=max(1, updates // 5),
            seed=seed,
            resume_from_checkpoint="last",
        )
    )
    if trainer.was_terminated:
        raise SystemExit(TERMINATED)
    for checkpoint in out.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    return {"seconds": trainer.seconds}


def choose_best(judges: Judges, path: Path) -> dict[str, dict[int, dict]]:
    """The best of N by reward and N, measured; the latents are kept in `path`."""
    chosen = judges.best_of_n()
    named = {f"{reward}-{count}": each for reward, by_count in chosen.items() for count, each in by_count.items()}
    save_file(named, path)
    return {
        reward: {count: judges.measure(each) for count, each in by_count.items()}
        for reward, by_count in chosen.items()
    }


def evaluation(size: Size) -> dict[str, int]:
    """Arguments of a run's evaluations, of all rows the same."""
    return {"eval_samples": size.eval_samples, "eval_samples_per_prompt": 2}


def study_settings(pipeline_dir: str, size: Size) -> dict:
    """What a study cannot go on with other values of; ValueError if there is no such pipeline."""
    folder = Path(pipeline_dir)
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"pipeline: expected a folder with a pipeline's model_index.json, got {pipeline_dir}")
    return {
        "pipeline": {part: weights_hash(folder / part) for part in ("transformer", "vae")},
        "reward_model": weights_hash(folder),
        "size": asdict(size),
        "configs": {path.stem: path.read_text() for path in sorted(CONFIGS.glob("small_world_*.yaml"))},
        "flags": {name: row.flags for name, row in ROWS.items()},
    }


def study(found: StudyFolder, pipeline_dir: str, size: Size, seeds: int, tell: Callable[[str], None]) -> dict:
    """
    Run and measure every row that the folder has no result of yet, and write what all of them say.

    Args:
        found: folder of the study, of `study_settings`.
        pipeline_dir: folder of the small world's pipeline and reward model.
        size: see `Size`.
        seeds: runs of each row.
        tell: called with what is about to be done.
    """
    out, settings = found.path, found.settings
    pixel_dir = out / "pixel_reward"
    arguments, _ = read_arguments(ROWS["refl"], pipeline_dir, pixel_dir, **evaluation(size), output_dir=out)

    def judge() -> Judges:
        return Judges(pipeline_dir, pixel_dir, arguments)

    pixel_reward = partial(
        found.keep, "pixel_reward/quality", partial(train_pixels, pipeline_dir, pixel_dir, size, judge)
    )

    def align(name: str, seed: int) -> dict:
        if ROWS[name].reward == "pixel":
            pixel_reward()
        return run_row(name, seed, pipeline_dir, pixel_dir, size, out / "runs" / f"{name}-{seed}")

    tell("the pixel reward")
    pixel_reward(wait=False)  # Latent rewards need not wait for it.
    runs = {f"{name}-{seed}": (name, seed) for seed, name in product(range(seeds), ROWS)}
    trained = found.keep_all({f"runs/{run}": partial(align, *row) for run, row in runs.items()}, tell)
    quality, judges = pixel_reward(), judge()
    best_of_n, full_size, *curves = found.keep_all(
        {
            "best_of_n": partial(choose_best, judges, out / BEST_OF_N),
            "full_size": count_full_size,
            **{f"curves/{run}": partial(judges.curve, out / "runs" / run) for run in runs},
        },
        tell,
    )

    def by_row(values: list) -> dict[str, list]:
        """Those of each row, by seed."""
        return {name: values[index :: len(ROWS)] for index, name in enumerate(ROWS)}

    tell("cost")
    cost = found.keep("cost", partial(measure_updates, pipeline_dir, pixel_dir, size.prompts, size.rounds))
    results = {
        "settings": settings
        | {
            "pipeline": shown(pipeline_dir),
            "weights": settings["pipeline"],
            "seeds": seeds,
            "resolution": RESOLUTION,
            "device": device_name(),
            "libraries": {library: version(library) for library in LIBRARIES},
        },
        "seconds": {row: sum(each["seconds"] for each in values) for row, values in by_row(trained).items()},
        "reward_models": quality,
        **summarize(by_row(curves), best_of_n, cost),
        "full_size": full_size,
    }
    write_json(out / "results.json", results)
    prompts = list(judges.asked.prompts[: 2 * SHOWN : 2])
    figures = draw_figures(results, pictures(results, judges, out), prompts, out)
    write_text(out / "alignment.md", alignment_page(results, figures))
    return results


def pictures(results: dict, judges: Judges, out: Path) -> dict[str, np.ndarray]:
    """Of the first prompts [P, H, W, 3] in [0, 1]: before, the best of several, and what each row's first seed
    keeps."""
    kept = {ROWS[row["row"]].title: (row["row"], row["kept"]["updates"][0]) for row in results["rows"]}
    chosen = {
        "unaligned": load_evaluation(out, next(iter(ROWS)), 0),
        f"best of {CANDIDATES} by DiNa": load_file(out / BEST_OF_N)[f"dina-{CANDIDATES}"],
        **{title: load_evaluation(out, *place) for title, place in kept.items()},
    }
    latents = torch.cat([each[: 2 * SHOWN : 2] for each in chosen.values()])
    with torch.no_grad():
        decoded = judges.policy.decode(latents.to(judges.policy.device)).add(1).div(2).clamp(0, 1)
    images = decoded.permute(0, 2, 3, 1).cpu().numpy()
    return dict(zip(chosen, np.split(images, len(chosen)), strict=True))


def load_evaluation(out: Path, row: str, update: int) -> torch.Tensor:
    """Latents of an evaluation of a row's first seed."""
    return load_file(out / "runs" / f"{row}-0" / "evaluations" / f"{update:06d}.safetensors")["latents"]


def main(
    out: Annotated[Path, typer.Option(help="Folder of the study; an interrupted one goes on.")],
    pipeline: Annotated[
        str, typer.Option(help="Folder of the small world's pipeline and reward model.")
    ] = EMBEDDED_MODEL,
    scale: Annotated[float, typer.Option(help="Factor on updates, samples and pictures, for a trial.", min=0.0)] = 1.0,
    seeds: Annotated[int, typer.Option(help="Runs of each row; more can be added later.", min=1)] = 3,
) -> None:
    """Run and measure every row of the study."""
    size = Size().scaled(scale)
    with exit_on_bad_input():
        folder = StudyFolder(out, study_settings(pipeline, size))
    study(folder, pipeline, size, seeds, tell=typer.echo)
    typer.echo((out / "alignment.md").read_text())


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
