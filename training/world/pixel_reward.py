"""A reward on pixels, to compare the latent one with: `python -m training.world.pixel_reward --out DIR`.

It sees through the autoencoder's encoder, whose features a small transformer reads together with the caption, and is
trained on the votes that the latent reward is trained on.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from diffusers import AutoencoderKL, StableDiffusion3Pipeline
from huggingface_hub import PyTorchModelHubMixin
from torch import nn
from torch.utils.data import Dataset
from tqdm import tqdm
from transformers import set_seed

from modeling_dina.cli import EMBEDDED_MODEL, check_folder, check_model, exit_on_bad_input, loading
from modeling_dina.thurstone_dina import likelihood_loss
from training.world.agreement import encode_captions, pairwise_accuracy
from training.world.annotators import IMPRESSION_NOISE, vote
from training.world.preferences import ANNOTATORS, FIRST, GROUP_SIZE, SECOND, Groups, generated_groups, rendered_groups
from training.world.stage import train_stage

# Those of the latent reward's own pictures.
RENDERED_SEED, GENERATED_SEED = 10, 11
TEST_SEEDS = {"rendered": 20, "generated": 22}


class PixelRewardModel(nn.Module, PyTorchModelHubMixin):
    """Scores of pictures under captions, in about the units of the true utility.

    Args:
        vae_config: of the autoencoder whose encoder it sees through; those weights are not trained.
        text_width: of prompt_embeds.
        width: of the reader.
        layers: of the reader.
    """

    def __init__(self, vae_config: dict, text_width: int, width: int = 128, layers: int = 3) -> None:
        super().__init__()
        vae = AutoencoderKL.from_config(vae_config)
        self.eyes = vae.encoder.requires_grad_(False)
        self.eyes.conv_out = nn.Identity()  # the features that latents are a projection of
        channels = vae.config.block_out_channels
        side = vae.config.sample_size // 2 ** (len(channels) - 1)
        self.from_picture, self.from_text = nn.Linear(channels[-1], width), nn.Linear(text_width, width)
        self.position = nn.Parameter(0.02 * torch.randn(side * side, width))
        self.query = nn.Parameter(0.02 * torch.randn(1, 1, width))
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.reader = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.score = nn.Linear(width, 1)

    def features(self, pictures: torch.Tensor) -> torch.Tensor:
        """What is seen of pictures [B, 3, H, W] in [-1, 1]: [B, tokens, channels]."""
        return self.eyes(pictures).flatten(2).transpose(1, 2)

    def read(self, features: torch.Tensor, prompt_embeds: torch.Tensor) -> torch.Tensor:
        """Scores [B] of features [B, tokens, channels] under prompt_embeds [B, L, D]."""
        picture = self.from_picture(features) + self.position
        query = self.query.expand(len(features), -1, -1)
        tokens = torch.cat([query, picture, self.from_text(prompt_embeds)], dim=1)
        return self.score(self.reader(tokens)[:, 0]).squeeze(1)

    def forward(
        self, pictures: torch.Tensor, prompt_embeds: torch.Tensor, pooled_prompt_embeds: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Scores [B] of pictures [B, 3, H, W] in [-1, 1]; the pooled embeddings say nothing that is not in the
        others."""
        return self.read(self.features(pictures), prompt_embeds)


class SeenGroups(Dataset):
    """Groups of pictures, as features seen once, with the share of votes that each pair's first picture got."""

    def __init__(
        self, features: torch.Tensor, prompt_embeds: torch.Tensor, utilities: np.ndarray, epochs: int
    ) -> None:
        self.features, self.prompt_embeds, self.epochs = features, prompt_embeds, epochs
        votes = vote(utilities[:, FIRST], utilities[:, SECOND], ANNOTATORS, np.random.default_rng(0))
        self.targets = torch.from_numpy(votes).float()

    def __len__(self) -> int:
        return self.epochs * len(self.features)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = index % len(self.features)
        return {
            "features": self.features[row].float(),
            "prompt_embeds": self.prompt_embeds[row].float(),
            "targets": self.targets[row],
        }


class VotesObjective(nn.Module):
    """Negative log-likelihood of the votes under the annotators' own Thurstone law."""

    def __init__(self, model: PixelRewardModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, features, prompt_embeds, targets) -> dict[str, torch.Tensor]:
        scores = score_groups(self.model, features, prompt_embeds)
        variance = scores.new_tensor(IMPRESSION_NOISE**2)
        return {"loss": likelihood_loss(scores[:, FIRST], scores[:, SECOND], variance, variance, targets).mean()}


