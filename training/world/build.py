"""Build the small world's models: `python -m training.world.build --out DIR`.

Stages follow one another and each leaves its result under DIR, so that an interrupted build goes on where it stopped:
autoencoder, generator, preference groups, reward model, report. The finished, self-contained folder is DIR/model.
"""

import json
import shutil
from pathlib import Path
from typing import Annotated

import torch
import typer
from diffusers import AutoencoderKL, StableDiffusion3Pipeline
from transformers import set_seed

from modeling_dina import DinaRewardModel
from modeling_dina.cli import check_folder, exit_on_bad_input
from training.train_reward import TERMINATED
from training.world.autoencoder import build_autoencoder
from training.world.generator import build_generator
from training.world.preferences import generated_groups, rendered_groups
from training.world.report import write_report
from training.world.reward import train_reward


def build(
    out: Annotated[Path, typer.Option(help="Folder of the build; an interrupted one goes on.")],
    scale: Annotated[float, typer.Option(help="Factor on the number of pictures, for a trial.", min=0.0)] = 1.0,
) -> None:
    """Train autoencoder, generator and reward model of the small world, and measure them."""

    def amount(pictures: int) -> int:
        return max(64, round(pictures * scale))

    with exit_on_bad_input():
        check_folder("out", out)
    pipeline_dir, reward_dir = out / "pipeline", out / "reward_training" / "model"
    if (pipeline_dir / "vae" / "config.json").exists():
        vae = AutoencoderKL.from_pretrained(pipeline_dir, subfolder="vae")
    else:
        set_seed(0)
        vae = build_autoencoder(out, images=amount(64_000))
    if (pipeline_dir / "model_index.json").exists():
        pipeline = StableDiffusion3Pipeline.from_pretrained(pipeline_dir)
    else:
        set_seed(1)
        pipeline = build_generator(out, vae, images=amount(75_000), epochs=5)
    pipeline.to("cuda" if torch.cuda.is_available() else "cpu")

    rendered = rendered_groups(out / "rendered", pipeline.vae, groups=amount(24_000), seed=10)
    generated = generated_groups(out / "generated", pipeline, groups=amount(2_000), seed=11)
    tests = {
        "seen": rendered_groups(out / "test_seen", pipeline.vae, groups=amount(1_000), seed=20),
        "held_out": rendered_groups(out / "test_held_out", pipeline.vae, groups=amount(1_000), seed=21, held_out=True),
        "generated": generated_groups(out / "test_generated", pipeline, groups=amount(250), seed=22),
    }
    validation = rendered_groups(out / "validation", pipeline.vae, groups=256, seed=23)
    if (
        not (reward_dir / "config.json").exists()
        and train_reward(out, {"rendered": rendered, "generated": generated}, validation) is None
    ):
        raise typer.Exit(TERMINATED)
    model = DinaRewardModel.from_pretrained(reward_dir)
    pack(pipeline, model, out / "model")
    write_report(out, pipeline, model.to(pipeline.device).eval(), tests)


def pack(pipeline: StableDiffusion3Pipeline, model: DinaRewardModel, directory: Path) -> None:
    """One folder that is the reward model for transformers and the generator for diffusers.

    The autoencoder and the transformer are stored in half precision, which diffusers reads back into float32. The text
    encoders are not: transformers would run them in the precision they are stored in.
    """
    shutil.rmtree(directory, ignore_errors=True)
    pipeline.save_pretrained(directory)
    for name in ("vae", "transformer"):
        type(pipeline.components[name]).from_pretrained(
            directory, subfolder=name, torch_dtype=torch.float16
        ).save_pretrained(directory / name)
    model.save_pretrained(directory)
    for path in directory.rglob("*.json"):
        _forget_origin(path)


def _forget_origin(path: Path) -> None:
    """Take the folder that diffusers last loaded a part from out of its configuration."""
    config = json.loads(path.read_text())
    if isinstance(config, dict) and config.pop("_name_or_path", None):
        path.write_text(json.dumps(config, indent=2) + "\n")


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(build)
    app()
