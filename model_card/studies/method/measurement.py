"""What is measured of a trained variant: its rewards on pictures whose true utility is known, and all that follows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import entr

from modeling_dina import DinaRewardModel
from modeling_dina.evaluation.benchmarks.preference_set import Pairs
from modeling_dina.evaluation.calibration import Calibration, fit_calibration
from modeling_dina.evaluation.rewards import Rewards
from modeling_dina.evaluation.statistics import agreement, bins, calibration_error
from modeling_dina.modeling_dina import EnsembleFeatures
from modeling_dina.thurstone_dina import pair_statistics, precision_weights
from training.reward.evaluation import Encoder
from training.world.groups import FIRST, GROUP_SIZE, Groups

# In the order in which an ensemble takes them; the first three are those of the embedded default.
LEVELS = (0.1, 0.2, 0.4, 0.6, 0.8)
SWEEP = tuple(level / 10 for level in range(11))
ENSEMBLE_LEVELS, ENSEMBLE_DRAWS, MOST_DRAWS = 3, 4, 16
DRAWS = (1, 2, 4, 8, 16)
QUINTILES = 5
GROUPS_A_BATCH = 32


class EvaluationSetting(NamedTuple):
    """How rewards are computed: in which mode, at how many levels, with how many draws, of which input."""

    title: str
    mode: str
    levels: int = ENSEMBLE_LEVELS
    draws: int = ENSEMBLE_DRAWS
    of: str = "noisy latents"


EVALUATIONS = {
    "one level": EvaluationSetting("one level", "mean", levels=1, draws=1),
    "features": EvaluationSetting("ensemble, features", "features"),
    "mean": EvaluationSetting("ensemble, mean", "mean"),
    "precision": EvaluationSetting("ensemble, precision", "precision"),
    "clean": EvaluationSetting("clean", "mean", levels=1, draws=1, of="latents"),
    "decoded": EvaluationSetting("latents, through the decoder", "mean", levels=1, draws=1, of="latents"),
    "pictures": EvaluationSetting("pictures", "mean", levels=1, draws=1, of="pictures"),
}


def group_pairs(groups: Groups) -> Pairs:
    """All pairs within groups, group by group; the target is the probability that an annotator prefers the first."""
    first, second = groups.pairs
    preference = groups.preferences.ravel()
    return Pairs(
        cluster=np.arange(len(groups)).repeat(len(FIRST)),
        a=first,
        b=second,
        label=preference,
        target=preference,
        category=np.full(preference.shape, ""),
    )


@dataclass(frozen=True)
class Read:
    """
    Rewards of all I images of a set.

    Attributes:
        levels: [K, N, I], at K noise levels with N draws.
        together: [K, N, I], of the features of the first k levels read at once.
        variance: [K], the likelihood's; None for rewards under Bradley and Terry's law.
    """

    levels: np.ndarray
    together: np.ndarray
    variance: np.ndarray | None

    def rewards(self, mode: str, levels: int, draws: int) -> Rewards:
        """Those of the ensemble of the first `levels` with the first `draws`."""
        variance = None if self.variance is None else self.variance[:levels]
        if mode == "features":
            mean = None if variance is None else variance.mean(keepdims=True)
            return Rewards(self.together[[levels - 1], :draws], np.ones(1), mean)
        weights = np.full(levels, 1 / levels)
        if mode == "precision":
            weights = precision_weights(torch.from_numpy(variance)).numpy()
        return Rewards(self.levels[:levels, :draws], weights, variance)


@torch.no_grad()
def read_rewards(
    model: DinaRewardModel, encode: Encoder, groups: Groups, sigmas: Sequence[float], draws: int, thurstone: bool
) -> Read:
    """
    The rewards of groups at every level, draw by draw, with one pass of the backbone for all ways to combine them.

    Args:
        model: in evaluation mode.
        encode: prompts to what the model reads of them.
        sigmas: K noise levels.
        draws: N of the noise.
        thurstone: whether the rewards follow Thurstone's law.
    """
    levels, together = [], []
    for start in range(0, len(groups), GROUPS_A_BATCH):
        rows = slice(start, start + GROUPS_A_BATCH)
        clean = groups.latents[rows].flatten(0, 1).float().to(model.device)
        conditioning = [each.repeat_interleave(GROUP_SIZE, dim=0) for each in encode(groups.captions[rows])]
        found = model.features(clean, *conditioning, sigmas=sigmas, num_draws=draws)
        kept = list(found.draws)
        prefixes = [EnsembleFeatures(found.sigmas[:k], [draw[:k] for draw in kept]) for k in range(1, len(sigmas) + 1)]
        levels.append(model.combine(prefixes[-1], "mean").samples)
        together.append(torch.cat([model.combine(prefix, "features").samples for prefix in prefixes]))
    samples = [torch.cat(parts, dim=-1).double().cpu().numpy() for parts in (levels, together)]
    return Read(*samples, model.variance(found.sigmas).double().cpu().numpy() if thurstone else None)


# Rewards of the set of a name, at some levels, with some draws, of "noisy latents", "latents" or "pictures".
Reader = Callable[[str, Sequence[float], int, str], Read]


def measure_variant(evaluations: Sequence[str], read: Reader, sets: dict[str, Groups], sweep: Sequence[float]) -> dict:
    """
    What is measured of every variant.

    Args:
        evaluations: names of `EVALUATIONS`.
        sets: by name.
        sweep: noise levels at which "seen" is measured too.

    Returns:
        "levels": at each of `sweep`, on "seen"; "evaluations": for each by set, what `measure` returns with its
        "reliability".
    """
    pairs = {name: group_pairs(groups) for name, groups in sets.items()}
    levels = [read("seen", [sigma], 1, "latents").rewards("mean", 1, 1) for sigma in sweep]
    measured: dict[str, dict] = {name: {} for name in evaluations}
    for of in dict.fromkeys(EVALUATIONS[name].of for name in evaluations):
        sigmas, draws = (LEVELS[:ENSEMBLE_LEVELS], ENSEMBLE_DRAWS) if of == "noisy latents" else ([0.0], 1)
        for set_name, of_set in pairs.items():
            found = read(set_name, sigmas, draws, of)
            for name in evaluations:
                if EVALUATIONS[name].of == of:
                    rewards = found.rewards(*EVALUATIONS[name][1:4])
                    probability = np.exp(rewards.log_probabilities(of_set)[0])
                    measured[name][set_name] = measure(rewards, of_set) | {
                        "reliability": bins(probability, of_set.target)
                    }
    return {
        "levels": [
            {"sigma": sigma} | means(measure(rewards, pairs["seen"]))
            for sigma, rewards in zip(sweep, levels, strict=True)
        ],
        "evaluations": measured,
    }


def analyze(read: Read, pairs: Pairs) -> dict:
    """Measure DiNa alone, with `MOST_DRAWS` draws at each of `LEVELS`: the gain from more draws and levels, the
    relation of variance and disagreement to errors, and the win probability against the known true one."""
    ensembles = {name: read.rewards(*EVALUATIONS[name][1:4]) for name in ("one level", "features")}
    return {
        "scaling": scaling(read, pairs),
        "variances": level_variances(read, pairs),
        "disagreement": quintiles(read.rewards("mean", ENSEMBLE_LEVELS, ENSEMBLE_DRAWS), pairs),
        "win_probability": {
            name: bins(pairs.target, np.exp(rewards.log_probabilities(pairs)[0]))
            for name, rewards in ensembles.items()
        },
    }


def measure(rewards: Rewards, pairs: Pairs) -> dict:
    """Agreement with a fresh annotator and log-likelihood of its vote, in expectation, for each group; and the
    calibration error."""
    log_win, log_loss = rewards.log_probabilities(pairs)
    likelihood = pairs.target * log_win + (1 - pairs.target) * log_loss
    return {
        "accuracy": by_group(agreement(rewards.difference(pairs), pairs.target, ties="half")),
        "log_likelihood": by_group(likelihood),
        "calibration_error": calibration_error(np.exp(log_win), pairs.target),
    }


def best_reachable(pairs: Pairs) -> dict[str, list[float]]:
    """What `measure` would return of the true utilities."""
    preference = pairs.target
    return {
        "accuracy": by_group(np.maximum(preference, 1 - preference)),
        "log_likelihood": by_group(-entr(preference) - entr(1 - preference)),
    }


def by_group(values: np.ndarray) -> list[float]:
    """The mean over the pairs of each group, [G], to six digits."""
    return values.reshape(-1, len(FIRST)).mean(axis=1).round(6).tolist()


def means(measured: dict) -> dict[str, float]:
    """What `measure` returns with means over groups."""
    return {name: float(np.mean(values)) for name, values in measured.items()}


def votes_variance(rewards: Rewards, pairs: Pairs) -> float | None:
    """The variance of one reward under which annotators' votes are likeliest; None where it would be infinite or
    nothing."""
    try:
        temperature = fit_calibration(rewards, pairs, Calibration(1.0, 0.0, 1.0)).temperature
    except ValueError:
        return None
    return float(temperature**2 * rewards.variance[0])


def level_variances(read: Read, pairs: Pairs) -> list[dict]:
    """
    At each level, the likelihood's variance of one reward beside those measured: over noise draws of a reward, of half
    a difference of two under the same noise, and what the votes ask for.
    """
    differences = read.levels[..., pairs.a] - read.levels[..., pairs.b]
    return [
        {
            "sigma": LEVELS[k],
            "likelihood": float(read.variance[k]),
            "draws": float(read.levels[k].var(axis=0, ddof=1).mean()),
            "draws_of_differences": float(differences[k].var(axis=0, ddof=1).mean() / 2),
            "votes": votes_variance(Rewards(read.levels[[k], :1], np.ones(1), read.variance[[k]]), pairs),
        }
        for k in range(len(LEVELS))
    ]


def quintiles(rewards: Rewards, pairs: Pairs) -> dict:
    """
    Errors by how much the ensemble's samples disagree about a pair (`PairStatistics.disagreement`).

    Returns:
        "quintiles", from the least disagreement to the most: its mean, the error rate against a fresh annotator, and
        the part of it that is "avoidable", which an annotator's noise does not explain; "rise" and "avoidable_rise",
        last quintile less first, as contributions of each group, whose mean they are.
    """
    samples = (torch.from_numpy(rewards.samples[..., side]) for side in (pairs.a, pairs.b))
    variance, weights = torch.from_numpy(rewards.variance), torch.from_numpy(rewards.weights)
    disagreement = pair_statistics(*samples, variance, weights).disagreement.numpy()
    error = 1 - agreement(rewards.difference(pairs), pairs.target, ties="half")
    avoidable = error - np.minimum(pairs.target, 1 - pairs.target)
    fifths = np.array_split(np.argsort(disagreement, kind="stable"), QUINTILES)
    rise = np.zeros(len(pairs))  # its mean over all pairs is the difference of the two quintiles' means
    rise[fifths[-1]] = len(pairs) / len(fifths[-1])
    rise[fifths[0]] = -len(pairs) / len(fifths[0])
    return {
        "quintiles": [
            {
                "disagreement": float(disagreement[fifth].mean()),
                "error": float(error[fifth].mean()),
                "avoidable": float(avoidable[fifth].mean()),
            }
            for fifth in fifths
        ],
        "rise": by_group(rise * error),
        "avoidable_rise": by_group(rise * avoidable),
    }


def scaling(read: Read, pairs: Pairs) -> dict[str, dict[str, list[dict]]]:
    """Accuracy, log-likelihood and calibration error against the number of draws and against that of levels."""
    modes = ("features", "mean", "precision")
    one_level = [{"draws": n, **means(measure(read.rewards("mean", 1, n), pairs))} for n in DRAWS]
    return {
        "draws": {
            "one level": one_level,
            **{
                mode: [{"draws": n, **means(measure(read.rewards(mode, ENSEMBLE_LEVELS, n), pairs))} for n in DRAWS]
                for mode in modes
            },
        },
        "levels": {
            mode: [
                {"levels": k, **means(measure(read.rewards(mode, k, ENSEMBLE_DRAWS), pairs))}
                for k in range(1, len(LEVELS) + 1)
            ]
            for mode in modes
        },
    }
