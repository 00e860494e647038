"""Checkpoints: merged and adapter-only, the published layout in its variants, and the refusal of whatever is not
exactly the model's weights."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from modeling_dina import DinaRewardModel
from modeling_dina.backbone_dina import is_adapter_key
from modeling_dina.weights_dina import TransformerWeights
from tests.official_layout import LORA, write_official

PARITY = Path(__file__).parents[1] / "parity"


@pytest.fixture
def base_folder(tiny_config, tmp_path):
    """A diffusers folder with a whole transformer and a scheduler."""
    torch.manual_seed(1)
    folder = tmp_path / "base"
    SD3Transformer2DModel(**tiny_config["transformer_config"]).save_pretrained(folder / "transformer")
    FlowMatchEulerDiscreteScheduler(shift=2.0).save_pretrained(folder / "scheduler")
    return folder


@pytest.fixture
def head_fields(tiny_config):
    return {name: value for name, value in tiny_config.items() if name != "transformer_config"}


@pytest.fixture
def adapted(base_folder, head_fields):
    """A model on the base whose LoRA does something."""
    model = DinaRewardModel.from_backbone(base_folder, **head_fields, lora=LORA).eval()
    torch.manual_seed(2)
    for name, parameter in model.backbone.named_parameters():
        if is_adapter_key(name):
            torch.nn.init.normal_(parameter, std=0.3)
    return model


@torch.no_grad()
def score(model, inputs):
    return model.reward(**inputs).scores


def assert_same_scores(first, second, inputs):
    """To the rounding of kernels, which may depend on where in memory the weights of a file come to lie."""
    torch.testing.assert_close(score(first, inputs), score(second, inputs), rtol=0, atol=1e-6)


def rewrite(folder, change):
    """Apply `change` to the state dict of a saved folder."""
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_from_backbone_reads_everything_that_is_not_given(base_folder, head_fields):
    model = DinaRewardModel.from_backbone(base_folder, **head_fields, temperature=2.0, dtype=torch.bfloat16)
    config = model.config
    assert config.transformer_config["num_layers"] == 4
    assert config.scheduler_config["shift"] == 2.0
    assert config.base_model == config.conditioning_source == str(base_folder)
    assert config.temperature == 2.0
    weights = TransformerWeights(str(base_folder))
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(value, weights[name].bfloat16()), name
    assert {parameter.dtype for parameter in model.head.parameters()} == {torch.float32}


def test_from_backbone_refuses_unknown_fields(base_folder):
    with pytest.raises(TypeError, match=r"expected fields of DinaConfig, got \['num_layer'\]"):
        DinaRewardModel.from_backbone(base_folder, num_layer=3)


def test_merged_round_trip(tiny_model, tiny_inputs, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    loaded = DinaRewardModel.from_pretrained(tmp_path)
    assert not loaded.training
    assert_same_scores(loaded, tiny_model, tiny_inputs)


def test_adapter_only_round_trip(adapted, tiny_inputs, tmp_path):
    folder = tmp_path / "adapter"
    adapted.save_pretrained(folder, adapter_only=True)
    saved = load_file(folder / "model.safetensors")
    assert all(name.startswith("head.") or ".lora_" in name for name in saved)
    assert json.loads((folder / "config.json").read_text())["adapter_only"] is True
    assert adapted.config.adapter_only is False

    loaded = DinaRewardModel.from_pretrained(folder)
    assert loaded.config.adapter_only is False
    assert_same_scores(loaded, adapted, tiny_inputs)
    loaded.save_pretrained(tmp_path / "whole")
    again = DinaRewardModel.from_pretrained(tmp_path / "whole")
    assert_same_scores(again, adapted, tiny_inputs)


def test_adapter_only_in_half_precision(adapted, tmp_path):
    adapted.save_pretrained(tmp_path / "adapter", adapter_only=True)
    loaded = DinaRewardModel.from_pretrained(tmp_path / "adapter", dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.backbone.parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in loaded.head.parameters()} == {torch.float32}


@pytest.mark.parametrize("adapter_only", [False, True])
def test_the_base_under_an_adapter_is_frozen(adapted, tmp_path, adapter_only):
    adapted.save_pretrained(tmp_path / "saved", adapter_only=adapter_only)
    for model in (adapted, DinaRewardModel.from_pretrained(tmp_path / "saved")):
        trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert trainable == {name for name in model.state_dict() if name.startswith("head.") or ".lora_" in name}


def test_merging_the_adapter(adapted, tiny_inputs, tmp_path):
    before = score(adapted, tiny_inputs)
    adapted.merge_adapter()
    assert adapted.config.lora is None
    torch.testing.assert_close(score(adapted, tiny_inputs), before, rtol=1e-4, atol=1e-5)
    adapted.save_pretrained(tmp_path / "merged")
    assert not any(".lora_" in name for name in load_file(tmp_path / "merged" / "model.safetensors"))
    assert_same_scores(DinaRewardModel.from_pretrained(tmp_path / "merged"), adapted, tiny_inputs)
    with pytest.raises(ValueError, match="adapter_only: expected a model with a LoRA adapter"):
        adapted.save_pretrained(tmp_path / "adapter", adapter_only=True)


def test_an_adapter_whose_base_has_gone(adapted, tmp_path):
    adapted.config.base_model = str(tmp_path / "nowhere")
    adapted.save_pretrained(tmp_path / "adapter", adapter_only=True)
    with pytest.raises(OSError, match="nowhere"):
        DinaRewardModel.from_pretrained(tmp_path / "adapter")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda weights: weights.pop("head.agg_text.bias"), "missing: head.agg_text.bias"),
        (lambda weights: weights.update(stray=torch.zeros(1)), "unexpected: stray"),
        (
            lambda weights: weights.update({"head.head.weight": torch.zeros(1, 3)}),
            r"wrong shape: head.head.weight, expected \[1, 32\], got \[1, 3\]",
        ),
    ],
)
@pytest.mark.parametrize("adapter_only", [False, True])
def test_inexact_weights_are_refused_by_name(adapted, tmp_path, change, problem, adapter_only):
    adapted.save_pretrained(tmp_path / "saved", adapter_only=adapter_only)
    rewrite(tmp_path / "saved", change)
    with pytest.raises(ValueError, match=problem):
        DinaRewardModel.from_pretrained(tmp_path / "saved")


@pytest.mark.parametrize(
    ("adapter_only", "name"),
    [
        (False, "backbone.pos_embed.pos_embed"),
        (True, "backbone.transformer_blocks.1.attn.to_q.lora_B.default.weight"),
    ],
)
def test_a_lost_backbone_weight_is_refused(adapted, tmp_path, adapter_only, name):
    adapted.save_pretrained(tmp_path / "saved", adapter_only=adapter_only)
    rewrite(tmp_path / "saved", lambda weights: weights.pop(name))
    with pytest.raises(ValueError, match=f"missing: {name}"):
        DinaRewardModel.from_pretrained(tmp_path / "saved")


# The published layout.


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"logistic": True},
        {"visual_layers": [0, 3], "text_layers": [0]},
        {"visual_layers": [0, 1, 2, 3], "text_layers": [2, 3]},
        {"head_width": 16, "project_in": True},
        {"lora": LORA},
    ],
)
@pytest.mark.parametrize("full_model", [False, True])
@pytest.mark.parametrize("keep_adapter", [False, True])
def test_variants_of_the_published_layout(
    base_folder, head_fields, tiny_inputs, tmp_path, changes, full_model, keep_adapter
):
    model = DinaRewardModel.from_backbone(base_folder, **{**head_fields, **changes}).eval()
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if is_adapter_key(name) or "cond_mlp.2" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    official = write_official(tmp_path / "official", model, full_model=full_model)
    converted = DinaRewardModel.from_official(official, keep_adapter=keep_adapter)
    torch.testing.assert_close(score(converted, tiny_inputs), score(model, tiny_inputs), rtol=1e-4, atol=1e-5)
    assert (converted.config.lora is not None) == (keep_adapter and "lora" in changes)
    assert not converted.training


def test_blocks_past_the_deepest_tap_are_left_behind(base_folder, head_fields, adapted, tiny_inputs, tmp_path):
    """The layout may count, and adapt, blocks that no tap reads."""
    shallow = DinaRewardModel.from_backbone(
        base_folder, **{**head_fields, "num_layers": 2, "visual_layers": [1, 2]}, lora=LORA
    ).eval()
    shallow.backbone.load_state_dict(adapted.backbone.state_dict(), strict=False)
    official = write_official(tmp_path / "official", adapted, visual_head_idx=[1, 2])
    torch.save(shallow.head.state_dict(), official / "checkpoint" / "rm_head.pt")
    converted = DinaRewardModel.from_official(official, keep_adapter=True)
    assert converted.config.num_layers == 2
    torch.testing.assert_close(score(converted, tiny_inputs), score(shallow, tiny_inputs))


def test_an_adapter_kept_at_conversion_can_be_saved_alone(adapted, tiny_inputs, tmp_path):
    official = write_official(tmp_path / "official", adapted)
    converted = DinaRewardModel.from_official(official, keep_adapter=True)
    assert converted.config.lora == {**LORA, "targets": sorted(LORA["targets"])}
    converted.save_pretrained(tmp_path / "adapter", adapter_only=True)
    assert_same_scores(DinaRewardModel.from_pretrained(tmp_path / "adapter"), adapted, tiny_inputs)


def test_a_whole_model_has_no_base_to_be_put_back_on(adapted, tmp_path):
    official = write_official(tmp_path / "official", adapted, full_model=True)
    converted = DinaRewardModel.from_official(official, keep_adapter=True)
    with pytest.raises(ValueError, match=r"adapter_only: .*base_model=None"):
        converted.save_pretrained(tmp_path / "adapter", adapter_only=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_text_features": False}, "model.use_text_features: expected True, got False"),
        ({"use_t_embed": False}, "model.use_t_embed: expected True, got False"),
        ({"text_head_idx": [4]}, "text_layers"),
    ],
)
def test_settings_without_a_counterpart_are_refused(adapted, tmp_path, settings, message):
    official = write_official(tmp_path / "official", adapted, **settings)
    with pytest.raises(Exception, match=message):
        DinaRewardModel.from_official(official)


def test_inexact_published_weights_are_refused_by_name(adapted, tmp_path):
    official = write_official(tmp_path / "official", adapted)
    head = adapted.head.state_dict()
    head["stray"] = head.pop("norm_ff.weight")
    torch.save(head, official / "checkpoint" / "rm_head.pt")
    with pytest.raises(ValueError, match=r"(?s)head: .*missing: norm_ff.weight.*unexpected: stray"):
        DinaRewardModel.from_official(official)


def test_a_wrong_backbone_is_refused():
    """The LoRA of one parity case has no place on the other's backbone."""
    with pytest.raises(ValueError, match=r"LoRA adapter: .*\n  unexpected: transformer_blocks.2.attn2.to_k.lora_A"):
        DinaRewardModel.from_official(PARITY / "lora_text" / "official", PARITY / "frozen_projin" / "backbone")


