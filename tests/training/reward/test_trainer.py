"""Runs of the reward trainer: what one is worth after kills, over two processes, and when something goes wrong."""

import hashlib
import json
import re
import shutil
import signal
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from modeling_dina import DinaRewardModel
from modeling_dina.data.latents import pack, unpack
from training.run_control import NonFiniteError

EMBEDDED = Path(__file__).parents[3] / "modeling_dina" / "tiny"
WEIGHTS = ("model.safetensors", "trainable.safetensors", "ema.safetensors", "optimizer.pt")


def digests(checkpoint):
    return {name: hashlib.sha256((checkpoint / name).read_bytes()).hexdigest() for name in WEIGHTS}


def history(output_dir, step=8):
    return json.loads((output_dir / f"checkpoint-{step}" / "trainer_state.json").read_text())["log_history"]


def wait_for(condition, process, seconds=120):
    """True as soon as the condition holds, False if the process ends before."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        if process.poll() is not None:
            return False
        time.sleep(0.002)
    raise TimeoutError


def test_a_run(train, output_dir, pairs_folder):
    train("--validation_data", pairs_folder, "--eval_steps", 4, "--save_total_limit", 2)
    assert sorted(path.name for path in output_dir.iterdir()) == ["checkpoint-6", "checkpoint-8", "model"]
    steps = [logged for logged in history(output_dir) if "loss" in logged]
    assert [logged["step"] for logged in steps] == list(range(1, 9))
    # Linear warm-up over four updates, then linear decay to the eighth.
    rates = [0, 0.25, 0.5, 0.75, 1, 0.75, 0.5, 0.25]
    assert [logged["learning_rate"] for logged in steps] == pytest.approx([1e-3 * rate for rate in rates])
    measured = [logged for logged in history(output_dir) if "eval_agreement_ensemble" in logged]
    assert [logged["step"] for logged in measured] == [4, 8]
    assert all(0 <= logged[f"eval_{name}_0.4"] <= 1 for logged in measured for name in ("agreement", "brier"))

    # The finished model, and that of the last checkpoint, have the averaged weights.
    averaged, trained = (
        load_file(output_dir / "checkpoint-8" / f"{name}.safetensors") for name in ("ema", "trainable")
    )
    for folder in (output_dir / "model", output_dir / "checkpoint-8"):
        model = DinaRewardModel.from_pretrained(folder)
        for name, weight in model.state_dict().items():
            if f"model.{name}" in averaged:
                torch.testing.assert_close(weight, averaged[f"model.{name}"], rtol=0, atol=0)
    assert not torch.equal(averaged["model.head.head.weight"], trained["model.head.head.weight"])
    for name in ("model", "checkpoint-8"):
        card = (output_dir / name / "README.md").read_text()
        assert "noise levels" in card
        assert f'from_pretrained("{name}", ' in card


@pytest.mark.slow
def test_accumulated_batches_are_one(train, output_dir):
    """An update of all pairs is the same in one batch and in four, and ends the epoch."""
    parts = output_dir.with_name("parts")
    whole_epoch = ("--ema_decay", 0, "--max_steps", 2, "--warmup_steps", 0, "--learning_rate", 1e-4)
    train(*whole_epoch, "--per_device_train_batch_size", 96)
    train(*whole_epoch, "--output_dir", parts, "--per_device_train_batch_size", 24, "--gradient_accumulation_steps", 4)
    for row, other in zip(history(output_dir, 2), history(parts, 2), strict=True):
        assert other["loss"] == pytest.approx(row["loss"], abs=1e-5)
        assert other["grad_norm"] == pytest.approx(row["grad_norm"], rel=1e-3)
        assert other["epoch"] == row["epoch"] == row["step"]


@pytest.mark.slow
def test_kills_lose_nothing(launch, output_dir):
    """Bit for bit the weights of an uninterrupted run, after kills between and in the midst of checkpoints."""
    whole = output_dir.with_name("whole")
    uninterrupted = launch("--output_dir", whole)
    assert "Traceback" not in uninterrupted.communicate()[0]

    partial = output_dir / ".partial"
    moments = [
        lambda: (partial / "checkpoint-2").exists(),
        lambda: (partial / "checkpoint-4" / "optimizer.pt").exists(),
        lambda: (output_dir / "checkpoint-4").exists(),
        lambda: (output_dir / "checkpoint-6").exists(),
    ]
    killed = 0
    for moment in moments:
        process = launch("--resume_from_checkpoint", "last")
        if wait_for(moment, process):
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.communicate()
    assert killed >= 3
    last = launch("--resume_from_checkpoint", "last")
    assert "Traceback" not in last.communicate()[0]
    assert digests(output_dir / "checkpoint-8") == digests(whole / "checkpoint-8")
    final = "model/model.safetensors"
    assert (output_dir / final).read_bytes() == (whole / final).read_bytes()
    assert [row.get("loss") for row in history(output_dir)[:8]] == [row.get("loss") for row in history(whole)[:8]]


@pytest.mark.slow
def test_two_processes_are_one(train, launch_two, output_dir):
    """The loss curve of one process, and again when two go on from a checkpoint of two."""
    one = output_dir.with_name("one")
    train("--output_dir", one)
    for later in (None, (6, 8)):
        for step in later or ():
            shutil.rmtree(output_dir / f"checkpoint-{step}")
        for process in launch_two("--per_device_train_batch_size", 8, "--resume_from_checkpoint", "last"):
            printed = process.communicate(timeout=240)[0]
            assert process.returncode == 0, printed
        curves = [[row["loss"] for row in history(folder)] for folder in (one, output_dir)]
        assert curves[1] == pytest.approx(curves[0], abs=1e-4)
    assert json.loads((output_dir / "checkpoint-8" / "sampler.json").read_text())["num_replicas"] == 2


@pytest.mark.slow
def test_sigterm_saves(launch, output_dir):
    process = launch("--save_steps", 1000, "--max_steps", 1000)
    assert "'loss'" in list(lines_until(process, "'loss'"))[-1]
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 143
    (checkpoint,) = output_dir.glob("checkpoint-*")
    assert (checkpoint / "optimizer.pt").exists()
    assert not (output_dir / "model").exists()


def lines_until(process, text):
    """What a process prints up to the first line with `text`."""
    for line in process.stdout:
        yield line
        if text in line:
            return


def spoil(folder, target, column, value):
    """A copy of a folder of pairs in which the first pair has another value."""
    (target / "data").mkdir(parents=True)
    for path in (folder / "data").glob("*.parquet"):
        table = pq.read_table(path)
        values = table[column].to_pylist()
        values[0] = value(values[0])
        spoilt = pa.array(values, table.schema.field(column).type)
        pq.write_table(
            table.set_column(table.schema.get_field_index(column), column, spoilt), target / "data" / path.name
        )
    return target


def test_infinite_loss_stops(train, output_dir, pairs_folder, tmp_path):
    spoilt = spoil(pairs_folder, tmp_path / "spoilt", "weight", lambda _: float("inf"))
    with pytest.raises(NonFiniteError, match="loss: expected a finite number, got nan") as stopped:
        train("--train_data", spoilt, "--save_steps", 1)
    update, rows, checkpoint = re.search(
        r"in update (\d+) of process 0, for the rows \[([\d, ]+)\] of .* checkpoint is (.+)$", str(stopped.value)
    ).groups()
    assert "0" in rows.split(", ")
    assert checkpoint == (str(output_dir / f"checkpoint-{int(update) - 1}") if update != "1" else "None")


def test_infinite_latents_stop(train, output_dir, pairs_folder, tmp_path):
    def infinite(packed):
        return pack(unpack(packed) * torch.inf)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(NonFiniteError, match="latents: expected finite numbers"):
        train("--train_data", spoil(pairs_folder, tmp_path / "spoilt", "latents_a", infinite))
    assert signal.getsignal(signal.SIGTERM) is before


def test_infinite_gradients_stop(train, output_dir):
    with pytest.raises(NonFiniteError, match=r"(gradient|loss): expected .*last good checkpoint is .*checkpoint-\d"):
        train("--learning_rate", 1e25, "--warmup_steps", 1, "--save_steps", 1)


@pytest.mark.parametrize("backbone", ["lora", "frozen"])
@pytest.mark.slow
def test_the_backbone_may_stay(train, output_dir, backbone):
    """What is not trained keeps its weights; what is, is in float32 over a base in half precision."""
    train("--backbone", backbone, "--lora_rank", 2, "--max_steps", 3, "--warmup_steps", 0, "--bf16", "--save_steps", 3)
    trainable = load_file(output_dir / "checkpoint-3" / "trainable.safetensors")
    assert {weight.dtype for weight in trainable.values()} == {torch.float32}
    adapted = {name for name in trainable if ".lora_" in name}
    assert len(adapted) == (16 if backbone == "lora" else 0)  # two matrices for each of eight projections
    assert all(name.startswith("model.head.") for name in trainable.keys() - adapted)

    final = DinaRewardModel.from_pretrained(output_dir / "model")
    assert final.config.lora is None
    base = DinaRewardModel.from_backbone(
        EMBEDDED, dtype=torch.bfloat16, num_layers=1, visual_layers=[1], text_layers=[1]
    )
    changed = {
        name
        for name, weight in final.backbone.named_parameters()
        if not torch.equal(weight, base.backbone.get_parameter(name).to(weight.dtype))
    }
    assert {name.rpartition(".")[0].rpartition(".")[0].rpartition(".")[2] for name in changed} <= {"attn", "to_out"}
    assert len(changed) == len(adapted) / 2
    # What a checkpoint holds for readers is the adapter alone, over the base that it names.
    if backbone == "lora":
        checkpoint = DinaRewardModel.from_pretrained(output_dir / "checkpoint-3")
        checkpoint.merge_adapter()
        inputs = torch.randn(2, 16, 8, 8), torch.randn(2, 28, base.config.transformer_config["joint_attention_dim"])
        pooled = torch.randn(2, base.config.transformer_config["pooled_projection_dim"])
        torch.testing.assert_close(
            checkpoint.float().reward(*inputs, pooled).scores,
            final.float().reward(*inputs, pooled).scores,
            atol=1e-2,
            rtol=1e-2,
        )


def test_an_adapter_without_a_named_base_is_saved_with_all_weights(train, output_dir):
    """As in the configuration of the small world, whose model is in the folder of its base."""
    sizes = "num_layers: 1, visual_layers: [1], text_layers: [1], head_width: 16, max_sequence_length: 14"
    train("--reward_config", f"{{{sizes}, base_model: null}}", "--backbone", "lora", "--max_steps", 1)
    checkpoint = DinaRewardModel.from_pretrained(output_dir / "checkpoint-1")
    assert not checkpoint.config.adapter_only
    assert DinaRewardModel.from_pretrained(output_dir / "model").config.lora is None


@pytest.mark.parametrize("backbone", ["lora", "frozen"])
@pytest.mark.slow
def test_training_goes_on_from_a_reward(train, output_dir, backbone):
    """Without a step of the optimizer, the result is the reward that the training began with."""
    flags = ["--reward_config", "{}", "--backbone", backbone, "--backbone_dtype", "float32"]
    train("--start_from", EMBEDDED, *flags, "--max_steps", 1, "--warmup_steps", 0, "--learning_rate", 0)
    start, final = (DinaRewardModel.from_pretrained(source) for source in (EMBEDDED, output_dir / "model"))
    assert final.config.base_model is None
    assert final.config.default_sigmas == start.config.default_sigmas
    inputs = torch.randn(2, 16, 8, 8), torch.randn(2, 28, start.config.transformer_config["joint_attention_dim"])
    pooled = torch.randn(2, start.config.transformer_config["pooled_projection_dim"])
    scores = [model.eval().reward(*inputs, pooled).scores for model in (start, final)]
    torch.testing.assert_close(*scores, atol=1e-4, rtol=1e-4)


def test_a_reward_of_other_sizes_is_no_start(train, output_dir, capsys):
    with pytest.raises(SystemExit):
        train("--start_from", EMBEDDED)
    assert "start_from: expected a reward model with the sizes" in capsys.readouterr().err


def test_an_unreadable_pair_is_no_bad_configuration(train, pairs_folder, tmp_path):
    """What goes wrong while training goes on keeps its traceback."""
    with pytest.raises(ValueError, match=r"latents: expected \.npy bytes"):
        train("--train_data", spoil(pairs_folder, tmp_path / "spoilt", "latents_a", lambda _: b"junk"))


@pytest.mark.slow
def test_refusals(train, output_dir, pairs_folder, capsys):
    train("--max_steps", 2)
    for flags, message in [
        ((), "output_dir: expected a folder without checkpoints"),
        (("--resume_from_checkpoint", "elsewhere"), "resume_from_checkpoint: expected"),
        (("--resume_from_checkpoint", "last", "--per_device_train_batch_size", 8), "state: expected max_area"),
        (("--train_data", "world:many"), "train_data: expected world:GROUPS:SEED"),
        (("--validation_data", output_dir), "validation_data: .* folder: expected shards of latents"),
        (("--resume_from_checkpoint", "last", "--backbone", "frozen"), "expected a checkpoint of the weights in"),
        (("--ema_decay", 1), "ema_decay: expected"),
        (("--eval_sigmas", 2), "eval_sigmas, eval_draws: expected"),
        (("--push_to_hub",), "hub_model_id: expected"),
        (("--reward_config", "[1]"), "reward_config: expected"),
        (("--sigma_parameters", 1), "sigma_parameters: expected"),
        (("--base_model", str(pairs_folder)), "config.json"),
    ]:
        resume = () if "resume_from_checkpoint" in str(flags) or flags == () else ("--output_dir", f"{output_dir}-new")
        with pytest.raises(SystemExit) as ended:
            train(*flags, *resume)
        assert ended.value.code == 2
        assert re.search(f"Error: .*{message}", capsys.readouterr().err)
