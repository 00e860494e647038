"""Configuration from files and flags, and how every entry point ends when it is wrong."""

import os
from pathlib import Path

import pytest
from safetensors.torch import save_file
from typer import Typer
from typer.testing import CliRunner

import model_card.evaluate_preferences
import model_card.measure_cost
import model_card.studies.alignment.__main__
import model_card.studies.distillation.__main__
import model_card.studies.method.__main__
import model_card.studies.orders.__main__
import model_card.write
import tests.load.load_test
import training.align.__main__
import training.encode_latents
import training.label.__main__
import training.label.export
import training.label.quality
import training.label_pairs
import training.preference_data.overlap
import training.train_reward
import training.world.models.build
import training.world.models.pixel_reward
from modeling_dina.options import EMBEDDED_MODEL
from training.align.arguments import AlignArguments
from training.align.run import load_run, parse_run
from training.arguments import load_config, parse
from training.reward.trainer import RewardTrainingArguments
from training.run_control import checkpoint_to_resume
from training.train_reward import DataArguments, ModelArguments

REQUIRED = {"base_model": "base", "train_data": ["pairs"]}
SMALL = [f"--base_model={EMBEDDED_MODEL}", "--reward_config={num_layers: 1, visual_layers: [1], text_layers: [1]}"]
PRFL = "training/configs/align/small_world_prfl.yaml"
MODULES = {
    module.__name__: module
    for module in (
        *(training.align.__main__, training.encode_latents, tests.load.load_test, training.preference_data.overlap),
        *(
            training.train_reward,
            training.label_pairs,
            training.label.__main__,
            training.label.export,
            training.label.quality,
            training.world.models.build,
            training.world.models.pixel_reward,
        ),
        *(model_card.studies.alignment.__main__, model_card.evaluate_preferences, model_card.measure_cost),
        *(model_card.studies.method.__main__, model_card.studies.orders.__main__, model_card.write),
        model_card.studies.distillation.__main__,
    )
}


@pytest.fixture
def write(tmp_path):
    def write(text):
        (tmp_path / "config.yaml").write_text(text)
        return tmp_path / "config.yaml"

    return write


def test_files_and_overrides(write, tmp_path):
    path = write("base_model: here\ntrain_data: [a, b]\nlora_alpha: 1e1\nlora_rank: 2\n")
    model, data = load_config(
        path, ModelArguments, DataArguments, train_data=[tmp_path], lora_rank=None, loss="bradley_terry"
    )
    assert (model.base_model, model.lora_alpha, model.loss) == ("here", 10.0, "bradley_terry")
    assert model.lora_rank == ModelArguments("x").lora_rank
    assert data.train_data == [str(tmp_path)]
    (model, _) = parse(ModelArguments, DataArguments, argv=["--config", str(path), "--base_model=-x", "--lora_rank=3"])
    assert (model.base_model, model.lora_rank) == ("-x", 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n", "config: expected a mapping of fields to values, got .*config.yaml, a list"),
        ("a: [\n", "config: expected a mapping in YAML"),
        ("lora_rnk: 3\n", "lora_rnk: expected a field of ModelArguments, DataArguments"),
        ("lora_ran: 3\n", "lora_ran: expected a field"),  # no abbreviations
        ("lora_rank: many\n", "lora_rank: expected int, got 'many'"),
        ("loss: good\n", "loss: expected one of .*fidelity.*, got 'good'"),
        ("learn_variance: perhaps\n", "learn_variance: .*got perhaps"),
    ],
)
def test_bad_files_are_named(write, text, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        load_config(write(text), ModelArguments, DataArguments, **({} if text[0] in "-a" else REQUIRED))


def test_missing_fields_are_named(write):
    with pytest.raises(ValueError, match=r"^base_model, train_data: expected a value, got none"):
        load_config(write("lora_rank: 3\n"), ModelArguments, DataArguments)


# ---- reward_config ----


@pytest.mark.parametrize(
    "text",
    [
        '{"num_queries": 3, "variance_floor": 1e-4}',
        "{num_queries: 3, variance_floor: 1e-4}",
        "num_queries: 3\nvariance_floor: 1.0e-4",
        '{\n\t"num_queries": 3,\n\t"variance_floor": 0.0001\n}',
    ],
)
def test_reward_config_is_json_or_yaml(text, write):
    expected = {"num_queries": 3, "variance_floor": 1e-4}
    flags = ["--base_model", "base", "--train_data", "pairs", "--reward_config", text]
    assert parse(ModelArguments, DataArguments, argv=flags)[0].reward_fields == expected
    assert load_config(write("{}"), ModelArguments, base_model="b", reward_config=text)[0].reward_fields == expected


def test_reward_config_may_be_a_mapping_in_the_file(write):
    path = write("reward_config:\n  num_queries: 3\n  variance_floor: 1e-4\n  conditioning_source: null\n")
    (model,) = load_config(path, ModelArguments, base_model="base")
    assert model.reward_fields == {"num_queries": 3, "variance_floor": 1e-4, "conditioning_source": None}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", r"reward_config: expected a mapping .*got '\[1\]'"),
        ("{a: ", "reward_config: expected a mapping in YAML or JSON, got '{a: '"),
        ("{num_querys: 3}", "reward_config: expected fields of DinaConfig, got num_querys"),
        ("{num_queries: many}", "reward_config: .*num_queries.* expected int, got str .*many"),
        ("{variance_floor: [1]}", "reward_config: .*variance_floor.*list"),
    ],
)
def test_bad_reward_configs_are_named(text, message):
    with pytest.raises(ValueError, match=message):
        ModelArguments("base", reward_config=text)


