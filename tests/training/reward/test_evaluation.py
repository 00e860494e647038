"""Agreement and Brier scores against what the model's own samples say, pair by pair."""

import numpy as np
import pytest
import torch

from modeling_dina.pipelines_dina import EncodedPrompts
from modeling_dina.thurstone_dina import win_probability
from training.reward.evaluation import mean_agreement, score_pairs, sum_agreement

SIGMAS = [0.2, 0.6]


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(5)
    latents = torch.randn(2, 4, 4, 8, 6, generator=generator)
    return {
        "latents": latents,
        "prompt": ["w", "x", "y", "z"],
        "target": torch.tensor([1.0, 0.0, 0.75, 1.0]),
        "weight": torch.tensor([1.0, 1.0, 2.0, 0.5]),
    }


def encode(prompts):
    generator = torch.Generator().manual_seed(6)
    embeds = torch.randn(len(prompts), 7, 12, generator=generator)
    return EncodedPrompts(embeds, torch.randn(len(prompts), 10, generator=generator))


def with_a_tie(reward):
    """The reward, but that of the fourth pair always equal: kernels may round equal images
    differently by their place in the batch."""

    def tied(latents, *conditioning, **ensemble):
        output = reward(latents, *conditioning, **ensemble)
        for values in (output.scores, output.samples, output.level_samples):
            if values is not None:
                values[..., 7] = values[..., 3]
        return output

    return tied


@pytest.mark.parametrize("mode", ["mean", "features", "precision"])
def test_by_hand(tiny_model, batch, mode):
    tiny_model.config.ensemble_mode = mode
    reward = with_a_tie(tiny_model.reward)
    options = {"mode": mode, "sigmas": SIGMAS, "num_draws": 2}
    measured = mean_agreement(sum_agreement(reward, [batch], encode, **options))
    assert len(measured) == 2 * (len(SIGMAS) + 1)

    @torch.no_grad()
    def scores(**ensemble):
        conditioning = encode(batch["prompt"]).repeat(2)
        return reward(batch["latents"].flatten(0, 1), *conditioning, num_draws=2, **ensemble)

    for name, ensemble in {
        "0.2": {"sigmas": [0.2], "mode": "mean"},
        "0.6": {"sigmas": [0.6], "mode": "mean"},
        "ensemble": {"sigmas": SIGMAS},
    }.items():
        both = scores(**ensemble)
        agreed = error = 0.0
        for pair, (target, weight) in enumerate(zip(batch["target"].tolist(), batch["weight"].tolist(), strict=True)):
            difference = (both.scores[pair] - both.scores[4 + pair]).item()
            agreed += weight * (0.5 if difference == 0 else target if difference > 0 else 1 - target)
            a, b, variance = both.samples[..., pair], both.samples[..., 4 + pair], both.variance[:, None]
            samples = win_probability(a, b, variance, variance).mean(dim=1)
            weighs = mode == "precision" and name == "ensemble"
            levels = 1 / both.variance if weighs else torch.ones_like(both.variance)
            error += weight * ((samples * levels).sum() / levels.sum() - target).item() ** 2
        assert measured[f"agreement_{name}"] == pytest.approx(agreed / 4.5, abs=1e-6)
        assert measured[f"brier_{name}"] == pytest.approx(error / 4.5, abs=1e-5)


def test_batches_add_up(tiny_model, batch):
    def rows(start, stop):
        return {
            name: value[:, start:stop] if name == "latents" else value[start:stop] for name, value in batch.items()
        }

    options = {"mode": "features", "sigmas": SIGMAS, "num_draws": 1}
    whole = sum_agreement(tiny_model.reward, [batch], conditioning, **options)
    parts = sum_agreement(tiny_model.reward, [rows(0, 1), rows(1, 4)], conditioning, **options)
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], atol=1e-5, rtol=1e-5)


def conditioning(prompts):
    """A prompt's embeddings depend on the prompt alone."""
    seeds = [torch.Generator().manual_seed(ord(prompt)) for prompt in prompts]
    embeds = [torch.randn(8, 12, generator=seed) for seed in seeds]
    return EncodedPrompts(torch.stack([each[:7] for each in embeds]), torch.stack([each[7, :10] for each in embeds]))


def test_rewards_of_pairs_are_in_the_order_of_their_rows(tiny_model, batch):
    """Two batches whose rows alternate, against the statistics of all pairs together."""
    parts = [
        {
            name: values[:, rows] if name == "latents" else [values[row] for row in rows]
            for name, values in batch.items()
        }
        | {"index": rows, "target": batch["target"][rows]}
        for rows in ([3, 1], [0, 2])
    ]
    table = dict(zip(batch["prompt"], encode(batch["prompt"]).split(), strict=True))

    def look_up(prompts):
        return EncodedPrompts.join(table[prompt] for prompt in prompts)

    options = {"mode": "mean", "sigmas": SIGMAS, "num_draws": 2}
    rewards, pairs = score_pairs(tiny_model.reward, parts, look_up, **options)
    assert pairs.target.tolist() == batch["target"].tolist()
    assert len(set(pairs.cluster)) == 4
    with torch.no_grad():
        conditioning = look_up(batch["prompt"]).repeat(2)
        expected = tiny_model.reward(batch["latents"].flatten(0, 1), *conditioning, **options)
    a, b = expected.scores.chunk(2)
    assert rewards.difference(pairs) == pytest.approx((a - b).numpy(), abs=1e-5)
    # The same Brier score as that of the sums over a batch.
    brier = mean_agreement(sum_agreement(tiny_model.reward, [batch], look_up, **options))["brier_ensemble"]
    error = (rewards.statistics(pairs).win_probability.numpy() - pairs.target) ** 2
    assert np.average(error, weights=batch["weight"]) == pytest.approx(brier, abs=1e-5)
