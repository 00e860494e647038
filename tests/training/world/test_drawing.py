"""Sets that other processes draw ahead are those that this process would draw."""

import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

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


WAITS_TO_BE_KILLED = """
import os, time
from training.world.drawing import drawing_pool
if __name__ == "__main__":
    with drawing_pool(1) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        time.sleep(600)
"""


@pytest.mark.slow
def test_workers_end_with_a_killed_parent(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(WAITS_TO_BE_KILLED)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True, env=environment)
    worker = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    end = time.monotonic() + 30
    while (Path("/proc") / str(worker)).exists():
        assert time.monotonic() < end, "the worker still runs"
        time.sleep(0.05)
