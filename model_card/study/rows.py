"""The rows of the study: reward models that differ from DiNa in one thing each, all by the package's own trainer."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from json import dumps
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from diffusers import AutoencoderKL, StableDiffusion3Pipeline
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, ViTConfig, ViTModel, set_seed

from modeling_dina import DinaConfig, DinaRewardModel
from modeling_dina.backbone_dina import Features, build_backbone
from modeling_dina.latents_dina import decode_latents
from modeling_dina.thurstone_dina import noise_variance
from training.arguments import load_config
from training.reward.evaluation import Encoder
from training.reward.noise_levels import NoiseLevels
from training.reward.objective import PreferenceObjective
from training.reward.trainer import RewardTrainer, RewardTrainingArguments
from training.run_control import TERMINATED, last_checkpoint
from training.train_reward import DataArguments, ModelArguments, build_objective
from training.world.groups import FIRST, GROUP_SIZE, SECOND
from training.world.latents import decode, to_pixels
from training.world.models.reward import CONFIG
from training.world.models.scores import encode_captions

PATCH_SIZE = 16  # pixels: as many tokens as the diffusion backbone makes of the latent, by 8 times 2


class DotProductHead(nn.Module):
    """
    Pooled image feature times pooled text feature times a learnt scale, in the manner of LRM (arXiv 2502.01051).

    Takes what `RewardHead` takes. The text feature is the embedding of pooled text and noise level that modulates
    every block.
    """

    def __init__(self, config: DinaConfig, token_width: int) -> None:
        super().__init__()
        width = config.head_width or token_width
        self.project_visual = nn.Linear(len(config.visual_layers) * token_width, width, bias=False)
        self.project_text = nn.Linear(token_width, width, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(1 / 0.07).log())  # as CLIP begins

    def forward(self, levels: list[Features]) -> torch.Tensor:
        """One reward a sample, [B]; the tokens of several noise levels are pooled together."""
        visual = torch.cat([torch.cat(features.visual, dim=-1) for features in levels], dim=1).mean(dim=1)
        text = torch.stack([features.conditioning for features in levels]).mean(dim=0)
        cosine = F.cosine_similarity(self.project_visual(visual), self.project_text(text))
        return self.log_scale.exp() * cosine


class Decoder(nn.Module):
    """Latents in model space to pictures in [-1, 1]."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W] -> [B, 3, 8 H, 8 W]."""
        return decode_latents(self.vae, latents).clamp(-1, 1)


