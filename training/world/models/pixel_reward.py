"""Train a reward on pixels as a baseline: `python -m training.world.models.pixel_reward --out DIR`.

It is trained on the same votes as the latent reward.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from diffusers import AutoencoderKL, StableDiffusion3Pipeline
from torch import nn
from tqdm import tqdm
from transformers import set_seed

from modeling_dina.latents_dina import decode_latents
from modeling_dina.options import EMBEDDED_MODEL, check_folder, check_model, exit_on_bad_input, loading
from modeling_dina.thurstone_dina import likelihood_loss
from training.reward.pixel_model import PixelRewardModel
from training.world.annotators import IMPRESSION_NOISE
from training.world.groups import FIRST, GROUP_SIZE, SECOND, Groups, cast_votes, pairwise_accuracy
from training.world.latents import rendered_groups
from training.world.models.generated import generated_groups
from training.world.models.scores import encode_captions
from training.world.models.stage import Batches, train_stage
from training.world.seeds import Seed


class VotesObjective(nn.Module):
    """Negative log-likelihood of the votes under the Thurstone model that generated them."""

    def __init__(self, model: PixelRewardModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, features, prompt_embeds, targets) -> dict[str, torch.Tensor]:
        scores, targets = score_groups(self.model, features, prompt_embeds), targets.float()
        variance = scores.new_tensor(IMPRESSION_NOISE**2)
        return {"loss": likelihood_loss(scores[:, FIRST], scores[:, SECOND], variance, variance, targets).mean()}


def score_groups(model: PixelRewardModel, features: torch.Tensor, prompt_embeds: torch.Tensor) -> torch.Tensor:
    """Scores [G, 4] of features [G, 4, tokens, channels] for prompt_embeds [G, L, D], in float32."""
    device = next(model.parameters()).device
    embeds = prompt_embeds.float().repeat_interleave(GROUP_SIZE, dim=0).to(device)
    return model.read(features.float().flatten(0, 1).to(device), embeds).unflatten(0, (-1, GROUP_SIZE))


@torch.no_grad()
def encode_pictures(model: PixelRewardModel, vae: AutoencoderKL, latents: torch.Tensor) -> torch.Tensor:
    """Decode latents [G, 4, C, H, W] in model space, and encode the pictures to vision features, float16
    [G, 4, tokens, channels]."""
    features = []
    for group in tqdm(latents.split(32), desc="encoding pictures"):
        pixels = decode_latents(vae, group.flatten(0, 1).float().to(vae.device)).clamp(-1, 1)
        features.append(model.to(vae.device).features(pixels).half().cpu())
    return torch.cat(features).unflatten(0, (-1, GROUP_SIZE))


@torch.no_grad()
def measure(model: PixelRewardModel, pipeline: StableDiffusion3Pipeline, groups: Groups) -> dict[str, float]:
    """Agreement with a new annotator, as returned by `training.world.groups.pairwise_accuracy`."""
    assert groups.latents is not None
    embeds, _ = encode_captions(pipeline, groups.captions)
    features = encode_pictures(model, pipeline.vae, groups.latents)
    batches = zip(features.split(64), embeds.split(64), strict=True)
    scores = torch.cat([score_groups(model, pictures, text) for pictures, text in batches])
    return pairwise_accuracy(scores.cpu().numpy(), groups.utilities)


def test_groups(folder: Path, pipeline: StableDiffusion3Pipeline, count: int) -> dict[str, Groups]:
    """Rendered and generated test groups, stored in `folder`. No reward was trained on them."""
    return {
        "rendered": rendered_groups(folder / "test_rendered", pipeline.vae, groups=count, seed=Seed.TEST_SEEN),
        "generated": generated_groups(folder / "test_generated", pipeline, groups=count, seed=Seed.TEST_GENERATED),
    }


def features_and_votes(
    model: PixelRewardModel, pipeline: StableDiffusion3Pipeline, sets: Sequence[Groups]
) -> dict[str, torch.Tensor]:
    """
    Concatenate the groups of several sets, and draw all their votes together.

    Returns:
        "features" [G, 4, tokens, channels] of the pictures, "prompt_embeds" [G, L, D], and "targets" [G, 6], the share
        of votes for the first picture of each pair.
    """
    captions = [caption for groups in sets for caption in groups.captions]
    utilities = torch.cat([torch.from_numpy(groups.utilities) for groups in sets]).numpy()
    features = []
    for groups in sets:
        assert groups.latents is not None
        features.append(encode_pictures(model, pipeline.vae, groups.latents))
    return {
        "features": torch.cat(features),
        "prompt_embeds": encode_captions(pipeline, captions)[0],
        "targets": torch.from_numpy(cast_votes(utilities)),
    }


def train_pixel_reward(pipeline_dir: str, out: Path, *, rendered: int, generated: int, epochs: int) -> None:
    """
    Train a pixel reward on decoded pictures, and save it in `out`.

    Args:
        pipeline_dir: diffusers pipeline of the small world.
        out: folder for model, groups and checkpoints. An interrupted training resumes, and a finished model is not
            trained again.
        rendered, generated: numbers of training groups of four pictures.
        epochs: number of passes over the groups.
    """
    if (out / "config.json").is_file():  # the last file to be written
        return
    set_seed(3)
    pipeline = StableDiffusion3Pipeline.from_pretrained(pipeline_dir, dtype=torch.float32)
    model = fresh_pixel_reward(pipeline.vae, pipeline.transformer.config.joint_attention_dim)
    sets = [
        rendered_groups(out / "rendered", pipeline.vae, groups=rendered, seed=Seed.RENDERED),
        generated_groups(out / "generated", pipeline, groups=generated, seed=Seed.GENERATED),
    ]
    batch_size = 64
    updates = max(1, epochs * (rendered + generated) // batch_size)
    fit_pixel_reward(model, features_and_votes(model, pipeline, sets), out, updates=updates, batch_size=batch_size)


def fresh_pixel_reward(vae: AutoencoderKL, text_width: int) -> PixelRewardModel:
    """Create a pixel reward with the encoder of `vae` and otherwise random weights."""
    model = PixelRewardModel(dict(vae.config), text_width)
    weights = vae.encoder.state_dict()
    model.vision_encoder.load_state_dict(
        {name: weight for name, weight in weights.items() if not name.startswith("conv_out.")}
    )
    return model


def fit_pixel_reward(
    model: PixelRewardModel, votes: dict[str, torch.Tensor], out: Path, *, updates: int, batch_size: int, seed: int = 0
) -> None:
    """
    Train a pixel reward, and save it in `out`.

    Args:
        model: untrained model.
        votes: features and votes of groups.
        out: folder for the model; checkpoints are in its subfolder `training`.
        updates: number of updates.
        batch_size: number of groups per update.
        seed: seed of the order of the groups.
    """
    batches = Batches(votes, updates=updates, batch_size=batch_size, seed=seed)
    train_stage(VotesObjective(model), batches, out / "training", learning_rate=5e-4)
    model.eval().save_pretrained(out)


def main(
    out: Annotated[Path, typer.Option(help="Folder for the model; a finished model is not trained again.")],
    pipeline: Annotated[str, typer.Option(help="Diffusers pipeline of the small world.")] = EMBEDDED_MODEL,
    rendered: Annotated[int, typer.Option(help="Rendered groups of four pictures to train on.")] = 8192,
    generated: Annotated[int, typer.Option(help="Generated groups to train on.")] = 2000,
    epochs: Annotated[int, typer.Option(help="Number of passes over the groups.")] = 4,
) -> None:
    """Train the pixel reward, and print its agreement with an annotator."""
    with exit_on_bad_input():
        check_folder("out", out)
        check_model(pipeline, "pipeline")
        with loading("pipeline", pipeline):
            generator = StableDiffusion3Pipeline.from_pretrained(pipeline, dtype=torch.float32)
    train_pixel_reward(pipeline, out, rendered=rendered, generated=generated, epochs=epochs)
    model = PixelRewardModel.from_pretrained(out)
    for name, groups in test_groups(out, generator, count=500).items():
        typer.echo(f"{name}: {measure(model, generator, groups)}")


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