def score_groups(model: PixelRewardModel, features: torch.Tensor, prompt_embeds: torch.Tensor) -> torch.Tensor:
    """Scores [G, 4] of features [G, 4, tokens, channels] under prompt_embeds [G, L, D]."""
    embeds = prompt_embeds.repeat_interleave(GROUP_SIZE, dim=0)
    return model.read(features.flatten(0, 1), embeds).unflatten(0, (-1, GROUP_SIZE))


@torch.no_grad()
def see(model: PixelRewardModel, vae: AutoencoderKL, latents: torch.Tensor) -> torch.Tensor:
    """Features, float16, of the decoded pictures of latents [G, 4, C, H, W] in model space."""
    seen = []
    for group in tqdm(latents.split(32), desc="pictures seen"):
        values = group.flatten(0, 1).float() / vae.config.scaling_factor + vae.config.shift_factor
        seen.append(model.features(vae.decode(values).sample.clamp(-1, 1)).half())
    return torch.cat(seen).unflatten(0, (-1, GROUP_SIZE))


@torch.no_grad()
def measure(model: PixelRewardModel, pipeline: StableDiffusion3Pipeline, groups: Groups) -> dict[str, float]:
    """Agreement with a fresh annotator, as `training.world.reward.pairwise_accuracy` has it."""
    tensors, captions = groups
    embeds, _ = encode_captions(pipeline, captions)
    features = see(model, pipeline.vae, tensors["latents"])
    batches = zip(features.split(64), embeds.split(64), strict=True)
    scores = torch.cat([score_groups(model, seen.float(), text.float()) for seen, text in batches])
    return pairwise_accuracy(scores.numpy(), tensors["utilities"].numpy())


def test_groups(folder: Path, pipeline: StableDiffusion3Pipeline, count: int) -> dict[str, Groups]:
    """Groups that no reward was trained on, rendered and generated, kept in `folder`."""
    return {
        "rendered": rendered_groups(folder / "test_rendered", pipeline.vae, groups=count, seed=TEST_SEEDS["rendered"]),
        "generated": generated_groups(folder / "test_generated", pipeline, groups=count, seed=TEST_SEEDS["generated"]),
    }


def train_pixel_reward(pipeline_dir: str, out: Path, *, rendered: int, generated: int, epochs: int) -> None:
    """Train it on pictures seen through the pipeline's autoencoder, and save it in `out`.

    Args:
        pipeline_dir: diffusers pipeline of the small world.
        out: for model, pictures and checkpoint; what is there is gone on from, and a finished model is kept.
        rendered, generated: groups of four pictures to train on.
        epochs: how often they are gone through.
    """
    if (out / "config.json").is_file():  # the last file to be written
        return
    set_seed(3)
    pipeline = StableDiffusion3Pipeline.from_pretrained(pipeline_dir, dtype=torch.float32)
    model = PixelRewardModel(dict(pipeline.vae.config), pipeline.transformer.config.joint_attention_dim)
    seeing = {
        key: value for key, value in pipeline.vae.encoder.state_dict().items() if not key.startswith("conv_out.")
    }
    model.eyes.load_state_dict(seeing)
    sets = [
        rendered_groups(out / "rendered", pipeline.vae, groups=rendered, seed=RENDERED_SEED),
        generated_groups(out / "generated", pipeline, groups=generated, seed=GENERATED_SEED),
    ]
    captions = [caption for _, captions in sets for caption in captions]
    train_stage(
        VotesObjective(model),
        SeenGroups(
            torch.cat([see(model, pipeline.vae, tensors["latents"]) for tensors, _ in sets]),
            encode_captions(pipeline, captions)[0],
            torch.cat([tensors["utilities"] for tensors, _ in sets]).numpy(),
            epochs,
        ),
        out / "training",
        batch_size=64,
        learning_rate=5e-4,
        dataloader_num_workers=0,
    )
    model.eval().save_pretrained(out)


def main(
    out: Annotated[Path, typer.Option(help="The model goes here; one that is finished is kept.")],
    pipeline: Annotated[str, typer.Option(help="Diffusers pipeline of the small world.")] = EMBEDDED_MODEL,
    rendered: Annotated[int, typer.Option(help="Rendered groups of four pictures to train on.")] = 8192,
    generated: Annotated[int, typer.Option(help="Generated groups to train on.")] = 2000,
    epochs: Annotated[int, typer.Option(help="How often they are gone through.")] = 4,
) -> None:
    """Train the pixel reward, and print how often it agrees with an annotator."""
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
