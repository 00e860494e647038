"""An objective whose weights two processes share: its loss, its evaluation, its average, and what reaches a file."""

import pytest
import torch
from diffusers.training_utils import EMAModel
from torch import distributed
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.multiprocessing import start_processes

from modeling_dina import DinaConfig, DinaRewardModel
from modeling_dina.pipelines_dina import EncodedPrompts
from tests.processes import START_METHOD
from training.reward.evaluation import mean_agreement, sum_agreement
from training.reward.objective import PreferenceObjective
from training.reward.sharding import gather, put


def build(config):
    torch.manual_seed(0)
    return PreferenceObjective(DinaRewardModel(DinaConfig(**config)))


def inputs():
    torch.manual_seed(1)
    return {
        "latents": torch.randn(2, 3, 4, 8, 6),
        "noise": torch.randn(3, 4, 8, 6),
        "sigma": torch.tensor([0.1, 0.5, 0.9]),
        "prompt_embeds": torch.randn(3, 7, 12),
        "pooled_prompt_embeds": torch.randn(3, 10),
        "target": torch.tensor([1.0, 0.0, 0.7]),
    }


def update(objective):
    """One step of gradient descent under an average; the loss, and the averaged weights by name."""
    weights = dict(objective.named_parameters())
    average = EMAModel(weights.values(), decay=0.5)
    loss = objective(**inputs()).mean()
    loss.backward()
    torch.optim.SGD(weights.values(), lr=0.1).step()
    for _ in range(3):
        average.step(weights.values())
    return loss, dict(zip(weights, average.shadow_params, strict=True))


def agreement(objective):
    pairs = inputs()
    batch = {"latents": pairs["latents"], "target": pairs["target"], "weight": torch.ones(3), "prompt": ["x"] * 3}
    conditioning = EncodedPrompts(pairs["prompt_embeds"], pairs["pooled_prompt_embeds"])
    options = {"mode": "features", "sigmas": [0.2, 0.6], "num_draws": 1}
    return mean_agreement(sum_agreement(objective.reward, [batch], lambda prompts: conditioning, **options))


def process(rank, meeting, config):
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    try:
        whole, sharded = build(config), build(config)
        mesh = distributed.init_device_mesh("cpu", (2,))
        for part in (*sharded.model.backbone.transformer_blocks, sharded.model.head, sharded):
            fully_shard(part, mesh=mesh)
        register_fsdp_forward_method(sharded, "reward")
        weights = dict(sharded.named_parameters())
        assert all(isinstance(weight, DTensor) for weight in weights.values())

        loss, averaged = update(whole)
        other_loss, other_averaged = update(sharded)
        torch.testing.assert_close(other_loss, loss)
        assert other_averaged.keys() == averaged.keys()
        for name, value in gather(other_averaged).items():
            torch.testing.assert_close(value, averaged[name])
        for name, value in agreement(whole).items():
            assert agreement(sharded)[name] == pytest.approx(value, abs=1e-5)

        values = {name: weight.detach() + 1 for name, weight in whole.named_parameters()}
        put(weights, values)
        assert all(torch.equal(value, values[name]) for name, value in gather(weights).items())
    finally:
        distributed.destroy_process_group()


@pytest.mark.slow
def test_sharded_weights(tmp_path, tiny_config):
    start_processes(process, (str(tmp_path / "meeting"), tiny_config), nprocs=2, start_method=START_METHOD)


def test_whole_weights(tiny_config):
    weights = dict(build(tiny_config).named_parameters())
    values = {name: weight.detach() * 2 for name, weight in weights.items()}
    put(weights, values)
    assert all(torch.equal(value, values[name]) for name, value in gather(weights).items())
