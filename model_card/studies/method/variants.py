"""The variants of the method study. Each differs from DiNa in one respect; those that read latents are trained by the
package's own trainer."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from json import dumps
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset
from diffusers import StableDiffusion3Pipeline
from torch import nn
from transformers import set_seed

from model_card.studies import frame
from modeling_dina import DinaConfig, DinaRewardModel
from modeling_dina.backbone_base_dina import Features
from modeling_dina.backbone_dina import build_backbone
from modeling_dina.pipelines_dina import EncodedPrompts
from training.arguments import load_config
from training.reward.evaluation import Encoder
from training.reward.objective import PreferenceObjective
from training.reward.trainer import RewardTrainer, RewardTrainingArguments
from training.run_control import TERMINATED, last_checkpoint
from training.train_reward import DataArguments, ModelArguments, build_objective
from training.world.models.reward import CONFIG
from training.world.models.scores import encode_captions


class DotProductHead(nn.Module):
    """A head with the arguments of `RewardHead`: pooled image feature times pooled text feature times a learnt scale,
    in the manner of LRM (arXiv 2502.01051). The text feature is the embedding of pooled text and noise level that
    modulates every block."""

    def __init__(self, config: DinaConfig, token_width: int) -> None:
        super().__init__()
        width = config.head_width or token_width
        self.project_visual = nn.Linear(len(config.visual_layers) * token_width, width, bias=False)
        self.project_text = nn.Linear(token_width, width, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(1 / 0.07).log())  # as CLIP begins

    def forward(self, levels: list[Features]) -> torch.Tensor:
        """One reward per sample, [B]; the tokens of several noise levels are pooled together."""
        visual = torch.cat([torch.cat(features.visual, dim=-1) for features in levels], dim=1).mean(dim=1)
        text = torch.stack([features.conditioning for features in levels]).mean(dim=0)
        cosine = F.cosine_similarity(self.project_visual(visual), self.project_text(text))
        return self.log_scale.exp() * cosine


def forget_pretraining(model: DinaRewardModel) -> None:
    """Replace the generator's weights by random ones."""
    model.backbone = build_backbone(model.config)


def score_by_dot_product(model: DinaRewardModel) -> None:
    """Replace the head."""
    config: Any = model.config
    model.add_module("head", DotProductHead(config, model.backbone.dimensions.token_width))


@dataclass(frozen=True)
class Variant(frame.Variant):
    """A reward model of the study. Its overrides are fields of `ModelArguments` that differ from the small world's;
    those of "reward_config" are added to the small world's."""

    prepare: Callable[[DinaRewardModel], None] = lambda model: None  # changes the fresh model into the variant
    evaluations: tuple[str, ...] = ("one level", "features")  # names of `measurement.EVALUATIONS`
    cost: str = "dina"  # the variant that costs the same

    @property
    def thurstone(self) -> bool:
        """Whether its rewards follow Thurstone's law, rather than that of Bradley and Terry."""
        return self.overrides.get("loss") != "bradley_terry"


CLEAN = {"sigma_density": "constant", "sigma_parameters": [0.0]}
BRADLEY_TERRY = {"loss": "bradley_terry"}
FROZEN = {"backbone": "frozen", "backbone_dtype": "float32"}
ALL = ("one level", "features", "mean", "precision")
# DiNa's variance is 2 sigma^2 + 0.05, where sigma in training is the square of a uniform number: its mean is 0.45.
FLOOR, MEAN = ({"reward_config": {"variance_slope": 0.0, "variance_floor": floor}} for floor in (0.05, 0.45))
# Colours of Okabe and Ito, which any colour vision distinguishes.
VARIANTS = {
    "dina": Variant("DiNa", "#0072B2", evaluations=ALL),
    "clean": Variant("without noise", "#56B4E9", CLEAN, evaluations=("clean",)),
    "constant_floor": Variant("constant variance, same floor", "#D55E00", FLOOR),
    "constant_mean": Variant("constant variance, same mean", "#E69F00", MEAN),
    "bradley_terry": Variant("Bradley-Terry", "#CC79A7", BRADLEY_TERRY),
    "frozen": Variant("frozen backbone", "#009E73", FROZEN),
    "random_start": Variant("no generative pretraining", "#8C8C8C", prepare=forget_pretraining),
    "dot_product": Variant("dot product (LRM)", "#6A3D9A", BRADLEY_TERRY, score_by_dot_product, cost="dot_product"),
    # Trained and read by pixel.py.
    "pixel": Variant("pixel reward", "#000000", evaluations=("decoded", "pictures"), cost="pixel"),
}


def read_arguments(base_model: str, variant: Variant, **fields) -> tuple[ModelArguments, RewardTrainingArguments]:
    """The small world's settings with the variant's overrides; `fields` are those of the training that differ too."""
    values = {"base_model": base_model, "report_to": "none", **fields}
    arguments, _, args = load_config(CONFIG, ModelArguments, DataArguments, RewardTrainingArguments, **values)
    reward = arguments.reward_fields | variant.overrides.get("reward_config", {})
    return replace(arguments, **variant.overrides | {"reward_config": dumps(reward)}), args


def build_variant(
    variant: Variant, arguments: ModelArguments, pipeline: StableDiffusion3Pipeline
) -> tuple[PreferenceObjective, Encoder]:
    """The untrained variant, and the function that encodes its model's prompts."""
    objective = build_objective(arguments)
    variant.prepare(objective.model)

    def encode(prompts: list[str]) -> EncodedPrompts:
        embeds, pooled = encode_captions(pipeline, prompts)
        return EncodedPrompts(embeds.float(), pooled.float()).to(objective.model.device)

    return objective, encode


def train_variant(
    variant: Variant, pipeline_dir: str, pipeline: StableDiffusion3Pipeline, pairs: Dataset, folder: Path, **fields
) -> tuple[DinaRewardModel, Encoder]:
    """Train a variant to the end, from the last checkpoint in `folder` if a SIGTERM has left one. A SIGTERM raises a
    SystemExit. `fields` are those of `RewardTrainingArguments`, with "max_steps" and with "seed", the seed of fresh
    weights, of the order of pairs and of noise."""
    steps = fields["max_steps"]
    fields |= {"warmup_steps": steps // 10, "logging_steps": max(1, steps // 10), "eval_strategy": "no"}
    fields |= {"save_steps": max(1, steps // 3), "save_total_limit": 1, "ema_decay": 0}
    arguments, args = read_arguments(pipeline_dir, variant, output_dir=folder, **fields)
    set_seed(args.seed)
    objective, encode = build_variant(variant, arguments, pipeline)
    trainer = RewardTrainer(objective, args, encode_prompts=encode, noise_levels=arguments.noise_levels, pairs=pairs)
    checkpoint = last_checkpoint(folder)
    if checkpoint is not None:
        trainer.resume(checkpoint)
    trainer.train()
    if trainer.was_terminated:
        raise SystemExit(TERMINATED)
    return objective.model.eval(), encode