# ---- resume_from_checkpoint, dry_run ----


@pytest.mark.parametrize(("value", "begins"), [("True", False), ("true", False), ("last", False), ("False", True)])
@pytest.mark.parametrize("from_file", [True, False])
def test_both_trainers_resume_as_transformers_does(write, tmp_path, value, begins, from_file):
    """The last checkpoint, or a beginning, which the checkpoint that is there forbids."""
    checkpoint = tmp_path / "run" / "checkpoint-3"
    checkpoint.mkdir(parents=True)
    save_file({}, checkpoint / "state.pt")
    path = write(f"output_dir: {checkpoint.parent}\n" + f"resume_from_checkpoint: {value}\n" * from_file)
    flags = ["--config", str(path), *([] if from_file else ["--resume_from_checkpoint", value])]
    align = [
        *("--algorithm", "refl", "--policy", "p", "--reward_model", "r"),
        "--prompts=world",
        "--eval_prompts=world",
    ]
    for args in (
        parse(RewardTrainingArguments, argv=[*flags, "--report_to", "none"])[0],
        parse_run([*flags, *align])[0],
    ):
        if begins:
            with pytest.raises(ValueError, match="output_dir: expected a folder without checkpoints"):
                checkpoint_to_resume(checkpoint.parent, args.resume_from_checkpoint, "state.pt")
        else:
            assert checkpoint_to_resume(checkpoint.parent, args.resume_from_checkpoint, "state.pt") == checkpoint


@pytest.mark.parametrize("flags", [["--dry_run"], ["--dry_run", "true"], ["--dry_run", "--seed", "3"]])
def test_both_trainers_take_a_dry_run(flags):
    (args,) = parse(RewardTrainingArguments, argv=[*flags, "--report_to", "none"])
    align, _ = parse_run(["--config", PRFL, *flags])
    assert args.dry_run is align.dry_run is True


def test_runs_are_read_without_flags():
    arguments, own = load_run(Path(PRFL), updates=7, num_steps=11, watched=["dina", "utility"], learning_rate=None)
    assert type(arguments) is AlignArguments
    assert (arguments.updates, own.num_steps, arguments.watched) == (7, 11, ["dina", "utility"])
    assert arguments.learning_rate == AlignArguments.learning_rate


# ---- every entry point ----


