"""Measurements of a trained variant: its rewards of pictures whose true utility is known, and statistics of them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.special import entr

from modeling_dina import DinaRewardModel
from modeling_dina.evaluation.benchmarks.preference_set import Pairs
from modeling_dina.evaluation.calibration import Calibration, fit_calibration
from modeling_dina.evaluation.rewards import Rewards
from modeling_dina.evaluation.statistics import agreement, bins, calibration_error
from modeling_dina.modeling_dina import EnsembleFeatures
from modeling_dina.thurstone_dina import precision_weights
from training.reward.evaluation import Encoder
from training.world.groups import FIRST, GROUP_SIZE, Groups

# In the order in which an ensemble takes them; the first three are those of the embedded default.
LEVELS = (0.1, 0.2, 0.4, 0.6, 0.8)
SWEEP = tuple(level / 10 for level in range(11))
ENSEMBLE_LEVELS, ENSEMBLE_DRAWS, MOST_DRAWS = 3, 4, 16
DRAWS = (1, 2, 4, 8, MOST_DRAWS)
MODES = ("features", "mean", "precision")
QUINTILES = 5
GROUPS_PER_BATCH = 32


class Evaluation(NamedTuple):
    """How rewards are computed: the mode, the number of levels, the number of draws, and the input."""

    title: str
    mode: str
    levels: int = 1
    draws: int = 1
    reads: str = "noisy latents"


EVALUATIONS = {
    "one level": Evaluation("one level", "mean"),
    **{mode: Evaluation(f"ensemble, {mode}", mode, ENSEMBLE_LEVELS, ENSEMBLE_DRAWS) for mode in MODES},
    "clean": Evaluation("clean", "mean", reads="latents"),
    "decoded": Evaluation("latents, through the decoder", "mean", reads="latents"),
    "pictures": Evaluation("pictures", "mean", reads="pictures"),
}


def group_pairs(groups: Groups) -> Pairs:
    """All pairs within groups, group by group; the target is the probability that an annotator prefers the first."""
    preference = groups.preferences.ravel()
    cluster = np.arange(len(groups)).repeat(len(FIRST))
    return Pairs(cluster, *groups.pairs, preference, preference, np.full(preference.shape, ""))


@dataclass(frozen=True)
class LevelRewards:
    """Rewards of all I images of a set, at K noise levels with N draws."""

    single: np.ndarray  # [K, N, I]
    joint: np.ndarray  # [K, N, I], of the features of the first 1 to K levels together
    variance: np.ndarray | None  # [K], the likelihood's; None under the law of Bradley and Terry

    def combine(self, mode: str, levels: int, draws: int) -> Rewards:
        """The rewards of the ensemble of the first `levels` with the first `draws`."""
        variance = None if self.variance is None else self.variance[:levels]
        if mode == "features":
            mean = None if variance is None else variance.mean(keepdims=True)
            return Rewards(self.joint[[levels - 1], :draws], np.ones(1), mean)
        weights = np.full(levels, 1 / levels)
        if mode == "precision":
            weights = precision_weights(torch.from_numpy(variance)).numpy()
        return Rewards(self.single[:levels, :draws], weights, variance)


# Computes rewards of groups at some noise levels, with some draws, of "noisy latents", "latents" or "pictures".
Reader = Callable[[Groups, tuple[float, ...], int, str], LevelRewards]


@torch.no_grad()
def compute_features(
    model: DinaRewardModel, encode: Encoder, groups: Groups, sigmas: tuple[float, ...], draws: int
) -> Iterator[EnsembleFeatures]:
    """Features of the images of groups, in batches of groups; all draws of a batch are in memory."""
    assert groups.latents is not None
    for start in range(0, len(groups), GROUPS_PER_BATCH):
        rows = slice(start, start + GROUPS_PER_BATCH)
        clean = groups.latents[rows].flatten(0, 1).float().to(model.device)
        captions = groups.captions[rows]
        conditioning = encode(captions).take([row for row in range(len(captions)) for _ in range(GROUP_SIZE)])
        levels, features = model.features(clean, *conditioning, sigmas=sigmas, num_draws=draws)
        yield EnsembleFeatures(levels, list(features))


def latent_reader(model: DinaRewardModel, encode: Encoder, thurstone: bool) -> Reader:
    """A reader that computes all ways to combine levels and draws with one pass of the backbone. `thurstone` says
    whether the rewards follow Thurstone's law."""

    @torch.no_grad()
    def read(groups: Groups, sigmas: tuple[float, ...], draws: int, reads: str) -> LevelRewards:
        batches = []
        for levels, every in compute_features(model, encode, groups, sigmas, draws):
            prefixes = [EnsembleFeatures(levels[:k], [draw[:k] for draw in every]) for k in range(1, len(sigmas) + 1)]
            joint = [model.combine(prefix, "features")["samples"] for prefix in prefixes]
            batches.append((model.combine(prefixes[-1], "mean")["samples"], torch.cat(joint)))
        samples = [torch.cat(parts, dim=-1).double().cpu().numpy() for parts in zip(*batches, strict=True)]
        variance = model.variance(levels).double().cpu().numpy() if thurstone else None
        return LevelRewards(samples[0], samples[1], variance)

    return read


