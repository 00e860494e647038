"""Training of a reward on every family, from pictures to the finished model, on small random weights."""

import json

import datasets
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from modeling_dina import DinaRewardModel
from modeling_dina.backbone_dina import BACKBONES
from modeling_dina.pipelines_dina import EncodedPrompts
from tests.families import FAMILIES, MAX_SEQUENCE_LENGTH, one_sample, save_tiny_folder, tiny_inputs, tiny_reward
from training.encode_latents import app
from training.preference_data.latents import read_latents
from training.reward.evaluation import sum_agreement
from training.reward.objective import PreferenceObjective
from training.train_reward import main


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))


def encode_pairs(model, folder):
    """Two pairs of pictures with texts of unlike length, as latents."""
    colours = ["teal", "salmon", "navy", "olive"]
    pictures = [Image.new("RGB", (64, 64), colour) for colour in colours]
    rows = {"prompt": ["abc", "a longer text"], "target": [1.0, 0.25], "weight": [1.0, 2.0], "source": ["test"] * 2}
    rows |= {"image_a": pictures[:2], "image_b": pictures[2:]}
    datasets.Dataset.from_dict(rows).save_to_disk(folder / "pairs")
    arguments = [folder / "pairs", "--out", folder / "latents", "--model", model, "--num-workers", 0]
    result = CliRunner().invoke(app, [str(each) for each in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return folder / "latents"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.slow
def test_two_steps(family, tmp_path, capsys):
    model = tmp_path / "model"
    save_tiny_folder(family, model)
    latents = encode_pairs(model, tmp_path)
    assert read_latents(latents)[0]["latents_a"].shape == (4, 8, 8)
    flags = {
        "base_model": model,
        "reward_config": json.dumps({"max_sequence_length": MAX_SEQUENCE_LENGTH[family], "num_attention_heads": 4}),
        "backbone_dtype": "float32",
        "lora_rank": 2,
        "train_data": latents,
        "validation_data": latents,
        "output_dir": tmp_path / "run",
        "use_cpu": True,
        "max_steps": 2,
        "eval_steps": 2,
        "logging_steps": 1,
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 2000,
        "report_to": "none",
        "disable_tqdm": True,
    }
    flags = [f"--{name}={value}" for name, value in flags.items()]
    main([*flags, "--dry_run"])
    assert "FLOPs per step" in capsys.readouterr().out

    main(flags)
    history = json.loads((tmp_path / "run" / "checkpoint-2" / "trainer_state.json").read_text())["log_history"]
    assert len([logged["loss"] for logged in history if torch.tensor(logged.get("loss", torch.nan)).isfinite()]) == 2
    assert any("eval_agreement_ensemble" in logged for logged in history)
    adapter = DinaRewardModel.from_pretrained(tmp_path / "run" / "checkpoint-2")
    config, backbone = adapter.config, BACKBONES[family]
    assert config.backbone_type == family
    assert config.lora["targets"] == list(backbone.lora_targets)
    expected = backbone.default_fields(config.transformer_config)
    assert [config.visual_layers, config.text_layers] == [expected["visual_layers"], expected["text_layers"]]
    # These are zero before training.
    changed = [weight.any() for name, weight in adapter.backbone.named_parameters() if "lora_B" in name]
    assert changed
    assert any(changed)
    assert DinaRewardModel.from_pretrained(tmp_path / "run" / "model").config.lora is None


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_does_not_change_the_loss_or_the_evaluation(family):
    """A batch of texts of unlike length is the sum of its samples, where the family has a mask."""
    model, inputs = tiny_reward(family), tiny_inputs(family)
    latents = inputs.pop("latents")
    generator = torch.Generator().manual_seed(3)
    pairs = {
        "latents": torch.stack([latents, torch.randn(latents.shape, generator=generator)]),
        "noise": torch.randn(latents.shape, generator=generator),
        "sigma": torch.tensor([0.2, 0.5, 0.8]),
        "target": torch.tensor([1.0, 0.0, 0.7]),
    }

    def rows(index):
        pair = {
            name: value[:, index : index + 1] if name == "latents" else value[index : index + 1]
            for name, value in pairs.items()
        }
        return pair, one_sample(inputs, index)

    def sums(pair, conditioning):
        batch = {**pair, "prompt": ["x"] * len(pair["target"]), "weight": torch.ones(len(pair["target"]))}
        options = {"mode": "features", "sigmas": [0.3], "num_draws": 1}
        return sum_agreement(model.reward, [batch], lambda prompts: EncodedPrompts(**conditioning), **options)

    objective = PreferenceObjective(model)
    singles = [rows(index) for index in range(3)]
    with torch.no_grad():
        losses = objective(**pairs, **inputs)
        expected = torch.cat([objective(**pair, **conditioning) for pair, conditioning in singles])
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-4)
    separate = [sums(*single) for single in singles]
    for name, values in sums(pairs, inputs).items():
        torch.testing.assert_close(values, sum(each[name] for each in separate), rtol=1e-4, atol=1e-4)
