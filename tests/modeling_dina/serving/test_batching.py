"""How requests are gathered, bounded and let go, on the embedded model."""

import asyncio
import threading

import pytest
from safetensors.torch import save

from modeling_dina.serving.batching import Batcher, QueueClosedError, QueueFullError
from modeling_dina.serving.metrics import Metrics
from modeling_dina.serving.protocol import parse_score_request
from tests.load.fuzz_bodies import good_tensors


def job(seed, samples=1, tokens=28):
    tensors = good_tensors(seed, samples)
    return parse_score_request(save({**tensors, "prompt_embeds": tensors["prompt_embeds"][:, :tokens].contiguous()}))


@pytest.fixture
def batches(hooked):
    """Sizes of the batches that the model has seen."""
    sizes = []
    hooked(lambda latents, sigma: sizes.append(len(latents)))
    return sizes


@pytest.fixture
def gate(hooked):
    """Set: the model may go on. Clear: it waits."""
    event = threading.Event()
    event.set()
    hooked(lambda latents, sigma: event.wait(10))
    return event


async def ask(batcher, jobs):
    return await asyncio.gather(*(batcher.submit(each) for each in jobs), return_exceptions=True)


def alone(engine, jobs):
    """The score of each, asked for by itself."""
    return [engine.answer([each])[0][0] for each in jobs]


def run(engine, scenario, count=1, **options):
    """Runs a coroutine function with a running batcher."""

    async def main():
        batcher = Batcher([engine] * count, Metrics(), **{"max_batch_size": 8, **options})
        async with batcher.running():
            return await asyncio.wait_for(scenario(batcher), 30)

    return asyncio.run(main())


def test_requests_within_the_budget_share_a_batch(engine, batches):
    run(engine, lambda batcher: ask(batcher, [job(seed) for seed in range(5)]), max_wait=0.2)
    assert batches == [5]


def test_full_batch_does_not_wait(engine, batches):
    run(engine, lambda batcher: ask(batcher, [job(seed) for seed in range(16)]), max_wait=1000)
    assert batches == [8, 8]


def test_shapes_are_kept_apart(engine, batches):
    jobs = [job(seed, tokens=28 if seed % 2 else 14) for seed in range(6)]
    answers = run(engine, lambda batcher: ask(batcher, jobs), max_wait=0.2)
    assert batches == [3, 3]
    assert [score for scores in answers for score in scores] == pytest.approx(alone(engine, jobs), abs=2e-6)


def test_batch_holds_whole_requests(engine, batches):
    run(engine, lambda batcher: ask(batcher, [job(0, samples=n) for n in (5, 5, 2)]), max_wait=0.2)
    assert batches == [5, 7]


def test_batch_size_of_one_is_no_batching(engine, batches):
    run(engine, lambda batcher: ask(batcher, [job(seed) for seed in range(4)]), max_batch_size=1, max_wait=0)
    assert batches == [1, 1, 1, 1]


def test_each_device_has_its_worker(engine, hooked):
    met = threading.Barrier(2, timeout=10)
    hooked(lambda latents, sigma: met.wait())  # passes only if two batches are at work at once
    scenario = lambda batcher: ask(batcher, [job(seed) for seed in range(4)])  # noqa: E731
    answers = run(engine, scenario, count=2, max_batch_size=1)
    assert all(isinstance(answer, list) for answer in answers)


def test_full_queue_refuses_and_recovers(engine, gate):
    async def scenario(batcher):
        gate.clear()
        waiting = asyncio.create_task(ask(batcher, [job(0, samples=6)]))
        await asyncio.sleep(0.05)
        with pytest.raises(QueueFullError, match="6 of 8 samples"):
            await batcher.submit(job(1, samples=3))
        gate.set()
        assert [len(scores) for scores in await waiting] == [6]
        assert len(await batcher.submit(job(1, samples=3))) == 3
        with pytest.raises(ValueError, match="body: expected at most 8 samples, got 9"):
            await batcher.submit(job(1, samples=9))

    run(engine, scenario, max_queue=8)


def test_closed_queue_answers_what_it_accepted(engine, gate):
    async def scenario(batcher):
        gate.clear()
        waiting = asyncio.create_task(ask(batcher, jobs))
        await asyncio.sleep(0.05)
        batcher.close()
        with pytest.raises(QueueClosedError):
            await batcher.submit(job(0))
        gate.set()
        answers = await waiting
        assert batcher.samples == 0
        return answers

    jobs = [job(seed) for seed in range(20)]
    answers = run(engine, scenario)
    assert [score for scores in answers for score in scores] == pytest.approx(alone(engine, jobs), abs=2e-6)
