"""Stage four: a DiNa reward model on the generator's first blocks, trained on annotators' votes, and its test."""

import json
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusion3Pipeline
from torch import nn
from torch.utils.data import Dataset
from transformers import TrainerCallback

from modeling_dina import DinaRewardModel
from modeling_dina.thurstone_dina import likelihood_loss
from training.world.annotators import expected_agreement, vote
from training.world.preferences import GROUP_SIZE, Groups
from training.world.stage import train_stage
from training.world.text import MAX_LENGTH

ANNOTATORS = 9  # votes on each pair
FIRST, SECOND = (index.tolist() for index in np.triu_indices(GROUP_SIZE, 1))


class RankedGroups(Dataset):
    """Groups of latents under one caption with the share of votes that each pair's first picture got.

    Args:
        tensors: "latents" [G, 4, 16, 8, 8] and "utilities" [G, 4]; the latter only cast the votes, once.
        captions: G of them, encoded here once.
        pipeline: whose text encoders do it.
        epochs: how often the groups are gone through.
    """

    def __init__(
        self, tensors: dict[str, torch.Tensor], captions: list[str], pipeline: StableDiffusion3Pipeline, epochs: int
    ) -> None:
        self.latents, self.epochs = tensors["latents"], epochs
        utilities = tensors["utilities"].numpy()
        votes = vote(utilities[:, FIRST], utilities[:, SECOND], ANNOTATORS, np.random.default_rng(0))
        self.targets = torch.from_numpy(votes).float()
        self.prompt_embeds, self.pooled_prompt_embeds = encode_captions(pipeline, captions)

    def __len__(self) -> int:
        return self.epochs * len(self.latents)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = index % len(self.latents)
        return {
            "latents": self.latents[row].float(),
            "prompt_embeds": self.prompt_embeds[row].float(),
            "pooled_prompt_embeds": self.pooled_prompt_embeds[row].float(),
            "targets": self.targets[row],
        }


class PreferenceObjective(nn.Module):
    """Negative log-likelihood of the votes under the noise-calibrated Thurstone law.

    A group shares its noise and its noise level, drawn as u^1.5 with u uniform in [0, 1]: all levels, but the readable
    ones more often.
    """

    def __init__(self, model: DinaRewardModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, latents, prompt_embeds, pooled_prompt_embeds, targets) -> dict[str, torch.Tensor]:
        groups = len(latents)
        sigma = torch.rand(groups, device=latents.device) ** 1.5
        noise = torch.randn_like(latents[:, :1]).expand_as(latents).flatten(0, 1)
        sigmas = sigma.repeat_interleave(GROUP_SIZE)
        noisy_latents = self.model.noise_path.add_noise(latents.flatten(0, 1), noise, sigmas)
        scores = self.model(
            noisy_latents,
            sigmas,
            prompt_embeds.repeat_interleave(GROUP_SIZE, dim=0),
            pooled_prompt_embeds.repeat_interleave(GROUP_SIZE, dim=0),
        ).scores.view(groups, GROUP_SIZE)
        variance = self.model.variance(sigma)[:, None]
        return {"loss": likelihood_loss(scores[:, FIRST], scores[:, SECOND], variance, variance, targets).mean()}


@torch.no_grad()
def encode_captions(
    pipeline: StableDiffusion3Pipeline, captions: list[str], batch_size: int = 512
) -> tuple[torch.Tensor, torch.Tensor]:
    """Text embeddings [N, L, D] and pooled embeddings [N, P], float16."""
    embeds, pooled = [], []
    for start in range(0, len(captions), batch_size):
        batch = pipeline.encode_prompt(
            captions[start : start + batch_size],
            None,
            None,
            do_classifier_free_guidance=False,
            max_sequence_length=MAX_LENGTH,
        )
        embeds.append(batch[0].half().cpu())
        pooled.append(batch[2].half().cpu())
    return torch.cat(embeds), torch.cat(pooled)


