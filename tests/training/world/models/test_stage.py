"""A stage that is interrupted goes on where it stopped and ends with the same weights; shards are never half there."""

import shutil

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from training.world.latents import SHARD_SIZE, Shard, build_shards, load_shards
from training.world.models.stage import train_stage


class Points(Dataset):
    def __len__(self):
        return 80

    def __getitem__(self, index):
        x = torch.randn(3, generator=torch.Generator().manual_seed(index))
        return {"x": x, "y": x.sum()}


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


def train(module, directory):
    train_stage(module, Points(), directory, batch_size=4, learning_rate=0.01, save_steps=5, disable_tqdm=True)


def test_interrupted_stage_ends_with_the_same_weights(tmp_path):
    whole = Line()
    train(whole, tmp_path / "whole")
    assert whole.steps == 20

    with pytest.raises(InterruptedError):
        train(Line(fails_at=13), tmp_path / "cut")
    # As if the machine had stopped while the newest checkpoint was being written.
    shutil.copytree(tmp_path / "cut" / "checkpoint-10", tmp_path / "cut" / "checkpoint-12")
    (tmp_path / "cut" / "checkpoint-12" / "trainer_state.json").unlink()
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