def test_a_missing_file_is_named(adapted, tmp_path):
    official = write_official(tmp_path / "official", adapted)
    (official / "checkpoint" / "rm_head.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"rm_head.pt"):
        DinaRewardModel.from_official(official)


def test_what_is_not_the_published_layout_is_refused(adapted, tmp_path):
    adapted.save_pretrained(tmp_path / "own")
    with pytest.raises(ValueError, match=r"checkpoint: expected a config.json with a 'model' section"):
        DinaRewardModel.from_official(tmp_path / "own")
    (tmp_path / "own" / "config.json").write_text('{"model": {"reward_head": {}}}')
    with pytest.raises(ValueError, match=r"config.json: expected 'visual_head_idx' in its 'model' section"):
        DinaRewardModel.from_official(tmp_path / "own")


@pytest.mark.parametrize("content", [b"", b"not a pickle", b"PK\x03\x04 cut short"])
def test_a_corrupt_head_is_refused(adapted, tmp_path, content):
    official = write_official(tmp_path / "official", adapted)
    (official / "checkpoint" / "rm_head.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"rm_head.pt: expected a state dict"):
        DinaRewardModel.from_official(official)


def test_a_pickle_that_runs_code_is_not_run(adapted, tmp_path):
    official = write_official(tmp_path / "official", adapted)
    torch.save({"query_tokens": Path}, official / "checkpoint" / "rm_head.pt")
    with pytest.raises(ValueError, match=r"rm_head.pt: expected a state dict"):
        DinaRewardModel.from_official(official)


# The adapter's settings of PEFT.

TEXT_PROJECTIONS = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
LAST_TEXT = [f"transformer_blocks.2.attn.{name}" for name in TEXT_PROJECTIONS]
ALL = ["to_q", "to_k", "to_v", "to_out.0", *TEXT_PROJECTIONS]


def write_adapter(folder, base_folder, fields, **settings):
    """A published checkpoint whose adapter PEFT made by `settings`, and its model."""
    model = DinaRewardModel.from_backbone(base_folder, **fields).eval()
    write_official(folder, model, use_lora=True)
    adapter = get_peft_model(
        model.backbone, LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ALL, **settings})
    )
    torch.manual_seed(2)
    for name, parameter in model.backbone.named_parameters():
        if is_adapter_key(name):
            torch.nn.init.normal_(parameter, std=0.3)
    adapter.save_pretrained(folder / "checkpoint" / "backbone_lora")
    return model.eval()  # dropout of the adapter included


