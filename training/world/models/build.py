"""Build the small world's models: `python -m training.world.models.build --out DIR`.

The stages are autoencoder, generator, preference groups, reward model and report. Each writes its result to DIR, so an
interrupted build resumes at the first unfinished stage. The finished, self-contained folder is DIR/model.
"""

import json
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from diffusers import AutoencoderKL, StableDiffusion3Pipeline
from transformers import set_seed

from modeling_dina import DinaRewardModel
from modeling_dina.files import atomic_path
from modeling_dina.options import check_folder, exit_on_bad_input
from training.run_control import TERMINATED
from training.world.drawing import Ahead, drawing_pool
from training.world.groups import Groups
from training.world.latents import Shard, build_shards, encode, load_shards, rendered_groups, shard_paths
from training.world.models import autoencoder, generator
from training.world.models.generated import generated_groups
from training.world.models.pictures import Drawn, Pictures
from training.world.models.report import write_report
from training.world.models.reward import train_reward
from training.world.models.settings import PRESETS, Settings
from training.world.seeds import Seed


def build(
    out: Annotated[Path, typer.Option(help="Folder of the build; an interrupted build resumes.")],
    preset: Annotated[
        str, typer.Option(help="Sizes of the build: cpu, for two cores, or gpu, for a large GPU with 16 cores.")
    ] = "cpu",
    scale: Annotated[float, typer.Option(help="Factor on pictures and updates, for a trial.", min=0.0)] = 1.0,
) -> None:
    """Train and measure the autoencoder, generator and reward model of the small world."""
    with exit_on_bad_input():
        check_folder("out", out)
        if preset not in PRESETS:
            raise ValueError(f"preset: expected one of {', '.join(PRESETS)}, got {preset}")
    run_build(out, PRESETS[preset].scaled(scale))


def run_build(out: Path, settings: Settings) -> None:
    """Run the unfinished stages, and write the model and its report."""
    with drawing_pool() as pool:
        pipeline, model, tests = build_models(out, settings, pool)
        pack(pipeline, model, out / "model")
        write_report(out, pipeline, model, tests, settings)


def build_models(
    out: Path, settings: Settings, pool: Executor
) -> tuple[StableDiffusion3Pipeline, DinaRewardModel, dict[str, Groups]]:
    """
    Run the unfinished stages.

    Args:
        out: folder of the build.
        settings: amounts of the build.
        pool: processes that draw pictures while stages train; see `drawing_pool`.

    Returns:
        The generator, the reward model in evaluation mode, and the test groups by name.

    Raises:
        typer.Exit: SIGTERM stopped the reward training, which can resume from its checkpoint.
    """
    ahead = draw_ahead(out, settings, pool)
    pipeline = build_pipeline(out, settings, ahead)
    groups = {
        name: rendered_groups(out / name, pipeline.vae, groups=count, **options, ahead=ahead.get(name))
        for name, (count, options) in rendered_sets(settings).items()
    }
    for name, count, seed in (
        ("generated", settings.generated, Seed.GENERATED),
        ("test_generated", settings.few_groups, Seed.TEST_GENERATED),
    ):
        groups[name] = generated_groups(out / name, pipeline, groups=count, seed=seed, pool=pool)
    reward_dir = out / "reward_training" / "model"
    training = {name: groups[name] for name in ("rendered", "generated")}
    if (
        not (reward_dir / "config.json").exists()
        and train_reward(out, training, groups["validation"], settings, pool) is None
    ):
        raise typer.Exit(TERMINATED)
    model = DinaRewardModel.from_pretrained(reward_dir).to(pipeline.device).eval()
    return pipeline, model, {name: groups[f"test_{name}"] for name in ("seen", "held_out", "generated")}