def measure_variant(
    evaluations: Sequence[str], read: Reader, sets: dict[str, Groups], sweep: Sequence[float]
) -> dict[str, Any]:
    """Measurements that are made of every variant: "levels", which are `means` of the set "seen" at each noise level
    of `sweep`, and "evaluations", which are what `measure` returns, by name of `EVALUATIONS` and by set."""
    read, pairs = cache(read), {name: group_pairs(groups) for name, groups in sets.items()}

    def measure_set(evaluation: Evaluation, name: str) -> dict[str, Any]:
        noisy = evaluation.reads == "noisy latents"
        sigmas, draws = (LEVELS[:ENSEMBLE_LEVELS], ENSEMBLE_DRAWS) if noisy else ((0.0,), 1)
        rewards = read(sets[name], sigmas, draws, evaluation.reads)
        return measure(rewards.combine(evaluation.mode, evaluation.levels, evaluation.draws), pairs[name])

    levels = {sigma: read(sets["seen"], (sigma,), 1, "latents").combine("mean", 1, 1) for sigma in sweep}
    return {
        "levels": [{"sigma": sigma, **means(rewards, pairs["seen"])} for sigma, rewards in levels.items()],
        "evaluations": {name: {of: measure_set(EVALUATIONS[name], of) for of in sets} for name in evaluations},
    }


def measure(rewards: Rewards, pairs: Pairs) -> dict[str, Any]:
    """For each group, the expected agreement with a fresh annotator and log-likelihood of its vote; the calibration
    error; and the observed against the predicted preference ("reliability")."""
    log_win, log_loss = rewards.log_probabilities(pairs)
    probability = np.exp(log_win)
    return {
        "accuracy": by_group(agreement(rewards.difference(pairs), pairs.target, ties="half")),
        "log_likelihood": by_group(pairs.target * log_win + (1 - pairs.target) * log_loss),
        "calibration_error": calibration_error(probability, pairs.target),
        "reliability": bins(probability, pairs.target),
    }


def means(rewards: Rewards, pairs: Pairs) -> dict[str, float]:
    """Means over groups of the numbers that `measure` returns."""
    measured = measure(rewards, pairs)
    return {name: float(np.mean(measured[name])) for name in ("accuracy", "log_likelihood", "calibration_error")}


def best_reachable(pairs: Pairs) -> dict[str, list[float]]:
    """Accuracy and log-likelihood, as `measure` returns them, of the true utilities."""
    p = pairs.target
    return {"accuracy": by_group(np.maximum(p, 1 - p)), "log_likelihood": by_group(-entr(p) - entr(1 - p))}


