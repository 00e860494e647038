"""A stage that is interrupted goes on where it stopped and ends with the same weights; shards are never half there."""

import shutil

import pytest
import torch
from torch import nn

from training.world.latents import SHARD_SIZE, Shard, build_shards, load_shards
from training.world.models.stage import AVERAGED, Batches, train_stage


class Line(nn.Module):
    """A linear regression with dropout, so that the random state matters; it can be made to fail at a step."""

    def __init__(self, fails_at: int | None = None):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(3, 1)
        self.steps, self.fails_at = 0, fails_at

    def forward(self, x, y):
        self.steps += 1
        if self.steps == self.fails_at:
            raise InterruptedError
        return {"loss": (nn.functional.dropout(self.linear(x)).squeeze(-1) - y).square().mean()}


def points(updates: int = 20) -> Batches:
    x = torch.randn(80, 3, generator=torch.Generator().manual_seed(0))
    return Batches({"x": x, "y": x.sum(dim=1)}, updates=updates, batch_size=4)


def train(module, directory, **arguments):
    options = {"learning_rate": 0.01, "save_steps": 5, "disable_tqdm": True}
    train_stage(module, points(), directory, **options | arguments)


def test_batches_are_rows_chosen_by_seed_and_update():
    batch, again, other = points()[3], points()[3], points()[4]
    assert batch["x"].shape == (4, 3)
    assert torch.equal(batch["x"], again["x"])
    assert not torch.equal(batch["x"], other["x"])
    assert torch.equal(batch["y"], batch["x"].sum(dim=1))


def test_the_weights_at_the_end_are_averaged(tmp_path):
    """With a decay of 0.5 and a constant gradient, by the recursion of the average, worked out step by step."""

    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, x, y):
            return {"loss": self.weight.sum()}

    module = Constant()
    options = {"optim": "sgd", "learning_rate": 1.0, "lr_scheduler_type": "constant", "ema_decay": 0.5}
    train_stage(module, points(updates=3), tmp_path, weight_decay=0.0, disable_tqdm=True, **options)
    average = 0.0
    # The decay of update t is (1 + t) / (10 + t) with t = 0, 1, 2, below 0.5; the first update copies the weights.
    for weight, decay in zip((-1.0, -2.0, -3.0), (0.0, 2 / 11, 3 / 12), strict=True):
        average = decay * average + (1 - decay) * weight
    assert module.weight.item() == pytest.approx(average)


def test_interrupted_stage_ends_with_the_same_weights(tmp_path):
    whole = Line()
    train(whole, tmp_path / "whole")
    assert whole.steps == 20

    with pytest.raises(InterruptedError):
        train(Line(fails_at=13), tmp_path / "cut")
    # As if the machine had stopped while the newest checkpoint was being written.
    shutil.copytree(tmp_path / "cut" / "checkpoint-10", tmp_path / "cut" / "checkpoint-12")
    (tmp_path / "cut" / "checkpoint-12" / AVERAGED).unlink()
    resumed = Line()
    train(resumed, tmp_path / "cut")
    assert resumed.steps == 10
    assert torch.equal(resumed.linear.weight, whole.linear.weight)


def test_shards_are_kept_and_only_missing_ones_are_made(tmp_path):
    made = []

    def make(indices):
        made.append(indices)
        return Shard({"index": torch.tensor(list(indices))}, [f"caption {index}" for index in indices])

    total = SHARD_SIZE + 10
    tensors, captions = load_shards(build_shards(tmp_path, total, make))
    assert tensors["index"].tolist() == list(range(total))
    assert captions[-1] == f"caption {total - 1}"

    sorted(tmp_path.glob("*.safetensors"))[1].unlink()
    build_shards(tmp_path, total, make)
    assert made[2:] == [range(SHARD_SIZE, total)]


def test_a_failing_shard_leaves_nothing_behind(tmp_path):
    def make(indices):
        raise InterruptedError

    with pytest.raises(InterruptedError):
        build_shards(tmp_path, 3, make)
    assert not list(tmp_path.glob("*.safetensors"))