class LearningCurve(TrainerCallback):
    """At every checkpoint, the ensemble's accuracy on some groups, as a line of JSON."""

    def __init__(self, path: Path, model: DinaRewardModel, pipeline: StableDiffusion3Pipeline, groups: Groups) -> None:
        self.path, self.model, self.pipeline, self.groups = path, model, pipeline, groups

    def on_save(self, args, state, control, **kwargs):
        self.model.eval()
        scores = group_scores(self.model, self.pipeline, self.groups)
        self.model.train()
        sigmas = list(self.model.config.default_sigmas)
        measured = {"step": state.global_step, "sigmas": sigmas} | pairwise_accuracy(
            scores, self.groups[0]["utilities"].numpy()
        )
        with self.path.open("a") as file:
            file.write(json.dumps(measured) + "\n")


def train_reward(
    directory: Path,
    pipeline: StableDiffusion3Pipeline,
    groups: Groups,
    validation: Groups,
    *,
    epochs: int,
    batch_size: int = 64,
) -> DinaRewardModel:
    """Train on the first blocks of the generator under `pipeline/` and save the reward model under `reward/`."""
    model = DinaRewardModel.from_backbone(
        directory / "pipeline",
        num_layers=4,
        visual_layers=[2, 4],
        text_layers=[2, 4],
        head_width=96,
        max_sequence_length=MAX_LENGTH,
        base_model=None,  # it lies beside the weights
        conditioning_source=".",
        # Chosen on the validation groups: an 8 x 8 latent says less under noise than a large picture's does.
        default_sigmas=[0.1, 0.2, 0.4],
        default_num_draws=4,
    )
    train_stage(
        PreferenceObjective(model),
        RankedGroups(*groups, pipeline, epochs),
        directory / "reward_training",
        batch_size=batch_size,
        learning_rate=5e-4,
        dataloader_num_workers=0,
        callbacks=[LearningCurve(directory / "learning_curve.jsonl", model, pipeline, validation)],
    )
    model.eval().save_pretrained(directory / "reward")
    return model


@torch.no_grad()
def group_scores(model: DinaRewardModel, pipeline: StableDiffusion3Pipeline, groups: Groups, **ensemble) -> np.ndarray:
    """Rewards [G, 4] of groups of latents; `ensemble` goes to `DinaRewardModel.reward`."""
    tensors, captions = groups
    prompt_embeds, pooled = encode_captions(pipeline, captions)
    scores = []
    for start in range(0, len(captions), 64):
        rows = slice(start, start + 64)
        output = model.reward(
            tensors["latents"][rows].flatten(0, 1).float().to(model.device),
            prompt_embeds[rows].float().repeat_interleave(GROUP_SIZE, dim=0).to(model.device),
            pooled[rows].float().repeat_interleave(GROUP_SIZE, dim=0).to(model.device),
            **ensemble,
        )
        scores.append(output.scores.view(-1, GROUP_SIZE).cpu())
    return torch.cat(scores).numpy()


def pairwise_accuracy(scores: np.ndarray, utilities: np.ndarray) -> dict[str, float]:
    """How often the order of all pairs within groups is a fresh annotator's, in expectation.

    Args:
        scores, utilities: [G, 4].

    Returns:
        "accuracy" with its "standard_error" over groups, the "best" that can be reached, and the "ratio" of the two.
    """
    pairs = utilities[:, FIRST], utilities[:, SECOND]
    agreement = expected_agreement(scores[:, FIRST] > scores[:, SECOND], *pairs)
    accuracy, best = agreement.mean(), expected_agreement(pairs[0] > pairs[1], *pairs).mean()
    error = agreement.mean(axis=1).std(ddof=1) / len(scores) ** 0.5
    measured = {"accuracy": accuracy, "standard_error": error, "best": best, "ratio": accuracy / best}
    return {name: float(value) for name, value in measured.items()}
