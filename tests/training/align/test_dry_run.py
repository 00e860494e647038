"""What a dry run counts, against what can be worked out."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel

from modeling_dina import DinaConfig
from training.align.__main__ import main
from training.align.dry_run import Cost
from training.align.run import build, parse_run

CONFIGS = Path(__file__).parents[3] / "training" / "configs" / "align"


@pytest.fixture(scope="module")
def cost(tmp_path_factory, tiny_folder):
    """The cost of a configuration, by its name, with flags. Policy and reward have only three blocks, to save time."""
    folder = tmp_path_factory.mktemp("blocks")
    blocks = {"num_layers": 3}
    (folder / "transformer").mkdir()
    transformer = json.loads((Path(tiny_folder) / "transformer" / "config.json").read_text()) | blocks
    (folder / "transformer" / "config.json").write_text(json.dumps(transformer))
    fields = {**blocks, "visual_layers": [1, 3], "text_layers": [3]}
    reward = DinaConfig.from_pretrained(tiny_folder, **fields)
    reward.save_pretrained(folder)
    sources = ("--policy", str(folder), "--reward_model", str(folder))

    @cache
    def count(name: str, *flags: str) -> Cost:
        return Cost(*parse_run(["--config", str(CONFIGS / f"{name}.yaml"), *sources, *flags]))

    return count


@pytest.mark.slow
def test_flops_grow_as_the_settings_say(cost):
    once, twice = cost("small_world_nft"), cost("small_world_nft", "--prompts_per_update", "8")
    assert {name: 2 * flops for name, flops in once.flops.items()} == twice.flops
    more = cost("small_world_nft", "--levels", "4")
    assert more.flops["update"] == 2 * once.flops["update"]
    assert more.flops["reward"] == once.flops["reward"]


@pytest.mark.slow
def test_a_backward_pass_through_frozen_weights_costs_about_one_more_forward_pass(cost):
    """Gradients of activations, and of the small LoRA alone: per evaluation, 2 to 2.5 forward passes."""
    _, own = parse_run(["--config", str(CONFIGS / "small_world_dpo.yaml")])
    counted, taken = cost("small_world_dpo"), own.evaluations()
    ratio = (counted.flops["update"] / taken.update) / (counted.flops["sampling"] / taken.sampling)
    assert 1.9 < ratio < 2.6


@pytest.mark.slow
def test_gradient_checkpointing_costs_one_more_forward_pass(cost):
    _, own = parse_run(["--config", str(CONFIGS / "small_world_dpo.yaml")])
    once, again = cost("small_world_dpo"), cost("small_world_dpo", "--gradient_checkpointing")
    forward, taken = once.flops["sampling"] / own.evaluations().sampling, own.evaluations().update
    assert again.flops["update"] - once.flops["update"] == pytest.approx(taken * forward, rel=0.05)
    assert again.memory["activations"] < once.memory["activations"] / 2


@pytest.mark.slow
def test_noisy_states_are_judged_once(cost):
    """PRFL reads one level, where ReFL would read 3 levels x 4 draws."""
    noisy = cost("small_world_prfl").flops["reward"]
    clean = cost("small_world_prfl", "--scored", "clean", "--last_step", "11").flops["reward"]
    assert clean == pytest.approx(12 * noisy, rel=0.05)


def test_parameters(cost):
    """Rank 8: 3 blocks of 8 projections of 128 x 128, the last without that of the text's output, with two matrices of
    8 x 128."""
    counted = cost("small_world_refl")
    assert counted.trainable == 23 * 2 * 8 * 128
    assert counted.memory["optimizer"] == 8 * counted.trainable


@pytest.mark.parametrize(
    ("algorithm", "own"),
    [
        ("refl", {"first_step": 2, "last_step": 3, "gradient_steps": 2}),
        ("refl", {"hold_weight": 0.5}),
        ("flow_grpo", {"group_size": 2, "guidance_scale": 2.0}),
        ("diffusion_nft", {"group_size": 2}),
        ("diffusion_dpo", {"group_size": 2}),
    ],
)
def test_what_an_algorithm_keeps(settings, algorithm, own):
    """Evaluations of the transformer with gradient in the loss of one item, and averages of the weights."""
    arguments, own = settings(algorithm, own, prompts_per_update=1, eval_samples=1, reference_samples=2)
    trainer = build(arguments, own, Accelerator())
    experience = trainer.algorithm.collect(trainer.policy.encode(["two purple stars"]), trainer.draws())
    kept = []
    trainer.policy.transformer.register_forward_hook(
        lambda module, inputs, output: kept.append(len(output.sample) * torch.is_grad_enabled())
    )
    trainer.algorithm.loss(experience.select(torch.tensor([0])), 0)
    assert sum(kept) == own.evaluations().stored
    held = [trainer.average, *vars(trainer.algorithm).values()]
    assert sum(isinstance(each, EMAModel) for each in held) == trainer.algorithm.averages


@pytest.mark.slow
def test_the_command_needs_no_weights(tmp_path, capsys):
    """Of SD3.5 Medium, whose weights are nowhere here."""
    main(["--config", str(CONFIGS / "sd35_medium_prfl.yaml"), "--dry_run", "--output_dir", str(tmp_path / "run")])
    assert "2,267.1 M" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()
