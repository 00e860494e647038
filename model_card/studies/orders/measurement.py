"""What the study of orders trains: a new head on the frozen backbone of the embedded reward, by the votes of simulated
annotators, who vote through the session that people vote through."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from diffusers import StableDiffusion3Pipeline

from model_card.studies.method.measurement import compute_features
from model_card.studies.method.variants import FROZEN, Variant, train_variant
from modeling_dina import DinaRewardModel
from modeling_dina.evaluation.rewards import Rewards
from modeling_dina.modeling_dina import EnsembleFeatures
from training.label.pairs import Pair
from training.label.session import Plan, Session
from training.label.votes import Choice, VoteFile
from training.reward.data import with_targets
from training.reward.evaluation import Encoder
from training.world.groups import Groups
from training.world.utility import FIDELITY_WEIGHT, QUALITY_WEIGHT, decompose, quality

ANNOTATOR = "simulated"
# Under few votes, a small batch and a larger learning rate than that of the small world's configuration.
TRAINING = {"per_device_train_batch_size": 16, "learning_rate": 1e-3}

# Weights of the annotators' utility. They follow the caption like those whose votes the present reward was trained on,
# but like defects as much, and so the present reward has to be taught.
TASTE = {"fidelity": 4.0, "quality": -4.0}


def picture_qualities(groups: Groups) -> list[list[float]]:
    """`training.world.utility.quality` of all pictures, [G, 4]."""
    assert groups.pictures is not None
    return [[quality(decompose(picture)) for picture in groups.pictures[row]] for row in range(len(groups))]


def with_taste(groups: Groups, qualities: list[list[float]]) -> Groups:
    """The groups with the utilities of `TASTE`; the qualities are those of `picture_qualities`."""
    clean = np.array(qualities)
    fidelity = (groups.utilities - QUALITY_WEIGHT * clean) / FIDELITY_WEIGHT
    return replace(groups, utilities=TASTE["fidelity"] * fidelity + TASTE["quality"] * clean)


def collect_votes(votes: VoteFile, prompts: Sequence[str], rows: Sequence[int], prefers_a: np.ndarray) -> None:
    """
    Let the annotator vote on pairs, as people do on the page.

    Args:
        votes: file of votes.
        prompts: prompt of every pair.
        rows: rows of the pairs to vote on, in order.
        prefers_a: whether the annotator prefers a, for every pair.
    """
    pairs = [Pair(str(row), prompts[row], f"{row} a", f"{row} b") for row in rows]
    session = Session(pairs, range(len(pairs)), votes, [ANNOTATOR], plan=Plan(repeats=0))
    while (shown := session.present(ANNOTATOR)) is not None:
        preferred = "a" if prefers_a[int(shown.pair.key)] else "b"
        choice: Choice = "left" if shown.left == preferred else "right"
        session.vote(ANNOTATOR, shown.number, shown.pair.key, shown.left, choice)


def voted_pairs(votes: VoteFile, pairs: Dataset) -> tuple[list[int], Dataset]:
    """Rows of the pairs with votes, and these pairs with the votes as targets."""
    standing = votes.tally.standing()
    preferences = {int(vote.pair): each for vote in standing if (each := vote.preference) is not None}
    rows = list(preferences)
    return rows, with_targets(pairs.select(rows), list(preferences.values()))


def train_head(
    present: DinaRewardModel,
    pipeline_dir: str,
    pipeline: StableDiffusion3Pipeline,
    pairs: Dataset,
    folder: Path,
    **fields,
) -> DinaRewardModel:
    """Train a new head on the frozen backbone of the reward `present`; `fields` are those of `train_variant`."""

    def take_backbone(model: DinaRewardModel) -> None:
        model.backbone.load_state_dict(present.backbone.state_dict())

    variant = Variant("new head", "", FROZEN, take_backbone)
    return train_variant(variant, pipeline_dir, pipeline, pairs, folder, **TRAINING, **fields)[0]


def frozen_reader(
    present: DinaRewardModel, encode: Encoder, groups: Groups, sigmas: tuple[float, ...], draws: int
) -> Callable[[DinaRewardModel], Rewards]:
    """A function that computes the rewards of all images of groups by a model with the backbone of `present`, whose
    features are computed once."""
    batches = list(compute_features(present, encode, groups, sigmas, draws))

    @torch.no_grad()
    def read(model: DinaRewardModel) -> Rewards:
        found = [model.combine(EnsembleFeatures(levels, every), "features") for levels, every in batches]
        samples = torch.cat([output["samples"] for output in found], dim=-1)
        arrays = (each.double().cpu().numpy() for each in (samples, found[0]["weights"], found[0]["variance"]))
        return Rewards(*arrays)

    return read
