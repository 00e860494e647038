"""The questions: what settles is one comparison with more and more draws."""

import itertools

import pytest
import torch
from PIL import Image


def test_settling_adds_draws_to_those_before(judge, pair):
    prompt, paths = pair
    steps = list(judge.settle(prompt, [Image.open(path) for path in paths], 8))
    assert [step.samples.shape[1] for step in steps] == [1, 2, 4, 8]
    for earlier, later in itertools.pairwise(steps):
        torch.testing.assert_close(later.samples[:, : earlier.samples.shape[1]], earlier.samples)
    expected = judge.scorer.compare(prompt=prompt, images=paths, num_draws=8)
    assert steps[-1].win_probability == pytest.approx(expected.win_probability)


@pytest.mark.parametrize("most_draws", [1, 65, None, "8"])
def test_settling_is_bounded(judge, pair, most_draws):
    with pytest.raises(ValueError, match="draws: expected a whole number from 2 to 64"):
        next(judge.settle(pair[0], [], most_draws))
