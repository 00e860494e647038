"""Sets that other processes draw ahead are those that this process would draw."""

from functools import partial

import numpy as np
import pytest

from training.world.drawing import Ahead, drawing_pool
from training.world.groups import Groups, draw_description
from training.world.seeds import Seed


def fail(indices):
    raise InterruptedError(f"at {indices.start}")


def test_chunks_arrive_in_order_and_failures_are_raised():
    draw = partial(Groups.draw, seed=Seed.VALIDATION)
    with drawing_pool(1) as pool:
        ahead = Ahead(pool, draw, 5, size=2)
        failing = Ahead(pool, fail, 3, size=2)
        first, rest = Groups.join(ahead.take(range(2))), Groups.join(ahead.take(range(2, 5)))
        with pytest.raises(InterruptedError, match="at 0"):
            failing.take_all()
    expected = draw(range(5))
    assert first.captions + rest.captions == expected.captions
    assert np.array_equal(np.concatenate([first.pictures, rest.pictures]), expected.pictures)
    assert np.array_equal(np.concatenate([first.utilities, rest.utilities]), expected.utilities)


def test_measuring_in_a_pool_changes_nothing():
    drawn = Groups.draw(range(3), Seed.VALIDATION)
    descriptions = [draw_description(Seed.VALIDATION, index) for index in range(3)]
    with drawing_pool(1) as pool:
        measured = Groups.measure(descriptions, drawn.pictures, pool=pool)
    assert np.array_equal(measured.utilities, drawn.utilities)