@pytest.mark.parametrize(
    ("settings", "exclude"),
    [
        ({"exclude_modules": LAST_TEXT}, sorted(LAST_TEXT)),
        ({"exclude_modules": [*LAST_TEXT, "transformer_blocks.0.attn"]}, sorted(LAST_TEXT)),
        ({"exclude_modules": r".*\.2\.attn\.(add_.*|to_add_out)"}, sorted(LAST_TEXT)),
        (
            {"target_modules": r"transformer_blocks\.[12]\.attn\.to_q"},
            ["transformer_blocks.0.attn.to_q", "attn2.to_q"],
        ),
        (
            {"target_modules": ["to_q"], "layers_to_transform": [1], "layers_pattern": "transformer_blocks"},
            ["transformer_blocks.0.attn.to_q", "transformer_blocks.2.attn.to_q", "attn2.to_q"],
        ),
        ({"use_rslora": True}, None),
        ({"lora_dropout": 0.1, "init_lora_weights": "gaussian"}, None),
    ],
)
def test_an_adapter_is_on_exactly_the_modules_that_its_settings_name(
    base_folder, head_fields, tiny_inputs, tmp_path, settings, exclude
):
    official = tmp_path / "official"
    model = write_adapter(official, base_folder, head_fields, **settings)
    merged, adapted = (DinaRewardModel.from_official(official, keep_adapter=keep) for keep in (False, True))
    found = {key for key in adapted.backbone.state_dict() if is_adapter_key(key)}
    assert found == {key for key in model.backbone.state_dict() if is_adapter_key(key)}
    expected = None if exclude is None else [name.replace("attn2", "transformer_blocks.0.attn2") for name in exclude]
    assert adapted.config.lora.get("exclude") == (expected and sorted(expected))
    torch.testing.assert_close(score(merged, tiny_inputs), score(model, tiny_inputs), rtol=1e-4, atol=1e-5)
    assert_same_scores(adapted, model, tiny_inputs)

    adapted.save_pretrained(tmp_path / "adapter", adapter_only=True)
    assert_same_scores(DinaRewardModel.from_pretrained(tmp_path / "adapter"), adapted, tiny_inputs)
    auto = AutoModel.from_pretrained(tmp_path / "adapter", trust_remote_code=True)
    assert auto.config.lora == adapted.config.lora


