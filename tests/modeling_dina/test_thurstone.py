"""The likelihood against closed forms, hand-worked values and its own symmetries, far into the tails."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modeling_dina.thurstone_dina import (
    binary_entropy,
    bradley_terry_loss,
    fidelity_loss,
    likelihood_loss,
    noise_variance,
    pair_statistics,
    precision_weights,
    spread_over_draws,
    win_probability,
)

scores = st.floats(-20, 20)
variances = st.floats(0.05, 5)
ONE = torch.tensor(1.0)
HALF = torch.tensor(0.5)  # variances of one half each: the difference is in deviations


def tensors(*values):
    return [torch.tensor(value, dtype=torch.float64) for value in values]


def normal_cdf(z):
    return 0.5 * math.erfc(-z / math.sqrt(2))


def test_variance_of_a_level():
    assert noise_variance(torch.tensor([0.0, 0.5, 1.0])).tolist() == pytest.approx([0.05, 0.55, 2.05])
    assert noise_variance(torch.tensor(0.5), slope=4.0, floor=0.01).item() == pytest.approx(1.01)


@given(scores, scores, variances, variances)
def test_win_probability_is_the_normal_law_and_symmetric(a, b, variance_a, variance_b):
    inputs = tensors(a, b, variance_a, variance_b)
    probability = win_probability(*inputs).item()
    assert probability == pytest.approx(normal_cdf((a - b) / math.sqrt(variance_a + variance_b)), rel=1e-6, abs=1e-300)
    assert probability + win_probability(inputs[1], inputs[0], *inputs[2:]).item() == pytest.approx(1)


@given(scores, scores, variances, variances)
def test_hard_losses_follow_the_formulas(a, b, variance_a, variance_b):
    inputs = tensors(a, b, variance_a, variance_b)
    probability = normal_cdf((a - b) / math.sqrt(variance_a + variance_b))
    assert fidelity_loss(*inputs).item() == pytest.approx(1 - math.sqrt(probability), abs=1e-9)
    if probability > 1e-300:
        assert likelihood_loss(*inputs).item() == pytest.approx(-math.log(probability), rel=1e-6, abs=1e-9)


@given(scores, scores, st.floats(0, 1))
def test_soft_losses_follow_the_formulas(a, b, q):
    inputs = [*tensors(a, b), HALF.double(), HALF.double()]
    target = torch.tensor(q, dtype=torch.float64)
    win, lose = normal_cdf(a - b), normal_cdf(b - a)
    fidelity = 1 - math.sqrt(win * q) - math.sqrt(lose * (1 - q))
    assert fidelity_loss(*inputs, target).item() == pytest.approx(fidelity, abs=1e-9)
    if min(win, lose) > 1e-300:  # smaller numbers have fewer digits
        likelihood = -q * math.log(win) - (1 - q) * math.log(lose)
        assert likelihood_loss(*inputs, target).item() == pytest.approx(likelihood, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("loss", [fidelity_loss, likelihood_loss])
def test_a_certain_target_is_the_hard_loss(loss):
    chosen, rejected = torch.linspace(-3, 3, 7), torch.zeros(7)
    hard = loss(chosen, rejected, ONE, ONE)
    torch.testing.assert_close(loss(chosen, rejected, ONE, ONE, torch.ones(7)), hard)
    torch.testing.assert_close(loss(rejected, chosen, ONE, ONE, torch.zeros(7)), hard)


@pytest.mark.parametrize("loss", [fidelity_loss, likelihood_loss])
@pytest.mark.parametrize("q", [0.1, 0.5, 0.9])
def test_a_soft_loss_is_least_where_the_model_agrees(loss, q):
    agree = torch.distributions.Normal(0, 1).icdf(torch.tensor(q, dtype=torch.float64)).requires_grad_()
    value = loss(agree, torch.zeros(()), HALF.double(), HALF.double(), torch.tensor(q, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(value, agree)
    assert gradient.item() == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("loss", [fidelity_loss, likelihood_loss])
@pytest.mark.parametrize("target", [None, 0.0, 0.3, 1.0])
@pytest.mark.parametrize("difference", [-1e4, -40.0, -12.0, 12.0, 40.0, 1e4])
def test_tails_are_finite(loss, target, difference):
    chosen = torch.tensor(difference, requires_grad=True)
    target = None if target is None else torch.tensor(target)
    value = loss(chosen, torch.zeros(()), HALF, HALF, target)
    value.backward()
    assert value.isfinite()
    assert chosen.grad.isfinite()


def test_the_fidelity_tail_is_not_cut_off():
    """At z = -12, sqrt(P) = 1.33e-17 is far below the rounding of 1 - sqrt(P), yet its gradient still points home."""
    z = torch.tensor(-12.0, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(fidelity_loss(z, z.new_zeros(()), HALF.double(), HALF.double()), z)
    density = math.exp(-72) / math.sqrt(2 * math.pi)
    assert gradient.item() == pytest.approx(-density / (2 * math.sqrt(normal_cdf(-12))), rel=1e-6)
    # and on the right side the loss itself keeps its relative precision: (1 - P) / 2
    near = fidelity_loss(*tensors(6.0, 0.0), HALF.double(), HALF.double()).item()
    assert near == pytest.approx(normal_cdf(-6) / 2, rel=1e-6)


def test_bradley_terry():
    chosen, rejected = torch.tensor([2.0, -1.0]), torch.tensor([0.0, 0.0])
    expected = [math.log(1 + math.exp(-2)), math.log(1 + math.exp(1))]
    assert bradley_terry_loss(chosen, rejected).tolist() == pytest.approx(expected)
    torch.testing.assert_close(bradley_terry_loss(chosen, rejected, 0.5), bradley_terry_loss(chosen - 0.5, rejected))


def test_binary_entropy():
    assert binary_entropy(torch.tensor([0.0, 0.5, 1.0])).tolist() == pytest.approx([0, math.log(2), 0])


def test_precision_weights():
    assert precision_weights(torch.tensor([0.1, 0.2, 0.4])).tolist() == pytest.approx([4 / 7, 2 / 7, 1 / 7])


def test_statistics_of_a_pair_by_hand():
    # One level, two draws, variance 1/2 an image: differences of 1 and -1 deviation.
    samples_a, samples_b = torch.tensor([[[1.0], [0.0]]]), torch.tensor([[[0.0], [1.0]]])
    pair = pair_statistics(samples_a, samples_b, torch.tensor([0.5]))
    inner = binary_entropy(torch.tensor(normal_cdf(1))).item()
    assert pair.win_probability.item() == pytest.approx(0.5)
    assert pair.entropy.item() == pytest.approx(math.log(2))
    assert pair.likelihood_entropy.item() == pytest.approx(inner)
    assert pair.disagreement.item() == pytest.approx(math.log(2) - inner)
    # standard deviation of {1, -1} is sqrt 2; over the root of two draws
    assert pair.difference_error.item() == pytest.approx(1.0)


def test_level_weights():
    samples_a, samples_b = torch.tensor([[3.0], [1.0]]), torch.zeros(2, 1)
    variance = torch.tensor([0.5, 2.0])
    pair = pair_statistics(samples_a, samples_b, variance, weights=torch.tensor([0.75, 0.25]))
    assert pair.win_probability.item() == pytest.approx(0.75 * normal_cdf(3) + 0.25 * normal_cdf(0.5), rel=1e-5)


@given(st.integers(0, 1000), st.integers(1, 3), st.integers(1, 4))
def test_entropy_splits_into_parts_that_are_not_negative(seed, levels, draws):
    generator = torch.Generator().manual_seed(seed)
    samples = torch.randn(2, levels, draws, 5, generator=generator, dtype=torch.float64)
    pair = pair_statistics(*samples, torch.rand(levels, generator=generator, dtype=torch.float64) + 0.05)
    torch.testing.assert_close(pair.entropy, pair.disagreement + pair.likelihood_entropy)
    assert (pair.disagreement >= -1e-12).all()
    assert (pair.likelihood_entropy >= 0).all()
    assert pair.difference_error.isnan().all() == (draws == 1)


def test_spread_by_hand():
    samples = torch.tensor([[1.0, 3.0], [6.0, 10.0]]).unsqueeze(-1)  # two levels, two draws
    # standard deviations sqrt 2 and sqrt 8: root mean square sqrt 5
    assert spread_over_draws(samples).item() == pytest.approx(math.sqrt(5))


def test_one_draw_has_no_spread():
    assert spread_over_draws(torch.zeros(3, 1, 2)).isnan().all()
    assert spread_over_draws(torch.zeros(3, 1, 2)).shape == (2,)
