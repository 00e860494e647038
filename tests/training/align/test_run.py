"""Whole runs: interrupted and resumed, with faults, and refused."""

import json
import math
import shutil
import signal
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml
from accelerate import Accelerator
from diffusers import StableDiffusion3Pipeline
from safetensors.torch import load_file

from modeling_dina import DinaRewardModel
from tests.official_layout import write_official
from tests.processes import Worker
from training.align import run as run_module
from training.align.dry_run import Cost
from training.align.rewards import Reward
from training.align.run import build, load_models, parse_run, run
from training.run_control import NonFiniteError, checkpoints

# A run that is as short as can be.
BRIEF = {"prompts_per_update": 4, "eval_samples": 4, "eval_steps": 2, "eval_every": 2, "save_every": 2, "updates": 4}
QUICK = {
    "refl": {"num_steps": 3, "first_step": 1, "last_step": 2},
    "diffusion_nft": {"num_steps": 3, "group_size": 2, "levels": 2},
}


def metrics(arguments, kind: str) -> list[dict]:
    lines = (Path(arguments.output_dir) / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["kind"] == kind]


def adapter(arguments) -> dict[str, torch.Tensor]:
    return load_file(Path(arguments.output_dir) / "adapter" / "pytorch_lora_weights.safetensors")


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_a_reward_in_the_published_layout(settings, tmp_path):
    """On a diffusion model that lies elsewhere than its checkpoint says."""
    tiny = settings("refl")[0].reward_model
    own = DinaRewardModel.from_pretrained(tiny)
    official = write_official(tmp_path / "official", own, full_model=True, backbone_model_id="owner/base")
    arguments, algorithm_arguments = settings("refl", reward_model=str(official), reward_backbone=tiny)
    _, model = load_models(arguments, torch.device("cpu"))
    assert_same(model.state_dict(), own.state_dict())
    assert Cost(arguments, algorithm_arguments).memory["reward"] == Cost(*settings("refl")).memory["reward"]


# ---- interruption ----


@pytest.mark.parametrize("algorithm", ["refl", "diffusion_nft"])
@pytest.mark.slow
def test_an_interrupted_run_ends_as_if_it_had_not_been(settings, tmp_path, algorithm):
    options = BRIEF | {"ema_decay": 0.9, "watched": ["utility"], "patience": 5}
    whole = settings(algorithm, QUICK[algorithm], **options)
    run(*whole)
    part = settings(algorithm, QUICK[algorithm], **options | {"output_dir": str(tmp_path / "part"), "updates": 3})
    run(*part)
    # As a kill in the fourth update leaves it: the third was logged, and not saved.
    for name in ("adapter", "checkpoint-3"):
        shutil.rmtree(Path(part[0].output_dir) / name)
    rest = settings(
        algorithm,
        QUICK[algorithm],
        **options | {"output_dir": str(tmp_path / "part"), "resume_from_checkpoint": "last"},
    )
    assert run(*rest).update == 4
    assert_same(adapter(whole[0]), adapter(rest[0]))
    for kind in ("train", "eval"):
        assert [
            {name: value for name, value in line.items() if name != "seconds"} for line in metrics(whole[0], kind)
        ] == [{name: value for name, value in line.items() if name != "seconds"} for line in metrics(rest[0], kind)]


@pytest.mark.slow
def test_sigterm_saves_and_a_new_process_goes_on(settings, tmp_path):
    """With metrics and pictures going to Trackio, which is kept on this machine."""
    whole = settings("refl", QUICK["refl"], **BRIEF)
    run(*whole)
    changed = {"output_dir": str(tmp_path / "killed"), "updates": 1000, "report_to": "trackio"}
    arguments = asdict(whole[0]) | asdict(whole[1]) | changed
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({name: value for name, value in arguments.items() if value != []}))
    command = ["training.align", "--config", config]
    environment = {
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
        "TRACKIO_DIR": str(tmp_path / "trackio"),
    }
    process = Worker(*command, environment=environment)
    for line in process.stdout:
        if line.startswith('{"kind": "train"'):
            process.send_signal(signal.SIGTERM)
            break
    process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    (checkpoint,) = checkpoints(tmp_path / "killed")
    reached = int(checkpoint.name.split("-")[1])
    assert 1 <= reached < 4
    resumed = Worker(*command, "--updates", 4, "--resume_from_checkpoint", "last", environment=environment)
    printed, _ = resumed.communicate()
    assert resumed.returncode == 0, printed
    killed = settings("refl", QUICK["refl"], **BRIEF | {"output_dir": str(tmp_path / "killed")})
    assert_same(adapter(whole[0]), adapter(killed[0]))
    assert list((tmp_path / "trackio").glob("dina-align*.db"))
    assert list((tmp_path / "trackio").rglob("*.png"))