def change_settings(folder, **changes):
    path = folder / "checkpoint" / "backbone_lora" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rank_pattern", {"to_q": 8}),
        ("alpha_pattern", {"to_q": 8}),
        ("use_dora", True),
        ("modules_to_save", ["context_embedder"]),
        ("bias", "lora_only"),
        ("lora_bias", True),
        ("init_lora_weights", "pissa"),
        ("peft_type", "LOHA"),
        ("layer_replication", [[0, 2]]),
        ("setting_of_the_future", 1),
    ],
)
def test_settings_of_an_adapter_without_a_counterpart_are_refused(base_folder, head_fields, tmp_path, name, value):
    write_adapter(tmp_path / "official", base_folder, head_fields)
    change_settings(tmp_path / "official", **{name: value})
    with pytest.raises(ValueError, match=f"lora: expected a plain adapter, got {name}="):
        DinaRewardModel.from_official(tmp_path / "official")


def test_an_adapter_of_another_rank_is_refused(base_folder, head_fields, tmp_path):
    write_adapter(tmp_path / "official", base_folder, head_fields)
    change_settings(tmp_path / "official", r=8)
    name = "transformer_blocks.0.attn.to_q.lora_A.default.weight"
    with pytest.raises(
        ValueError, match=rf"LoRA adapter: .*\n(.*\n)*  wrong shape: {name}, expected \[8, 32\], got \[4, 32\]"
    ):
        DinaRewardModel.from_official(tmp_path / "official")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.popitem(), "missing: transformer_blocks"),
        (lambda weights: weights.clear(), "missing: transformer_blocks"),
    ],
)
def test_a_lost_weight_of_a_published_adapter_is_refused(base_folder, head_fields, tmp_path, change, message):
    """A module without weights is only taken for one without a LoRA if the settings say so."""
    write_adapter(tmp_path / "official", base_folder, head_fields)
    path = tmp_path / "official" / "checkpoint" / "backbone_lora" / "adapter_model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path)
    with pytest.raises(ValueError, match=f"LoRA adapter: .*\n  {message}"):
        DinaRewardModel.from_official(tmp_path / "official")