def rendered_sets(settings: Settings) -> dict[str, tuple[int, dict[str, Any]]]:
    """Number of groups of every rendered set, and its arguments of `rendered_groups`."""
    return {
        "rendered": (settings.rendered, {"seed": Seed.RENDERED}),
        "validation": (settings.few_groups, {"seed": Seed.VALIDATION}),
        "test_seen": (settings.test, {"seed": Seed.TEST_SEEN}),
        "test_held_out": (settings.test, {"seed": Seed.TEST_HELD_OUT, "held_out": True}),
    }


def draw_ahead(out: Path, settings: Settings, pool: Executor) -> dict[str, Ahead]:
    """Start to draw all pictures of unfinished stages, in the order of their use."""
    share, vae = autoencoder.DEFECT_SHARE, out / "pipeline" / "vae" / "config.json"
    sets: dict[str, tuple[Callable, int, Path]] = {
        "autoencoder": (Pictures(Seed.AUTOENCODER, share).draw_many, settings.autoencoder_pictures, vae),
        "latent_scale": (Pictures(Seed.LATENT_SCALE, share).draw_many, settings.few_pictures, vae),
        "generator": (
            Pictures(Seed.GENERATOR, generator.DEFECT_SHARE).draw_many,
            settings.generator_pictures,
            out / "pipeline" / "model_index.json",
        ),
    }
    for name, (count, options) in rendered_sets(settings).items():
        sets[name] = partial(Groups.draw, **options), count, shard_paths(out / name, count)[-1]
    return {name: Ahead(pool, draw, count) for name, (draw, count, result) in sets.items() if not result.exists()}


def build_pipeline(out: Path, settings: Settings, ahead: dict[str, Ahead]) -> StableDiffusion3Pipeline:
    """
    Train the generator with its autoencoder, or load finished parts from `out`.

    Args:
        out: folder of the build.
        settings: amounts of the build.
        ahead: pictures "autoencoder", "latent_scale" and "generator" for the parts that are not finished.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    folder = out / "pipeline"
    if "autoencoder" in ahead:
        set_seed(0)
        pictures, sample = (Drawn.join(ahead[name].take_all()).pictures for name in ("autoencoder", "latent_scale"))
        updates, batch_size = settings.autoencoder_updates, settings.autoencoder_batch
        vae = autoencoder.build_autoencoder(
            out, pictures, sample, updates=updates, batch_size=batch_size, device=device
        )
    else:
        vae = AutoencoderKL.from_pretrained(folder, subfolder="vae").to(device)
    if "generator" not in ahead:
        return StableDiffusion3Pipeline.from_pretrained(folder).to(device)

    def make(indices: range) -> Shard:
        drawn = Drawn.join(ahead["generator"].take(indices))
        return Shard({"latents": encode(vae, drawn.pictures)}, drawn.captions)

    tensors, captions = load_shards(build_shards(out / "pictures", settings.generator_pictures, make))
    set_seed(1)
    return generator.build_generator(out, vae, tensors["latents"], captions, settings, device)


def pack(pipeline: StableDiffusion3Pipeline, model: DinaRewardModel, directory: Path) -> None:
    """Write one folder that transformers loads as the reward model and diffusers as the generator.

    The autoencoder and the transformer are stored in half precision, which diffusers converts to float32. The text
    encoders are stored in float32, because transformers runs them in the stored precision.
    """
    with atomic_path(directory) as partial:
        pipeline.save_pretrained(partial)
        for name in ("vae", "transformer"):
            type(pipeline.components[name]).from_pretrained(
                partial, subfolder=name, torch_dtype=torch.float16
            ).save_pretrained(partial / name)
        model.save_pretrained(partial)
        for path in partial.rglob("*.json"):
            _remove_source_path(path)


def _remove_source_path(path: Path) -> None:
    """Remove the local folder that diffusers records in the configuration of a loaded part."""
    config = json.loads(path.read_text())
    if isinstance(config, dict) and config.pop("_name_or_path", None):
        path.write_text(json.dumps(config, indent=2) + "\n")


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(build)
    app()