def by_group(values: np.ndarray) -> list[float]:
    """The mean over the pairs of each group, [G], to six digits."""
    return values.reshape(-1, len(FIRST)).mean(axis=1).round(6).tolist()


def analyze(rewards: LevelRewards, pairs: Pairs) -> dict[str, Any]:
    """Measurements of DiNa alone, from `MOST_DRAWS` draws at each of `LEVELS`: the gain from more draws and levels,
    and the relation of variance and disagreement to errors."""
    return {
        "scaling": scaling(rewards, pairs),
        "variances": level_variances(rewards, pairs),
        "disagreement": quintiles(rewards.combine("mean", ENSEMBLE_LEVELS, ENSEMBLE_DRAWS), pairs),
    }


def scaling(rewards: LevelRewards, pairs: Pairs) -> dict[str, dict[str, list[dict]]]:
    """The `means` against the number of draws and against that of levels."""
    by_draws = {"one level": ("mean", 1), **{mode: (mode, ENSEMBLE_LEVELS) for mode in MODES}}
    levels = range(1, len(LEVELS) + 1)

    def point(*ensemble: Any) -> dict[str, float]:
        return means(rewards.combine(*ensemble), pairs)

    return {
        "draws": {name: [{"draws": n, **point(*of, n)} for n in DRAWS] for name, of in by_draws.items()},
        "levels": {mode: [{"levels": k, **point(mode, k, ENSEMBLE_DRAWS)} for k in levels] for mode in MODES},
    }


def level_variances(rewards: LevelRewards, pairs: Pairs) -> list[dict[str, float | None]]:
    """For each level, the likelihood's variance of one reward, and measured ones: the variance over noise draws of a
    reward, half of that of a difference of two under the same noise, and the variance that fits the votes."""
    assert rewards.variance is not None
    differences = rewards.single[..., pairs.a] - rewards.single[..., pairs.b]
    levels = zip(LEVELS, rewards.variance, rewards.single, differences, strict=True)
    return [
        {
            "sigma": sigma,
            "likelihood": float(variance),
            "draws": float(single.var(axis=0, ddof=1).mean()),
            "draws_of_differences": float(difference.var(axis=0, ddof=1).mean() / 2),
            "votes": votes_variance(Rewards(single[None, :1], np.ones(1), variance[None]), pairs),
        }
        for sigma, variance, single, difference in levels
    ]


def votes_variance(rewards: Rewards, pairs: Pairs) -> float | None:
    """The variance of one reward that maximises the likelihood of the votes; None where it is zero or infinite."""
    assert rewards.variance is not None
    try:
        temperature = fit_calibration(rewards, pairs, Calibration(1.0, 0.0, 1.0)).temperature
    except ValueError:
        return None
    return float(temperature**2 * rewards.variance[0])


def quintiles(rewards: Rewards, pairs: Pairs) -> dict[str, Any]:
    """Errors by how much the ensemble's samples disagree about a pair (`PairStatistics.disagreement`): "quintiles" by
    increasing disagreement, with the error rate against a fresh annotator and the part of it that is "avoidable",
    which an annotator's noise does not explain; and their rise from the first to the last, as contributions of each
    group, whose mean it is."""
    disagreement = rewards.statistics(pairs).disagreement.numpy()
    error = 1 - agreement(rewards.difference(pairs), pairs.target, ties="half")
    avoidable = error - np.minimum(pairs.target, 1 - pairs.target)
    measures = {"disagreement": disagreement, "error": error, "avoidable": avoidable}
    fifths = np.array_split(np.argsort(disagreement, kind="stable"), QUINTILES)
    rise = np.zeros(len(pairs))  # its mean over all pairs is the difference of the two quintiles' means
    rise[fifths[-1]] = len(pairs) / len(fifths[-1])
    rise[fifths[0]] = -len(pairs) / len(fifths[0])
    return {
        "quintiles": [{name: float(each[fifth].mean()) for name, each in measures.items()} for fifth in fifths],
        "rise": by_group(rise * error),
        "avoidable_rise": by_group(rise * avoidable),
    }
