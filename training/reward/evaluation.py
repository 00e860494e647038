"""Agreement of a reward model with held-out preferences, by noise level and with the ensemble."""

from collections.abc import Callable, Iterable, Sequence

import torch

from modeling_dina.evaluation.statistics import agreement
from modeling_dina.modeling_dina import DinaEnsembleOutput
from modeling_dina.pipelines_dina import EncodedPrompts
from modeling_dina.thurstone_dina import PairStatistics, pair_statistics, precision_weights

Reward = Callable[..., DinaEnsembleOutput]
Encoder = Callable[[list[str]], EncodedPrompts]


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
    for batch in batches:
        conditioning = encode_prompts(batch["prompt"]).repeat(2)
        device = conditioning.prompt_embeds.device
        latents, target, weight = (batch[name].to(device) for name in ("latents", "target", "weight"))
        options = {"sigmas": sigmas, "num_draws": num_draws}
        ensemble = reward(latents.flatten(0, 1), *conditioning, mode=mode, with_levels=True, **options)

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
