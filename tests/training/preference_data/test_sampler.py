"""Every sample exactly once an epoch, over any number of processes, in batches of one shape, and so after a resume."""

import json

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from training.preference_data.sampler import ShapeBatchSampler

KINDS = np.array([[8, 8], [8, 16], [16, 8], [4, 4]])
shapes = st.lists(st.integers(0, len(KINDS) - 1), min_size=1, max_size=80).map(lambda kinds: KINDS[kinds])
areas = st.integers(1, 600)
ranks = st.integers(1, 5)


def samplers(shapes, max_area, num_replicas):
    # Otherwise the samples may be too few to give every process as many batches.
    assume(len(shapes) >= least_batches(shapes, max_area) + num_replicas - 1)
    return [
        ShapeBatchSampler(shapes, max_area=max_area, num_replicas=num_replicas, rank=rank)
        for rank in range(num_replicas)
    ]


def least_batches(shapes, max_area):
    kinds, counts = np.unique(shapes, axis=0, return_counts=True)
    return sum(-(-count // max(1, max_area // kind.prod())) for kind, count in zip(kinds, counts, strict=True))


@given(shapes, areas, ranks)
def test_every_sample_exactly_once_in_batches_of_one_shape(shapes, max_area, num_replicas):
    by_rank = samplers(shapes, max_area, num_replicas)
    for _ in range(2):
        batches = [list(sampler) for sampler in by_rank]
        assert {len(of_rank) for of_rank in batches} == {len(by_rank[0])}
        flat = [batch for of_rank in batches for batch in of_rank]
        assert sorted(index for batch in flat for index in batch) == list(range(len(shapes)))
        for batch in flat:
            assert batch
            assert len(np.unique(shapes[batch], axis=0)) == 1
            assert len(batch) == 1 or shapes[batch].prod(axis=1).sum() <= max_area


@given(shapes, areas, ranks, st.data())
def test_a_restored_sampler_goes_on_as_if_never_stopped(shapes, max_area, num_replicas, data):
    by_rank = samplers(shapes, max_area, num_replicas)
    rank = data.draw(st.integers(0, num_replicas - 1))
    whole = by_rank[rank]
    cut, restored = (samplers(shapes, max_area, num_replicas)[rank] for _ in range(2))
    epochs = [list(whole) for _ in range(3)]

    stop = data.draw(st.integers(0, len(whole)))
    assert list(cut) == epochs[0]
    seen = [batch for _, batch in zip(range(stop), cut, strict=False)]
    restored.load_state_dict(json.loads(json.dumps(cut.state_dict())))
    # A restored sampler has the rest of the epoch, which is nothing after its last step: then the next epoch begins.
    rest = list(restored)
    if stop < len(whole):
        assert seen + rest == epochs[1]
        rest = list(restored)
    assert rest == epochs[2]


def test_batches_by_area_are_even_and_shared_by_shape():
    shapes = np.array([[8, 8]] * 10 + [[16, 8]] * 7)
    by_rank = [ShapeBatchSampler(shapes, max_area=256, num_replicas=2, rank=rank) for rank in range(2)]
    # At most 4 of the small and 2 of the large: 3 and 4 batches, and one more where batches are largest.
    steps = list(zip(*by_rank, strict=True))
    assert len(steps) == 4
    sizes = sorted((int(shapes[batch[0], 0]), len(batch)) for step in steps for batch in step)
    assert sizes == [(8, 2), (8, 2), (8, 3), (8, 3), (16, 1), (16, 2), (16, 2), (16, 2)]
    for first, second in steps:
        assert shapes[first[0], 0] == shapes[second[0], 0]


def test_each_epoch_has_its_own_order_and_each_seed():
    shapes = np.full((50, 2), 8)
    sampler = ShapeBatchSampler(shapes, max_area=64)
    orders = [list(sampler), list(sampler)]
    sampler.set_epoch(0)
    assert list(sampler) == orders[0] != orders[1]
    assert list(ShapeBatchSampler(shapes, max_area=64, seed=1)) != orders[0]


def test_setting_the_epoch_that_was_restored_keeps_the_position():
    sampler = ShapeBatchSampler(np.full((10, 2), 8), max_area=64)
    sampler.set_epoch(3)
    order = list(sampler)
    sampler.load_state_dict(sampler.state_dict(step=4))
    sampler.set_epoch(3)
    assert list(sampler) == order[4:]
    sampler.set_epoch(3)
    assert list(sampler) == order


def test_impossible_and_wrong_arguments():
    shapes = np.full((3, 2), 8)
    with pytest.raises(ValueError, match="same number of batches in 2 processes, got 3 that fill a batch each; leave"):
        ShapeBatchSampler(shapes, max_area=64, num_replicas=2)
    with pytest.raises(ValueError, match="max_area: expected at least 1, got 0"):
        ShapeBatchSampler(shapes, max_area=0)
    with pytest.raises(ValueError, match="rank: expected 0 to 1 for 2 processes, got 2"):
        ShapeBatchSampler(shapes, max_area=128, num_replicas=2, rank=2)
    with pytest.raises(ValueError, match=r"shapes: .* got \[0\]"):
        ShapeBatchSampler(np.array([]), max_area=64)
    state = ShapeBatchSampler(shapes, max_area=64).state_dict()
    with pytest.raises(ValueError, match="state: expected seed 1, got 0"):
        ShapeBatchSampler(shapes, max_area=64, seed=1).load_state_dict(state)
