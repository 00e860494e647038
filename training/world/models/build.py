"""Build the small world's models: `python -m training.world.models.build --out DIR`.

The stages are autoencoder, generator, preference groups, reward model and report. Each writes its result to DIR, so an
interrupted build resumes at the first unfinished stage. The finished, self-contained folder is DIR/model.
"""

import json
from pathlib import Path
from typing import Annotated

import torch
import typer
from diffusers import AutoencoderKL, StableDiffusion3Pipeline
from transformers import set_seed

from modeling_dina import DinaRewardModel
from modeling_dina.files import atomic_path
from modeling_dina.options import check_folder, exit_on_bad_input
from training.run_control import TERMINATED
from training.world.groups import Groups
from training.world.latents import rendered_groups
from training.world.models.autoencoder import build_autoencoder
from training.world.models.generated import generated_groups
from training.world.models.generator import build_generator
from training.world.models.report import write_report
from training.world.models.reward import train_reward
from training.world.seeds import Seed

# The minimum for a scaled build: pictures for one batch of the autoencoder, and groups.
MIN_PICTURES, MIN_GROUPS = 32, 4


def build(
    out: Annotated[Path, typer.Option(help="Folder of the build; an interrupted build resumes.")],
    scale: Annotated[float, typer.Option(help="Factor on the number of pictures, for a trial.", min=0.0)] = 1.0,
) -> None:
    """Train and measure the autoencoder, generator and reward model of the small world."""
    with exit_on_bad_input():
        check_folder("out", out)
    pipeline, model, tests = build_models(out, scale)
    pack(pipeline, model, out / "model")
    write_report(out, pipeline, model, tests, scale)


def build_models(out: Path, scale: float) -> tuple[StableDiffusion3Pipeline, DinaRewardModel, dict[str, Groups]]:
    """
    Run the unfinished stages.

    Args:
        out: folder of the build.
        scale: factor on the number of pictures.

    Returns:
        The generator, the reward model in evaluation mode, and the test groups by name.

    Raises:
        typer.Exit: SIGTERM stopped the reward training, which can resume from its checkpoint.
    """

    def amount(count: int, least: int = MIN_GROUPS) -> int:
        return max(least, round(count * scale))

    images = amount(64_000, MIN_PICTURES), amount(75_000, MIN_PICTURES)
    pipeline = build_pipeline(out, images=images, sample=amount(1024))
    vae = pipeline.vae
    rendered = rendered_groups(out / "rendered", vae, groups=amount(24_000), seed=Seed.RENDERED)
    generated = generated_groups(out / "generated", pipeline, groups=amount(2_000), seed=Seed.GENERATED)
    tests = {
        "seen": rendered_groups(out / "test_seen", vae, groups=amount(1_000), seed=Seed.TEST_SEEN),
        "held_out": rendered_groups(
            out / "test_held_out", vae, groups=amount(1_000), seed=Seed.TEST_HELD_OUT, held_out=True
        ),
        "generated": generated_groups(out / "test_generated", pipeline, groups=amount(250), seed=Seed.TEST_GENERATED),
    }
    validation = rendered_groups(out / "validation", vae, groups=amount(256), seed=Seed.VALIDATION)
    reward_dir = out / "reward_training" / "model"
    if (
        not (reward_dir / "config.json").exists()
        and train_reward(out, {"rendered": rendered, "generated": generated}, validation) is None
    ):
        raise typer.Exit(TERMINATED)
    return pipeline, DinaRewardModel.from_pretrained(reward_dir).to(pipeline.device).eval(), tests


def build_pipeline(out: Path, *, images: tuple[int, int], sample: int) -> StableDiffusion3Pipeline:
    """
    Train the generator with its autoencoder, or load finished parts from `out`.

    Args:
        out: folder of the build.
        images: numbers of training pictures of the autoencoder and of the generator.
        sample: number of pictures that determine the scale of the latents.
    """
    folder = out / "pipeline"
    if (folder / "vae" / "config.json").exists():
        vae = AutoencoderKL.from_pretrained(folder, subfolder="vae")
    else:
        set_seed(0)
        vae = build_autoencoder(out, images=images[0], sample=sample)
    if (folder / "model_index.json").exists():
        pipeline = StableDiffusion3Pipeline.from_pretrained(folder)
    else:
        set_seed(1)
        pipeline = build_generator(out, vae, images=images[1], epochs=5)
    return pipeline.to("cuda" if torch.cuda.is_available() else "cpu")


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