def test_a_backbone_with_too_few_blocks_is_refused(base_folder, head_fields, tmp_path):
    write_adapter(tmp_path / "official", base_folder, head_fields)
    torch.manual_seed(1)
    shallow = {**json.loads((base_folder / "transformer" / "config.json").read_text()), "num_layers": 2}
    SD3Transformer2DModel.from_config(shallow).save_pretrained(base_folder / "transformer")
    with pytest.raises(Exception, match="num_layers: expected 0 to the transformer's 2 blocks, got 3"):
        DinaRewardModel.from_official(tmp_path / "official")
    config = base_folder / "transformer" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "num_layers": 4}))
    with pytest.raises(
        ValueError, match=r"base lacks weights of the backbone:\n(.*\n)*  transformer_blocks.2.attn.to_q"
    ):
        DinaRewardModel.from_official(tmp_path / "official")


def test_dtypes_of_a_published_checkpoint(base_folder, head_fields, tiny_inputs, tmp_path):
    model = write_adapter(tmp_path / "official", base_folder, head_fields)
    for options in ({}, {"dtype": "auto"}):
        exact = DinaRewardModel.from_pretrained(tmp_path / "official", **options)
        assert {parameter.dtype for parameter in exact.parameters()} == {torch.float32}
    for options in ({"dtype": torch.bfloat16}, {"dtype": "bfloat16"}):
        half = DinaRewardModel.from_pretrained(tmp_path / "official", **options)
        assert {parameter.dtype for parameter in half.backbone.parameters()} == {torch.bfloat16}
        assert {parameter.dtype for parameter in half.head.parameters()} == {torch.float32}
        for name, value in exact.backbone.state_dict().items():
            torch.testing.assert_close(half.backbone.state_dict()[name].float(), value, rtol=0.01, atol=1e-3)
    assert not torch.equal(score(model, tiny_inputs), score(half, tiny_inputs))


# The Hub, as its cache on disk.


@pytest.mark.parametrize("auto", [False, True])
def test_weights_remember_the_revision_they_came_from(tiny_model, tmp_path, auto):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--someone--reward"
    tiny_model.config.conditioning_source = "."
    tiny_model.save_pretrained(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)

    if auto:
        model = AutoModel.from_pretrained("someone/reward", cache_dir=tmp_path, trust_remote_code=True)
    else:
        model = DinaRewardModel.from_pretrained("someone/reward", cache_dir=tmp_path)
    assert model.conditioning_location()[:2] == ("someone/reward", commit)


def test_a_hub_id_without_a_network(adapted, tmp_path):
    official = write_official(tmp_path / "official", adapted, backbone_model_id="someone/nowhere")
    with pytest.raises(OSError, match="someone/nowhere"):
        DinaRewardModel.from_official(official)
