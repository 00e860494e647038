"""Weights stored in fewer bits than they are computed in, or on no device at all: the model computes all the same, and
its head stays float32."""

import pytest
import torch
from diffusers.hooks import apply_layerwise_casting
from transformers import BitsAndBytesConfig, TorchAoConfig
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module

from modeling_dina import DinaConfig, DinaRewardModel
from modeling_dina.conditioning_dina import load_pipeline

FLOAT8 = torch.float8_e4m3fn


def assert_computes(model, inputs, expected, compute_dtype=torch.float32):
    assert model.compute_dtype == compute_dtype
    assert all(type(each) is torch.nn.Parameter and each.dtype == torch.float32 for each in model.head.parameters())
    with torch.no_grad():
        scores = model.reward(**inputs).scores
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, expected, rtol=0, atol=0.1)
    assert not torch.equal(scores, expected)


@pytest.fixture
def expected(tiny_model, tiny_inputs):
    with torch.no_grad():
        return tiny_model.reward(**tiny_inputs).scores


@pytest.fixture
def saved(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.mark.parametrize("compute_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_float8_before", [False, True])
@pytest.mark.parametrize("options", [{}, {"skip_modules_pattern": ()}, {"skip_modules_pattern": None}])
def test_layerwise_casting(tiny_model, tiny_inputs, expected, compute_dtype, is_float8_before, options):
    tiny_model.backbone.to(FLOAT8 if is_float8_before else compute_dtype)
    apply_layerwise_casting(tiny_model.backbone, storage_dtype=FLOAT8, compute_dtype=compute_dtype, **options)
    assert tiny_model.backbone.context_embedder.weight.dtype == FLOAT8
    assert_computes(tiny_model, tiny_inputs, expected, compute_dtype)
    assert tiny_model.backbone.context_embedder.weight.dtype == FLOAT8


def test_float8_without_casting_is_refused(tiny_model, tiny_inputs):
    tiny_model.backbone.to(FLOAT8)
    with pytest.raises(ValueError, match=r"backbone: expected .*layerwise casting, got torch\.float8_e4m3fn"):
        tiny_model.reward(**tiny_inputs)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["Int8WeightOnlyConfig", "Float8WeightOnlyConfig"])
def test_torchao(saved, tiny_inputs, expected, name):
    quantization = pytest.importorskip("torchao").quantization
    config = TorchAoConfig(getattr(quantization, name)())
    model = DinaRewardModel.from_pretrained(saved, quantization_config=config)
    assert type(model.backbone.context_embedder.weight) is not torch.nn.Parameter
    assert_computes(model, tiny_inputs, expected)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bitsandbytes(saved, tiny_inputs, expected, dtype):
    pytest.importorskip("bitsandbytes")
    config = BitsAndBytesConfig(load_in_8bit=True)
    model = DinaRewardModel.from_pretrained(saved, dtype=dtype, quantization_config=config)
    assert model.backbone.context_embedder.weight.dtype == torch.int8
    assert_computes(model, tiny_inputs, expected, dtype)


@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_bitsandbytes_with_an_adapter(tiny_config, tiny_inputs, tmp_path):
    pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    lora = {"rank": 2, "alpha": 4, "targets": ["to_q"]}
    model = DinaRewardModel(DinaConfig(**tiny_config, lora=lora)).eval()
    model.save_pretrained(tmp_path)
    loaded = DinaRewardModel.from_pretrained(tmp_path, quantization_config=BitsAndBytesConfig(load_in_8bit=True))
    assert_computes(loaded, tiny_inputs, model.reward(**tiny_inputs).scores)


@pytest.mark.parametrize("skipped", [None, ["backbone.context_embedder"]])
def test_quantisers_leave_the_head_alone(tiny_model, skipped):
    skip = HfQuantizer.get_modules_to_not_convert(tiny_model, skipped, tiny_model._keep_in_fp32_modules)
    converted = {name for name, _ in tiny_model.named_parameters() if should_convert_module(name, skip)}
    assert not any(name.startswith("head.") for name in converted)
    assert "backbone.transformer_blocks.0.attn.to_q.weight" in converted


@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_a_scorer_of_an_offloaded_model(folder, files, scorer, tmp_path):
    model = DinaRewardModel.from_pretrained(folder, device_map={"": "disk"}, offload_folder=tmp_path / "offload")
    assert model.device.type == "meta"
    assert model.execution_device == torch.device("cpu")
    wanted = scorer.score(prompts=["a cat"], images=files[:1]).scores
    torch.testing.assert_close(model.scorer().score(prompts=["a cat"], images=files[:1]).scores, wanted)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("enable_model_cpu_offload", {"device": "cpu"}),
        ("enable_group_offload", {"onload_device": torch.device("cpu"), "offload_type": "leaf_level"}),
    ],
)
def test_a_scorer_with_an_offloaded_pipeline(folder, files, scorer, monkeypatch, method, options):
    """Small cards: text encoders and VAE stay on the CPU, and move to the device, whole or by layers, to run."""
    prompts = ["a cat", "two dogs"]
    wanted = scorer.score(prompts=prompts, images=files[:2]).scores
    model = DinaRewardModel.from_pretrained(folder)
    pipeline = load_pipeline(model)
    getattr(pipeline, method)(**options)
    offloaded = model.scorer(pipeline)
    torch.testing.assert_close(offloaded.score(prompts=prompts, images=files[:2]).scores, wanted, rtol=0, atol=0)
    # Prompts come from the cache.
    monkeypatch.setattr(type(pipeline), "encode_prompt", None)
    torch.testing.assert_close(offloaded.score(prompts=prompts, images=files[:2]).scores, wanted, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_the_head_of_an_offloaded_model_ignores_autocast(saved, tiny_model, tiny_inputs, tmp_path):
    offloaded = DinaRewardModel.from_pretrained(saved, device_map={"": "disk"}, offload_folder=tmp_path / "offload")
    with torch.autocast("cpu", torch.bfloat16):
        wanted = tiny_model.reward(**tiny_inputs).scores
        torch.testing.assert_close(offloaded.reward(**tiny_inputs).scores, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("options", [{}, {"attn_implementation": "sdpa"}])
def test_attention_is_sdpa(saved, tmp_path, options):
    model = DinaRewardModel.from_pretrained(saved, **options)
    model.save_pretrained(tmp_path / "again")
    for each in (model, DinaRewardModel.from_pretrained(tmp_path / "again")):
        assert each.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("name", ["eager", "flash_attention_2", "kernels-community/flash-attn2"])
def test_other_attention_is_refused(saved, tiny_model, name):
    refusal = f"attn_implementation: expected 'sdpa', got '{name}'"
    with pytest.raises(ValueError, match=refusal):
        DinaRewardModel.from_pretrained(saved, attn_implementation=name)
    with pytest.raises(ValueError, match=refusal):
        tiny_model.set_attn_implementation(name)


def test_an_adapter_alone_is_not_quantised(tmp_path, tiny_config):
    pytest.importorskip("torchao")
    torch.manual_seed(0)
    lora = {"rank": 2, "alpha": 4, "targets": ["to_q"]}
    model = DinaRewardModel(DinaConfig(**tiny_config, lora=lora, base_model="someone/base"))
    model.save_pretrained(tmp_path, adapter_only=True)
    from torchao.quantization import Int8WeightOnlyConfig

    with pytest.raises(ValueError, match="quantization_config: expected none for an adapter-only checkpoint"):
        DinaRewardModel.from_pretrained(tmp_path, quantization_config=TorchAoConfig(Int8WeightOnlyConfig()))