@pytest.mark.slow
def test_checkpoints_are_loras_that_a_stock_pipeline_reads(settings):
    arguments, own = settings("refl", QUICK["refl"], **BRIEF | {"save_every": 1, "save_total_limit": 2})
    trainer = run(arguments, own)
    kept = checkpoints(arguments.output_dir)
    assert [path.name for path in kept] == ["checkpoint-3", "checkpoint-4"]
    pipeline = StableDiffusion3Pipeline.from_pretrained(arguments.policy)
    pipeline.load_lora_weights(kept[-1])
    conditioning = trainer.policy.encode(["a large red circle"])
    noise = trainer.policy.noise(1, torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = trainer.policy.velocity(noise, torch.tensor([0.7]), conditioning)
        theirs = pipeline.transformer(noise, *conditioning.embeddings.pair(), torch.tensor([700.0])).sample
        with trainer.policy.reference():
            before = trainer.policy.velocity(noise, torch.tensor([0.7]), conditioning)
    torch.testing.assert_close(ours, theirs)
    assert (ours - before).abs().max() > 1e-4


# ---- faults ----


BROKEN = "two purple stars"


class Faulty(Reward):
    """The reward it is given, but NaN for one prompt."""

    accepts_noise = True

    def __init__(self, reward):
        self.reward = reward

    def score(self, latents, conditioning, sigma, seed):
        output = self.reward(latents, conditioning, sigma, seed)
        broken = torch.tensor([prompt == BROKEN for prompt in conditioning.prompts])
        # No number in the backward pass either, as with a real fault.
        return output._replace(scores=output.scores * torch.where(broken, torch.nan, 1.0))


@pytest.fixture
def faulty(monkeypatch, tmp_path):
    """Runs in which half of all prompts, or all, have no finite reward."""
    sound = run_module.build_reward
    monkeypatch.setattr(run_module, "build_reward", lambda *arguments: Faulty(sound(*arguments)))
    half, every = tmp_path / "half.txt", tmp_path / "every.txt"
    half.write_text(f"a large red circle\n{BROKEN}\n")
    every.write_text(f"{BROKEN}\n")
    return {"half": {"prompts": str(half)}, "all": {"prompts": str(every)}}


@pytest.mark.parametrize("algorithm", ["refl", "diffusion_nft"])
@pytest.mark.slow
def test_samples_without_a_finite_reward_are_dropped_and_counted(settings, faulty, algorithm):
    arguments, own = settings(algorithm, QUICK[algorithm], **BRIEF | faulty["half"] | {"updates": 2})
    trainer = run(arguments, own)
    lost = 2 * (2 if algorithm == "refl" else 4)  # half of 4 samples, or of 4 groups of 2, twice
    assert trainer.nonfinite == metrics(arguments, "train")[-1]["nonfinite"] == lost
    assert all(parameter.isfinite().all() for parameter in trainer.policy.parameters)
    assert any(values.any() for name, values in adapter(arguments).items() if "lora_B" in name)


@pytest.mark.slow
def test_too_many_of_them_stop_the_run(settings, faulty):
    arguments, own = settings("refl", QUICK["refl"], **BRIEF | faulty["all"] | {"max_nonfinite": 6})
    with pytest.raises(NonFiniteError, match=r"got 8 rewards or gradients .* up to update 2; max_nonfinite is 6"):
        run(arguments, own)


def test_the_run_stops_when_the_watched_reward_turns(settings):
    """By a patience of one, after an evaluation that is surely below the best; the best weights are kept."""
    arguments, own = settings("refl", QUICK["refl"], **BRIEF | {"watched": ["utility"], "patience": 1})
    trainer = build(arguments, own, Accelerator())
    scores = torch.tensor([1.0, 2.0, 3.0, 4.0])

    def should_stop(watched):
        return trainer.evaluation.should_stop({"utility": watched}, trainer.average)

    assert not should_stop(scores)
    kept = [weight.clone() for weight in trainer.average.shadow_params]
    for shadow in trainer.average.shadow_params:
        shadow += 1
    noise = torch.tensor([0.5, -0.6, 0.4, -0.4])
    assert not should_stop(scores + noise)  # lower, but not surely
    assert should_stop(scores - 0.5 + 0.1 * noise)
    assert all(torch.equal(first, second) for first, second in zip(kept, trainer.evaluation.best_weights, strict=True))


# ---- refusals ----


def retrained(folder: Path, part: str, tmp_path: Path) -> str:
    """A copy of the policy in which one part has other weights."""
    copy = tmp_path / "policy"
    pipeline = StableDiffusion3Pipeline.from_pretrained(folder)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in getattr(pipeline, part).parameters():
            parameter += 0.2 * parameter.std().nan_to_num(0) * torch.randn_like(parameter)
    pipeline.save_pretrained(copy)
    return str(copy)


@pytest.mark.parametrize(
    ("part", "message"),
    [("vae", "latent space, got latents"), ("text_encoder_3", "text conditioning, got prompt_emb")],
)
def test_a_policy_of_another_space_is_refused(settings, tmp_path, part, message):
    arguments, own = settings("refl", QUICK["refl"], **BRIEF)
    reward = arguments.reward_model
    arguments.policy = retrained(Path(reward), part, tmp_path)
    with pytest.raises(ValueError, match=f"policy, reward_model: expected the same {message}") as caught:
        run(arguments, own)
    assert arguments.policy in str(caught.value)
    assert reward in str(caught.value)


@pytest.mark.slow
def test_a_fine_tuned_copy_of_the_policy_is_not_refused(settings, tmp_path):
    arguments, own = settings("refl", QUICK["refl"], **BRIEF | {"updates": 1})
    arguments.policy = retrained(Path(arguments.policy), "transformer", tmp_path)
    run(arguments, own)


@pytest.mark.parametrize(
    ("algorithm", "own", "fields", "message"),
    [
        ("refl", {}, {"rewards": ["utility"]}, "rewards: expected .* ReFL"),
        (
            "refl",
            {"last_step": 5},
            {},
            r"first_step, last_step: expected .* num_steps - gradient_steps = 4, got 2 and 5",
        ),
        ("refl", {"scored": "state"}, {}, "last_step: expected below 4"),
        ("flow_grpo", {"window_end": 5}, {}, "window, window_end: expected"),
        ("flow_grpo", {"eta": 0.0}, {}, "eta: expected a positive number"),
        ("flow_grpo", {"group_size": 1}, {}, "group_size: expected at least 2"),
        ("diffusion_nft", {"levels": 6}, {}, "levels: expected 1 to num_steps = 5"),
        ("diffusion_dpo", {"levels": 0}, {}, "levels: expected at least 1"),
        ("refl", {}, {"prompts": "nowhere.txt"}, "prompts: expected 'world' or a text file, got nowhere.txt"),
        ("refl", {}, {"resume_from_checkpoint": "nowhere"}, "resume_from_checkpoint: expected 'last' or"),
    ],
)
def test_bad_arguments_are_named(settings, algorithm, own, fields, message):
    with pytest.raises(ValueError, match=message):
        run(*settings(algorithm, own, **BRIEF | fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_size": 0}, "batch_size: expected a positive number, got 0"),
        ({"rewards": ["dina"], "reward_weights": [1.0, 2.0]}, "reward_weights: expected one for each"),
        ({"patience": 2}, "patience: expected at least one watched reward, got none"),
        ({"gate": "drop", "gate_draws": 1}, "gate_draws: expected at least 2"),
        ({"ema_decay": 1.0}, "ema_decay: expected a number in"),
        ({"watched": ["pixel"]}, "pixel_reward: expected a folder"),
    ],
)
def test_bad_fields_are_named(settings, fields, message):
    with pytest.raises(ValueError, match=message):
        settings("refl", **fields)


def test_a_run_goes_on_with_its_own_arguments_only(settings):
    arguments, own = settings("refl", QUICK["refl"], **BRIEF | {"updates": 2})
    run(arguments, own)
    with pytest.raises(ValueError, match="output_dir: expected a folder without checkpoints"):
        run(arguments, own)
    arguments.resume_from_checkpoint, arguments.learning_rate = "last", 0.5
    with pytest.raises(ValueError, match=r"resume_from_checkpoint: expected a run with learning_rate 0.5, .* 0.001"):
        run(arguments, own)


# ---- what a run leaves, and reads ----


@pytest.mark.slow
def test_what_a_run_leaves(settings):
    arguments, own = settings("refl", QUICK["refl"], **BRIEF | {"watched": ["utility"], "seed": 3})
    run(arguments, own)
    trained, evaluated = metrics(arguments, "train"), metrics(arguments, "eval")
    assert [line["update"] for line in trained] == [1, 2, 3, 4]
    assert [line["update"] for line in evaluated] == [0, 2, 4]
    seconds = [line["seconds"] for line in trained]
    assert seconds == sorted(seconds)
    folder = Path(arguments.output_dir)
    samples = load_file(folder / "evaluations" / "000004.safetensors")
    assert samples["latents"].shape == (4, 16, 8, 8)
    assert samples["utility"].mean().item() == pytest.approx(evaluated[-1]["utility"], abs=1e-5)
    assert math.isclose(evaluated[-1]["dina"], samples["dina"].mean().item(), abs_tol=1e-5)
    assert sorted(path.name for path in (folder / "samples").iterdir()) == ["000000.png", "000002.png", "000004.png"]


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[3] / "training/configs/align").glob("*.yaml")), ids=str
)
def test_shipped_configs_parse(path):
    arguments, own = parse_run(["--config", str(path), "--seed", "7"])
    assert arguments.seed == 7
    assert type(own) is run_module.ALGORITHMS[arguments.algorithm].Arguments


def test_an_unknown_algorithm_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"algorithm: expected one of .* got None"):
        parse_run([])
    config = tmp_path / "config.yaml"
    config.write_text("algorithm: ppo\n")
    with pytest.raises(ValueError, match="got 'ppo'"):
        parse_run(["--config", str(config)])
