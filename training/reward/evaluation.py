"""Agreement of a reward model with held-out preferences, by noise level and with the ensemble."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from modeling_dina.evaluation.benchmarks.preference_set import Pairs
from modeling_dina.evaluation.rewards import Rewards
from modeling_dina.evaluation.statistics import agreement
from modeling_dina.modeling_dina import DinaEnsembleOutput
from modeling_dina.pipelines_dina import EncodedPrompts
from modeling_dina.thurstone_dina import PairStatistics, pair_statistics, precision_weights

Reward = Callable[..., DinaEnsembleOutput]
Encoder = Callable[[list[str]], EncodedPrompts]


def _score_batches(
    reward: Reward, batches: Iterable[dict], encode_prompts: Encoder, **ensemble: Any
) -> Iterator[tuple[dict, DinaEnsembleOutput]]:
    """Batches of `PairLoader` with the rewards of their images a, then b; `ensemble` are arguments of `reward`."""
    for batch in batches:
        conditioning = encode_prompts(batch["prompt"]).repeat(2)
        latents = batch["latents"].to(conditioning.prompt_embeds.device)
        yield batch, reward(latents.flatten(0, 1), *conditioning, **ensemble)


@torch.no_grad()
def score_pairs(
    reward: Reward, batches: Iterable[dict], encode_prompts: Encoder, **ensemble: Any
) -> tuple[Rewards, Pairs]:
    """
    Rewards of the images of pairs, with the pairs and their targets, for the statistics of `modeling_dina.evaluation`.

    Args:
        reward, batches, encode_prompts: as in `sum_agreement`.
        ensemble: further arguments of `DinaRewardModel.reward`; without any, the model's defaults.

    Returns:
        Rewards of all images, and pairs in the order of their rows. Pairs of one prompt are a cluster.
    """
    samples, targets, prompts, rows = [], [], [], []
    for batch, output in _score_batches(reward, batches, encode_prompts, **ensemble):
        assert output.samples is not None
        assert output.variance is not None
        assert output.weights is not None
        variance, weights = (each.double().cpu().numpy() for each in (output.variance, output.weights))
        samples.append(torch.stack(output.samples.chunk(2, dim=-1)).double().cpu())
        targets.append(batch["target"].double())
        prompts += batch["prompt"]
        rows += batch["index"]
    order, places = np.argsort(rows), np.arange(len(rows))
    images = torch.cat(samples, dim=-1)[..., order]  # [2, K, N, pairs]
    target, cluster = torch.cat(targets).numpy()[order], np.unique(prompts, return_inverse=True)[1][order]
    pairs = Pairs(cluster, places, places + len(rows), target, target, np.full(len(rows), ""))
    return Rewards(torch.cat([*images], dim=-1).numpy(), weights, variance), pairs


@torch.no_grad()
def sum_agreement(
    reward: Reward,
    batches: Iterable[dict],
    encode_prompts: Encoder,
    *,
    mode: str,
    sigmas: Sequence[float],
    num_draws: int,
) -> dict[str, torch.Tensor]:
    """
    Weighted sums over pairs. Add them up over processes, and pass the result to `mean_agreement`.

    Args:
        reward: `DinaRewardModel.reward` of a model in evaluation mode.
        batches: batches of `PairLoader`.
        encode_prompts: maps texts to their conditioning.
        mode: ensemble mode.
        sigmas: noise levels, which are evaluated separately and together as the ensemble.
        num_draws: number of noise draws at each level.

    Returns:
        For each level ("0.2") and for the "ensemble", three float64 sums on the embeddings' device: the share of votes
        for the image with the higher score (one half for equal scores), the squared error of the win probability, and
        the weight.
    """
    sums: dict[str, torch.Tensor] = {}
    options: dict[str, Any] = {"mode": mode, "sigmas": sigmas, "num_draws": num_draws, "with_levels": True}
    for batch, ensemble in _score_batches(reward, batches, encode_prompts, **options):
        target, weight = (batch[name].to(ensemble.scores.device) for name in ("target", "weight"))
        assert ensemble.level_samples is not None
        assert ensemble.level_variance is not None
        samples_a, samples_b = ensemble.level_samples.chunk(2, dim=-1)
        variances = ensemble.level_variance[:, None]
        measured = {
            f"{sigma:g}": (a, b, pair_statistics(a[None], b[None], variance))
            for sigma, a, b, variance in zip(sigmas, samples_a, samples_b, variances, strict=True)
        }
        assert ensemble.samples is not None
        assert ensemble.variance is not None
        samples_a, samples_b = ensemble.samples.chunk(2, dim=-1)
        scores_a, scores_b = ensemble.scores[None].chunk(2, dim=-1)
        weights = precision_weights(ensemble.variance) if mode == "precision" else None
        measured["ensemble"] = scores_a, scores_b, pair_statistics(samples_a, samples_b, ensemble.variance, weights)
        for name, (a, b, statistics) in measured.items():
            sums[name] = sums.get(name, 0) + _sum_pairs(a.mean(dim=0) - b.mean(dim=0), statistics, target, weight)
    return sums


def _sum_pairs(
    difference: torch.Tensor, statistics: PairStatistics, target: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    agreed = agreement(*(each.double().cpu().numpy() for each in (difference, target)), ties="half")
    squared_error = (statistics.win_probability - target).square()
    sums = torch.stack([weight * torch.from_numpy(agreed).to(weight), weight * squared_error, weight])
    return sums.double().sum(dim=-1)


def mean_agreement(sums: dict[str, torch.Tensor]) -> dict[str, float]:
    """The metrics "agreement_<level>" and "brier_<level>" from the sums of `sum_agreement`."""
    means = {}
    for name, (agreed, squared_error, weight) in sums.items():
        means[f"agreement_{name}"] = (agreed / weight).item()
        means[f"brier_{name}"] = (squared_error / weight).item()
    return means
