"""Checkpoints in the published layout, given directly to everything that takes a model."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import SD3Transformer2DModel
from PIL import Image
from typer.testing import CliRunner

import modeling_dina.serving.server
from modeling_dina import DinaRewardModel, DinaScorer
from modeling_dina.adapters.flow_grpo import dina_score
from modeling_dina.adapters.verl_omni import load_model
from modeling_dina.backbone_dina import is_adapter_key
from modeling_dina.cli.app import app
from modeling_dina.hub.push import push_folder
from modeling_dina.identity import scoring_settings
from modeling_dina.options import EMBEDDED_MODEL
from tests.official_layout import LORA, write_official

PROMPT = "a cat"
FIELDS = {"num_layers": 3, "visual_layers": [1, 3], "text_layers": [2], "num_queries": 2, "num_attention_heads": 4}


@pytest.fixture(scope="module")
def original(folder):
    """The model that is published."""
    torch.manual_seed(4)
    model = DinaRewardModel.from_backbone(folder, **FIELDS, lora=LORA).eval()
    for name, parameter in model.named_parameters():
        if is_adapter_key(name) or not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(scope="module")
def published(original, tmp_path_factory):
    """Its checkpoint, which names a diffusion model on the Hub."""
    return write_official(tmp_path_factory.mktemp("published") / "official", original, backbone_model_id="owner/base")


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "picture.png"
    Image.linear_gradient("L").convert("RGB").resize((64, 64)).save(path)
    return path


@pytest.fixture(scope="module")
def expected(original, picture):
    return original.scorer().score(prompts=[PROMPT], images=[picture]).scores.item()


def score_of(scorer, picture):
    return scorer.score(prompts=[PROMPT], images=[picture]).scores.item()


@pytest.fixture
def dina():
    """Runs a command that succeeds, and returns what it prints."""

    def dina(*arguments):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == 0, result.output
        return result.stdout

    return dina


@pytest.fixture
def refusal():
    """Runs a command that fails, and returns its one line of error."""

    def refusal(*arguments):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == 2, result.output
        lines = [line for line in result.stderr.splitlines() if line]
        assert len(lines) == 1, result.stderr
        return lines[0]

    return refusal


# Commands: each takes the options that choose the model, and returns its score of the picture.


def run_score(dina, options, picture, _):
    return json.loads(dina("score", picture, "--prompt", PROMPT, *options, "--json"))["scores"][0]


def run_compare(dina, options, picture, _):
    return json.loads(dina("compare", picture, picture, "--prompt", PROMPT, *options, "--json"))["scores"][1]


def run_rank(dina, options, picture, _):
    return json.loads(dina("rank", picture, picture, "--prompt", PROMPT, *options, "--json"))["scores"][0]


def run_rank_manifest(dina, options, picture, tmp_path):
    (tmp_path / "images.csv").write_text(f"prompt,image\n{PROMPT},{picture}\n")
    dina("rank", "--manifest", tmp_path / "images.csv", "--out", tmp_path / "out.jsonl", *options)
    return json.loads((tmp_path / "out.jsonl").read_text())["score"]


def run_convert(dina, options, picture, tmp_path):
    dina("convert", options[1], tmp_path / "out", *options[2:])
    return run_score(dina, ("--model", tmp_path / "out"), picture, tmp_path)


COMMANDS = {
    "score": run_score,
    "compare": run_compare,
    "rank": run_rank,
    "rank --manifest": run_rank_manifest,
    "convert": run_convert,
}


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_take_a_published_checkpoint(dina, published, folder, picture, expected, tmp_path, name):
    options = ("--model", published, "--backbone", folder)
    assert COMMANDS[name](dina, options, picture, tmp_path) == pytest.approx(expected, abs=1e-5)


def test_info_and_evaluate(dina, published, folder, tmp_path):
    options = ("--model", published, "--backbone", folder)
    facts = json.loads(dina("info", *options, "--json"))
    assert facts["conditioning"] == [str(folder), None]
    assert facts["config"]["visual_layers"] == FIELDS["visual_layers"]
    world = ("--benchmark", "model_card.world_benchmark:WORLD", "--limit", 4)
    dina("evaluate", *world, *options, "--out", tmp_path / "results.json")
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["failures"] == 0
    assert f" --backbone {folder} " in results["command"]
    assert set(results["settings"]["base"]) == {"transformer"}


@pytest.mark.slow
def test_calibrate(dina, picture, tmp_path):
    """It writes a copy in the layout of this package, whose scores are in another unit."""
    embedded = DinaRewardModel.from_pretrained(EMBEDDED_MODEL)
    official = write_official(tmp_path / "official", embedded, full_model=True, backbone_model_id=EMBEDDED_MODEL)
    arguments = ("--benchmark", "model_card.world_benchmark:WORLD", "--limit", 10, "--out", tmp_path / "calibrated")
    fitted = json.loads(dina("calibrate", "--model", official, *arguments, "--json"))
    before, after = (
        run_score(dina, ("--model", model), picture, tmp_path) for model in (official, tmp_path / "calibrated")
    )
    assert after * fitted["score_std"] + fitted["score_mean"] == pytest.approx(before, abs=1e-5)


def test_serve(dina, published, folder, picture, expected, monkeypatch):
    served = []
    monkeypatch.setattr(modeling_dina.serving.server, "serve_engines", lambda engines, **_: served.extend(engines))
    dina("serve", "--model", published, "--backbone", folder, "--device", "cpu")
    assert score_of(served[0].scorer, picture) == pytest.approx(expected, abs=1e-5)


def test_adapters(published, folder, picture, expected):
    with Image.open(picture) as image:
        pixels = torch.tensor(list(image.convert("RGB").getdata())).reshape(1, 64, 64, 3).to(torch.uint8).numpy()
    scores, _ = dina_score(str(published), "cpu", backbone=str(folder))(pixels, [PROMPT], {})
    assert scores == pytest.approx([expected], abs=1e-5)
    assert score_of(load_model(str(published), "cpu", str(folder)).scorer(), picture) == pytest.approx(
        expected, abs=1e-5
    )


# The Hub


@pytest.fixture
def hub(connected_hub, folder, published, tmp_path):
    """A Hub with the base and the checkpoint, beside which there are files that no one needs."""
    push_folder(folder, "owner/base", private=True)
    copy = shutil.copytree(published, tmp_path / "copy")
    for name in ("README.md", "checkpoint/optimizer.pt", "checkpoint/backbone_lora/README.md", "samples/1.png"):
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_bytes(b"0")
    push_folder(copy, "owner/reward", private=True, tag="v1")
    return connected_hub


def cached(tmp_path, repository):
    root = tmp_path / "hub-cache" / f"models--owner--{repository}" / "snapshots"
    return {str(path.relative_to(root).as_posix().split("/", 1)[1]) for path in root.rglob("*") if path.is_file()}


NEEDED = {
    *("config.json", "checkpoint/rm_head.pt"),
    *("checkpoint/backbone_lora/adapter_config.json", "checkpoint/backbone_lora/adapter_model.safetensors"),
}


def test_a_published_checkpoint_on_the_hub(hub, picture, expected, tmp_path):
    scorer = DinaScorer.from_pretrained("owner/reward", revision="v1")
    assert score_of(scorer, picture) == pytest.approx(expected, abs=1e-5)
    assert cached(tmp_path, "reward") == NEEDED
    commits = [hub.repos[f"owner/{name}"].resolve("main") for name in ("reward", "base")]
    settings = scoring_settings(scorer)
    assert [settings["revision"], settings["base"]] == commits
    assert scorer.model.config.base_revision == commits[1]
    offline = DinaRewardModel.from_pretrained("owner/reward", revision="v1", local_files_only=True)
    assert score_of(offline.scorer(), picture) == pytest.approx(expected, abs=1e-5)


def test_convert_and_push_with_the_hub(hub, dina, published, folder, picture, expected, tmp_path):
    dina("convert", "owner/reward", tmp_path / "out", "--revision", "v1", "--backbone", folder)
    assert score_of(DinaScorer.from_pretrained(tmp_path / "out"), picture) == pytest.approx(expected, abs=1e-5)
    dina("push", published, "owner/again")
    assert set(hub.repos["owner/again"].files()) > NEEDED
    assert score_of(DinaScorer.from_pretrained("owner/again"), picture) == pytest.approx(expected, abs=1e-5)


def test_a_subfolder_of_a_repository(connected_hub, published, folder, picture, expected, tmp_path):
    shutil.copytree(published, tmp_path / "copy" / "reward")
    (tmp_path / "copy" / "other.safetensors").write_bytes(b"0")
    push_folder(tmp_path / "copy", "owner/several", private=True)
    scorer = DinaScorer.from_pretrained("owner/several", subfolder="reward", backbone=folder)
    assert score_of(scorer, picture) == pytest.approx(expected, abs=1e-5)
    assert cached(tmp_path, "several") == {f"reward/{name}" for name in NEEDED}


def test_only_needed_shards_are_downloaded(connected_hub, folder, tmp_path):
    """Shards are downloaded at the commit from which the index was read."""
    whole = SD3Transformer2DModel.from_pretrained(folder, subfolder="transformer")
    place = shutil.copytree(folder, tmp_path / "base")
    shutil.rmtree(place / "transformer")
    whole.save_pretrained(place / "transformer", max_shard_size="40KB")
    index = json.loads((place / "transformer" / "diffusion_pytorch_model.safetensors.index.json").read_text())
    push_folder(place, "owner/sharded", private=True)
    model = DinaRewardModel.from_backbone(
        "owner/sharded", **FIELDS | {"num_layers": 1, "visual_layers": [1], "text_layers": [1]}
    )
    needed = {index["weight_map"][name] for name in model.backbone.state_dict()}
    found = {name.removeprefix("transformer/") for name in cached(tmp_path, "sharded") if name.endswith("tensors")}
    assert found == needed
    assert found < set(index["weight_map"].values())


# The diffusion model


def test_a_base_that_is_missing_or_gated_is_named(refusal, connected_hub, published, folder, picture):
    options = ("score", picture, "--prompt", PROMPT, "--model", published)
    assert "backbone: cannot read owner/base, the diffusion model of the checkpoint" in refusal(*options)
    push_folder(folder, "owner/base", private=True)
    connected_hub.fail("download", status=403, code="GatedRepo", times=float("inf"))
    message = refusal(*options)
    assert "backbone: cannot read owner/base" in message
    assert "gated" in message
    assert "backbone: expected a folder or a Hub id, got ./none" in refusal(*options, "--backbone", "./none")


def test_another_place_of_the_base_of_an_adapter(original, folder, picture, expected, tmp_path):
    place = shutil.copytree(folder, tmp_path / "place")
    original.save_pretrained(tmp_path / "adapter", adapter_only=True)
    config = tmp_path / "adapter" / "config.json"
    moved = {**json.loads(config.read_text()), "base_model": "/gone", "conditioning_source": "/gone"}
    config.write_text(json.dumps(moved))
    with pytest.raises(OSError, match="backbone: cannot read /gone, the diffusion model of the checkpoint"):
        DinaRewardModel.from_pretrained(tmp_path / "adapter")
    scorer = DinaScorer.from_pretrained(tmp_path / "adapter", backbone=place)
    assert score_of(scorer, picture) == pytest.approx(expected, abs=1e-5)
    assert scorer.model.config.base_model == scorer.model.conditioning_location().source == str(place)
    assert set(scoring_settings(scorer)["base"]) == {"transformer"}


def test_a_model_that_has_no_base_takes_no_other(refusal, folder, picture):
    message = refusal("score", picture, "--prompt", PROMPT, "--model", folder, "--backbone", folder)
    assert "backbone: expected a checkpoint that takes weights or its pipeline from its base_model" in message


# Bad input


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"architectures": ["UNet"]}', "model_type: expected 'dina', got None"),
        ('{"model": "unet"}', "model_type: expected 'dina', got None"),
        ('{"model": {}}', "expected 'reward_head' in its 'model' section, got none"),
        ('{"model": {', "config.json"),
        ("[]", "model: cannot load"),
    ],
)
def test_another_layout_is_refused(refusal, published, folder, picture, tmp_path, content, message):
    copy = shutil.copytree(published, tmp_path / "copy")
    (copy / "config.json").write_text(content)
    options = ("--model", copy, "--backbone", folder)
    assert message in refusal("score", picture, "--prompt", PROMPT, *options)


@pytest.mark.parametrize(
    "name",
    [
        "checkpoint/rm_head.pt",
        "checkpoint/backbone_lora/adapter_config.json",
        "checkpoint/backbone_lora/adapter_model.safetensors",
    ],
)
def test_missing_and_spoilt_files_are_named(refusal, published, folder, picture, tmp_path, name):
    copy = shutil.copytree(published, tmp_path / "copy")
    options = ("score", picture, "--prompt", PROMPT, "--model", copy, "--backbone", folder)
    (copy / name).write_bytes(b"no")
    assert Path(name).name in refusal(*options)
    (copy / name).unlink()
    assert str(copy / name) in refusal(*options)


class Payload:
    def __reduce__(self):
        return (Path.touch, (Path("/tmp/dina-pickle-ran"),))


def test_pickled_code_does_not_run(refusal, published, folder, picture, tmp_path):
    copy = shutil.copytree(published, tmp_path / "copy")
    torch.save({"query_tokens": Payload()}, copy / "checkpoint" / "rm_head.pt")
    options = ("--model", copy, "--backbone", folder)
    assert "rm_head.pt: expected a state dict of tensors" in refusal("score", picture, "--prompt", PROMPT, *options)
    assert not Path("/tmp/dina-pickle-ran").exists()


def test_arguments_without_a_meaning_in_this_layout_are_refused(published, folder):
    with pytest.raises(ValueError, match="device_map: expected no such argument for a checkpoint in the published"):
        DinaRewardModel.from_pretrained(published, backbone=folder, device_map="cpu")


def test_a_calibration_needs_a_copy(refusal, published, folder):
    arguments = ("--model", published, "--backbone", folder, "--benchmark", "model_card.world_benchmark:WORLD")
    assert "out: expected a folder for a copy" in refusal("calibrate", *arguments)


def test_other_weights_are_another_model(published, folder, original, tmp_path):
    copy = shutil.copytree(published, tmp_path / "copy")
    before = scoring_settings(DinaScorer.from_pretrained(copy, backbone=folder))
    head = {name: value + 1 for name, value in original.head.state_dict().items()}
    torch.save(head, copy / "checkpoint" / "rm_head.pt")
    after = scoring_settings(DinaScorer.from_pretrained(copy, backbone=folder))
    assert {name for name in before if before[name] != after[name]} == {"revision"}
