"""The variant that reads pictures: the small world's pixel reward, trained on the same groups as the others."""

from pathlib import Path

import numpy as np
import torch
from transformers import set_seed

from model_card.studies.method.material import Material
from model_card.studies.method.measurement import Read, Reader
from training.reward.pixel_model import PixelRewardModel
from training.world.annotators import IMPRESSION_NOISE
from training.world.groups import Groups, cast_votes
from training.world.latents import Shard, build_shards, load_shards, to_pixels
from training.world.models.pixel_reward import (
    encode_pictures,
    feature_dataset,
    fit_pixel_reward,
    fresh_pixel_reward,
    score_groups,
)
from training.world.models.scores import encode_captions

EPOCHS = 4  # as `training.world.models.pixel_reward` has it; the other variants go through the pairs twice


def train_pixels(material: Material, seed: int, steps: int, folder: Path) -> PixelRewardModel:
    """
    Train in about `steps` updates, or load what was trained before.

    Args:
        seed: of the fresh weights and the order of the groups.
        folder: of the model; an interrupted training resumes.
    """
    set_seed(seed)
    embeds, groups = prompt_embeds(material, material.train), material.train
    model = fresh_pixel_reward(material.pipeline.vae, embeds.shape[-1])
    if (folder / "config.json").is_file():  # the last file to be written
        return PixelRewardModel.from_pretrained(folder).to(material.pipeline.device).eval()
    votes = torch.from_numpy(cast_votes(groups.utilities))
    fit_pixel_reward(
        model,
        feature_dataset(picture_features(model, material, "train", groups, "latents"), embeds, votes, EPOCHS),
        folder,
        batch_size=max(1, EPOCHS * len(groups) // steps),
        warmup_steps=steps // 10,
        seed=seed,
    )
    return model.to(material.pipeline.device)


def prompt_embeds(material: Material, groups: Groups) -> torch.Tensor:
    """Text embeddings [G, L, D] of the captions."""
    return encode_captions(material.pipeline, groups.captions)[0]


def picture_features(model: PixelRewardModel, material: Material, name: str, groups: Groups, of: str) -> torch.Tensor:
    """
    Vision features [G, 4, tokens, channels], which do not depend on the training; stored beside the groups.

    Args:
        name: of the groups among the material's folders.
        of: "pictures" as they were drawn; "latents" decoded.
    """

    def make(indices: range) -> Shard:
        rows = slice(indices.start, indices.stop)
        if of == "latents":
            features = encode_pictures(model, material.pipeline.vae, groups.latents[rows])
        else:
            with torch.no_grad():
                drawn = (to_pixels(groups.pictures[index]).to(material.pipeline.device) for index in indices)
                features = torch.stack([model.features(pictures).half().cpu() for pictures in drawn])
        return Shard({"features": features}, groups.captions[rows])

    folder = material.folder / name / f"features_of_{of}"
    return load_shards(build_shards(folder, len(groups), make)).tensors["features"]


def pixel_reader(model: PixelRewardModel, material: Material) -> Reader:
    """Rewards of the material's sets; the model knows no noise, and has one draw at level 0."""

    @torch.no_grad()
    def read(name: str, sigmas, draws: int, of: str) -> Read:
        groups = material.sets[name]
        features, embeds = picture_features(model, material, name, groups, of), prompt_embeds(material, groups)
        batches = zip(features.split(64), embeds.split(64), strict=True)
        device = material.pipeline.device
        scores = [score_groups(model, each.float().to(device), text.float().to(device)) for each, text in batches]
        samples = torch.cat(scores).double().cpu().numpy().reshape(1, 1, -1)
        return Read(samples, samples, np.array([IMPRESSION_NOISE**2]))

    return read