class PixelBackbone(nn.Module):
    """
    A vision transformer and a text encoder, tapped as the diffusion backbone is and about as large.

    Attributes:
        picture: what makes pictures of the input: nothing of pictures, or a `Decoder` of latents.
    """

    def __init__(self, config: DinaConfig, pipeline: StableDiffusion3Pipeline) -> None:
        super().__init__()
        heads = config.transformer_config["num_attention_heads"]
        width = heads * config.transformer_config["attention_head_dim"]
        # A joint block has two streams of 18 width^2 weights each, a layer here has 12.
        layers = config.num_layers * 3 // 2
        size = {
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
        }
        self.picture: nn.Module = nn.Identity()
        side = pipeline.vae.config.sample_size
        vision = ViTConfig(**size, image_size=side, patch_size=PATCH_SIZE)
        self.vision = ViTModel(vision, add_pooling_layer=False)
        tokenizer = pipeline.tokenizer
        text = CLIPTextConfig(
            **size,
            vocab_size=len(tokenizer),
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        self.text = CLIPTextModel(text)
        self.visual_layers, self.text_layers = (
            [layer * 3 // 2 for layer in taps] for taps in (config.visual_layers, config.text_layers)
        )

    def forward(
        self, noisy_latents: torch.Tensor, timestep: torch.Tensor, token_ids: torch.Tensor, mask: torch.Tensor
    ) -> Features:
        """
        Args:
            noisy_latents: what `picture` takes: pictures [B, 3, H, W] in [-1, 1], or latents.
            timestep: passed over; the model knows of no noise.
            token_ids: [B, L, 1], in the place of prompt embeddings.
            mask: [B, L], 1 where a token is one of the prompt's.
        """
        visual = self.vision(self.picture(noisy_latents), output_hidden_states=True).hidden_states
        text = self.text(token_ids.squeeze(-1), attention_mask=mask, output_hidden_states=True)
        return Features(
            visual=[visual[layer] for layer in self.visual_layers],
            text=[text.hidden_states[layer] for layer in self.text_layers],
            conditioning=text.pooler_output,
        )

    def check_inputs(self, *inputs) -> None:
        """Nothing: the study alone calls it."""


def read_embeddings(model: DinaRewardModel, pipeline: StableDiffusion3Pipeline) -> Encoder:
    """The model as it is, which reads the pipeline's text embeddings."""

    def encode(prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        embeds, pooled = encode_captions(pipeline, prompts)
        return embeds.float().to(model.device), pooled.float().to(model.device)

    return encode


def forget_pretraining(model: DinaRewardModel, pipeline: StableDiffusion3Pipeline) -> Encoder:
    """Random weights in the place of those that the generator has learnt."""
    model.backbone = build_backbone(model.config)
    return read_embeddings(model, pipeline)


def score_by_dot_product(model: DinaRewardModel, pipeline: StableDiffusion3Pipeline) -> Encoder:
    """Another head."""
    model.head = DotProductHead(model.config, model.backbone.token_width(model.config))
    return read_embeddings(model, pipeline)


def see_pixels(model: DinaRewardModel, pipeline: StableDiffusion3Pipeline) -> Encoder:
    """Another backbone, which reads token numbers."""
    model.backbone = PixelBackbone(model.config, pipeline)

    def encode(prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = pipeline.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt")
        return tokens.input_ids.unsqueeze(-1).to(model.device), tokens.attention_mask.to(model.device)

    return encode


def show_pictures(pairs: Dataset, latents: torch.Tensor, pipeline: StableDiffusion3Pipeline) -> Dataset:
    """
    The same pairs with decoded pictures in the place of latents.

    Args:
        pairs: all of all groups, group by group.
        latents: of the groups, [G, 4, C, H, W].
        pipeline: whose VAE decodes them.
    """
    pictures = decode(pipeline, latents.flatten(0, 1).float().to(pipeline.device))

    def show(batch: dict) -> dict:
        groups, places = np.divmod(batch.pop("row"), len(FIRST))
        for name, members in (("latents_a", FIRST), ("latents_b", SECOND)):
            batch[name] = [to_pixels(pictures[index]) for index in GROUP_SIZE * groups + np.array(members)[places]]
        return batch

    numbered = pairs.remove_columns(["latents_a", "latents_b"]).add_column("row", list(range(len(pairs))))
    return numbered.with_transform(show)


@dataclass(frozen=True)
class Row:
    """
    A reward model of the study.

    Attributes:
        title: in tables and figures.
        arguments: fields of `ModelArguments` that differ from the small world's.
        variance: "calibrated"; or constant: the calibrated one's "floor", or its "mean" over the levels of training.
        prepare: makes the fresh model what the row trains, and says how it is given prompts.
        readings: names of `measurement.READINGS` that are reported.
        cost: the row whose cost this one has.
    """

    title: str
    arguments: dict[str, Any] = field(default_factory=dict)
    variance: str = "calibrated"
    prepare: Callable[[DinaRewardModel, StableDiffusion3Pipeline], Encoder] = read_embeddings
    readings: tuple[str, ...] = ("one level", "features")
    cost: str = "dina"

    @property
    def thurstone(self) -> bool:
        """Whether its rewards follow Thurstone's law, or Bradley and Terry's."""
        return self.arguments.get("loss") != "bradley_terry"

    @property
    def sees_pictures(self) -> bool:
        """Whether it is trained on pictures in the place of latents."""
        return self.prepare is see_pixels


CLEAN = {"sigma_density": "constant", "sigma_parameters": [0.0]}
BRADLEY_TERRY = {"loss": "bradley_terry"}
ROWS = {
    "dina": Row("DiNa", readings=("one level", "features", "mean", "precision")),
    "clean": Row("without noise", CLEAN, readings=("clean",)),
    "constant_floor": Row("constant variance, same floor", variance="floor"),
    "constant_mean": Row("constant variance, same mean", variance="mean"),
    "bradley_terry": Row("Bradley-Terry", BRADLEY_TERRY),
    "frozen": Row("frozen backbone", {"backbone": "frozen", "backbone_dtype": "float32"}),
    "random_start": Row("no generative pretraining", prepare=forget_pretraining),
    "dot_product": Row("dot product (LRM)", BRADLEY_TERRY, prepare=score_by_dot_product, cost="dot_product"),
    "pixel": Row(
        "pixel reward", CLEAN | BRADLEY_TERRY, prepare=see_pixels, readings=("decoded", "pictures"), cost="pixel"
    ),
}


def read_arguments(base_model: str, row: Row, **fields) -> tuple[ModelArguments, RewardTrainingArguments]:
    """
    The small world's settings, changed as the row says.

    Args:
        base_model: folder of the pipeline.
        fields: those of `RewardTrainingArguments` that differ from the small world's.
    """
    values = {"base_model": base_model, "report_to": "none", **fields}
    arguments, _, args = load_config(CONFIG, ModelArguments, DataArguments, RewardTrainingArguments, **values)
    if row.variance != "calibrated":
        reward = arguments.reward_fields
        law = [reward.get(name, getattr(DinaConfig, name)) for name in ("variance_slope", "variance_floor")]
        floor = law[1] if row.variance == "floor" else mean_variance(arguments.noise_levels, *law)
        reward = reward | {"variance_slope": 0.0, "variance_floor": floor}
        arguments = replace(arguments, reward_config=dumps(reward))
    return replace(arguments, **row.arguments), args


def mean_variance(levels: NoiseLevels, slope: float, floor: float) -> float:
    """The mean of slope sigma^2 + floor over a density of noise levels, by the midpoint rule."""
    quantiles = (torch.arange(10_000) + 0.5) / 10_000
    return noise_variance(levels(quantiles).double(), slope, floor).mean().item()


def build_row(
    row: Row, arguments: ModelArguments, pipeline: StableDiffusion3Pipeline
) -> tuple[PreferenceObjective, Encoder]:
    """What the row trains, fresh, and how it is given prompts."""
    objective = build_objective(arguments)
    return objective, row.prepare(objective.model, pipeline)


def train_row(
    row: Row,
    arguments: ModelArguments,
    args: RewardTrainingArguments,
    pipeline: StableDiffusion3Pipeline,
    pairs: Dataset,
) -> tuple[DinaRewardModel, Encoder]:
    """
    Train a row from its last checkpoint, if a SIGTERM has left one, to the end.

    Returns:
        The model in evaluation mode, and how it is given prompts.

    Raises:
        SystemExit: a SIGTERM came; there is a checkpoint to go on from.
    """
    set_seed(args.seed)  # of the fresh weights
    objective, encode = build_row(row, arguments, pipeline)
    trainer = RewardTrainer(objective, args, encode_prompts=encode, noise_levels=arguments.noise_levels, pairs=pairs)
    checkpoint = last_checkpoint(Path(args.output_dir))
    if checkpoint is not None:
        trainer.resume(checkpoint)
    trainer.train()
    if trainer.was_terminated:
        raise SystemExit(TERMINATED)
    return objective.model.eval(), encode