def ended(capsys, run):
    """What a program that ends on bad input says: one line on stderr."""
    with pytest.raises(SystemExit) as end:
        run()
    assert end.value.code == 2
    said = capsys.readouterr().err
    lines = [line for line in said.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1, said
    assert "Traceback" not in said
    return lines[0].removeprefix("Error: ")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "base_model, train_data: expected a value, got none"),
        (["--config", "nowhere.yaml"], "config: expected a YAML file, got nowhere.yaml"),
        (["--reward_config", "[1]", "--base_model=b", "--train_data=d"], "reward_config: expected a mapping"),
        (["--base_model=/nowhere", "--train_data=d"], "base_model: expected a folder or a Hub id, got /nowhere"),
        (["--base_model=nowhere", "--train_data=d"], "base_model: cannot load nowhere"),
        ([*SMALL, "--train_data=d"], "train_data: cannot load d: folder: expected shards"),
        ([*SMALL, "--train_data=world:many"], "train_data: expected world:GROUPS:SEED, got 'world:many'"),
        (
            [f"--base_model={EMBEDDED_MODEL}", "--train_data=d", "--reward_config", "{num_layers: 99}"],
            "reward_config: num_layers: expected 0 to",
        ),
        (
            [f"--base_model={EMBEDDED_MODEL}", "--train_data=d", "--reward_config", "{num_layers: 99}", "--dry_run"],
            "reward_config: num_layers: expected 0 to",
        ),
        (["--base_model=b", "--train_data=d", "--output_dir", "README.md/run"], "output_dir: expected a folder"),
        (["--base_model=b", "--train_data=d", "--lora_rank", "x"], "lora_rank: expected int, got 'x'"),
    ],
)
def test_bad_training(capsys, tmp_path, flags, message):
    output = [] if "--output_dir" in flags else ["--output_dir", str(tmp_path / "run")]
    argv = [*flags, *output, "--report_to", "none", "--use_cpu"]
    assert ended(capsys, lambda: training.train_reward.main(argv)).startswith(message)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "algorithm: expected one of"),
        (["--config", "nowhere.yaml"], "config: expected a YAML file, got nowhere.yaml"),
        (["--config", PRFL, "--updates", "many"], "updates: expected int, got 'many'"),
        (["--config", PRFL, "--dtype", "int8"], "dtype: expected one of"),
        (["--config", PRFL, "--update", "3"], "update: expected a field of AlignArguments"),
        (["--config", PRFL, "--policy", "/nowhere"], "policy: expected a folder or a Hub id, got /nowhere"),
        (["--config", PRFL, "--reward_model", "nowhere"], "reward_model: cannot load nowhere"),
        (["--config", PRFL, "--prompts", "nowhere.txt"], "prompts: expected 'world' or a text file"),
        (["--config", PRFL, "--eval_prompts", "nowhere.txt"], "eval_prompts: expected 'world' or a text file"),
        (["--config", PRFL, "--output_dir", "README.md"], "output_dir: expected a folder"),
        (["--config", PRFL, "--dry_run", "--policy", "nowhere"], "policy: expected a folder or"),
    ],
)
def test_bad_alignment(capsys, tmp_path, flags, message):
    output = [] if "--output_dir" in flags else ["--output_dir", str(tmp_path / "run")]
    argv = [*flags, *output, "--report_to", "none"]
    assert ended(capsys, lambda: training.align.__main__.main(argv)).startswith(message)


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        ("training.encode_latents", "nowhere --out {} --model x", "source: cannot load nowhere"),
        ("training.encode_latents", "nowhere --out {}", "model: expected"),
        ("training.encode_latents", "nowhere --out README.md/a --model x", "out: expected a folder"),
        ("training.label_pairs", "nowhere --out {} --scorer a:b", "scorer: expected module:function"),
        ("training.label_pairs", "nowhere.csv --out {} --scorer json:dumps", "source: cannot load nowhere.csv"),
        ("training.label.__main__", "nowhere.csv --out {}", "source: cannot load nowhere.csv"),
        ("training.label.__main__", "--out {}", "source, generator: expected one of them"),
        ("training.label.__main__", "a.csv --out {} --annotator a/b", "annotator: expected letters"),
        ("training.label.__main__", "a.csv --out {} --annotator a --annotator a", "annotator: expected different"),
        ("training.label.__main__", "a.csv --out {} --repo-id votes", "repo_id: expected owner/name, got 'votes'"),
        ("training.label.__main__", "a.csv --out {} --order entropy", "model: expected a reward model"),
        ("training.label.__main__", "a.csv --out {} --model m", "model: expected none with the order random"),
        ("training.label.export", "{}", "out: expected a folder with votes"),
        ("training.label.quality", "{}", "out: expected a folder with votes"),
        ("training.preference_data.overlap", "nowhere.json b --format hpdv3", "train: cannot load nowhere.json"),
        ("training.world.models.build", "--out README.md", "out: expected a folder"),
        ("training.world.models.pixel_reward", "--out README.md", "out: expected a folder"),
        (
            "training.world.models.pixel_reward",
            "--out {} --pipeline /nowhere",
            "pipeline: expected a folder or a Hub id",
        ),
        ("training.world.models.pixel_reward", "--out {} --pipeline nowhere", "pipeline: cannot load nowhere"),
        ("tests.load.load_test", "--url http://127.0.0.1:1", "url: expected that of a server that runs"),
        ("tests.load.load_test", "--out README.md", "out: expected a file ending in .json"),
        ("model_card.studies.alignment.__main__", "--out README.md", "out: expected a folder"),
        ("model_card.studies.alignment.__main__", "--out {} --pipeline nowhere", "pipeline: expected a folder"),
        ("model_card.studies.method.__main__", "--out README.md", "out: expected a folder"),
        ("model_card.studies.method.__main__", "--out {} --pipeline nowhere", "pipeline: expected a folder"),
        ("model_card.studies.orders.__main__", "--out README.md", "out: expected a folder"),
        ("model_card.studies.orders.__main__", "--out {} --pipeline nowhere", "pipeline: expected a folder"),
        ("model_card.measure_cost", "--resolution 17", "resolution: expected a multiple of 16"),
        ("model_card.measure_cost", "--dtype int8", "dtype: expected float32"),
        ("model_card.evaluate_preferences", "--benchmark hpdv3 --out {}.json --data nowhere", "data: "),
        ("model_card.evaluate_preferences", "--benchmark world --out {}.txt", "out: expected a file ending in"),
        ("model_card.write", "--model nowhere --results a --out {}.md", "model: expected a folder with config.json"),
    ],
)
def test_bad_commands(tmp_path, module, options, message):
    app = Typer(pretty_exceptions_enable=False)
    app.command()(getattr(MODULES[module], "build" if module.endswith("build") else "main"))
    ran = CliRunner().invoke(app, options.format(tmp_path / "new").split())
    assert ran.exit_code == 2, ran.output
    assert isinstance(ran.exception, SystemExit)
    lines = [line for line in ran.stderr.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1, ran.stderr
    assert lines[0].removeprefix("Error: ").startswith(message)
    assert os.listdir(tmp_path) == []
