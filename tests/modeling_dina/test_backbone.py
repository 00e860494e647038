"""The truncated backbone gives what the whole transformer computes inside, and nothing else is kept."""

import json

import pytest
import torch
from diffusers import SD3Transformer2DModel
from safetensors.torch import load_file, save_file

from modeling_dina import DinaConfig
from modeling_dina.backbone_dina import (
    backbone_class,
    build_backbone,
    is_adapter_key,
    load_base_weights,
    merge_lora,
    read_transformer_config,
)
from modeling_dina.weights_dina import TransformerWeights, allocate

LORA = {"rank": 2, "alpha": 4, "targets": ["to_q", "to_out.0", "add_k_proj"]}


@pytest.fixture
def whole(tiny_config):
    torch.manual_seed(0)
    return SD3Transformer2DModel(**tiny_config["transformer_config"]).eval()


@pytest.fixture
def inputs(tiny_inputs):
    return {
        "noisy_latents": tiny_inputs["latents"],
        "timestep": torch.tensor([1.0, 200.0, 500.0, 700.0, 1000.0]),
        "prompt_embeds": tiny_inputs["prompt_embeds"],
        "pooled_prompt_embeds": tiny_inputs["pooled_prompt_embeds"],
    }


def states_of(whole, inputs):
    """Visual and text tokens before the first block and after every block of the whole transformer."""
    visual, text = [], []

    def before(_module, _args, kwargs):
        visual.append(kwargs["hidden_states"])
        text.append(kwargs["encoder_hidden_states"])

    def after(_module, _args, output):
        text.append(output[0])
        visual.append(output[1])

    hooks = [whole.transformer_blocks[0].register_forward_pre_hook(before, with_kwargs=True)]
    hooks += [block.register_forward_hook(after) for block in whole.transformer_blocks]
    whole(inputs["noisy_latents"], inputs["prompt_embeds"], inputs["pooled_prompt_embeds"], inputs["timestep"])
    for hook in hooks:
        hook.remove()
    return visual, text


def truncated(tiny_config, whole, **changes):
    backbone = build_backbone(DinaConfig(**{**tiny_config, **changes}))
    load_base_weights(backbone, whole.state_dict(), origin="whole")
    return backbone.eval()


@pytest.mark.parametrize(
    ("num_layers", "visual_layers", "text_layers"),
    [(0, [0], [0]), (1, [0, 1], [1]), (3, [1, 2, 3], [0, 3]), (4, [2, 4], [3])],
)
@torch.no_grad()
def test_taps_are_the_whole_transformers_states(tiny_config, whole, inputs, num_layers, visual_layers, text_layers):
    backbone = truncated(
        tiny_config, whole, num_layers=num_layers, visual_layers=visual_layers, text_layers=text_layers
    )
    features = backbone(**inputs)
    visual, text = states_of(whole, inputs)
    for layer, tokens in zip(visual_layers, features.visual, strict=True):
        torch.testing.assert_close(tokens, visual[layer])
    for layer, tokens in zip(text_layers, features.text, strict=True):
        torch.testing.assert_close(tokens, text[layer])
    torch.testing.assert_close(
        features.conditioning, whole.time_text_embed(inputs["timestep"], inputs["pooled_prompt_embeds"])
    )


def test_nothing_unread_is_kept(tiny_config, whole):
    backbone = truncated(tiny_config, whole)
    kept = set(backbone.state_dict())
    assert kept < set(whole.state_dict())
    assert not any(key.startswith(("norm_out", "proj_out", "transformer_blocks.3")) for key in kept)
    assert len(backbone.transformer_blocks) == 3


def test_missing_and_misshapen_base_weights_are_named(tiny_config, whole):
    backbone = build_backbone(DinaConfig(**tiny_config))
    weights = whole.state_dict()
    del weights["context_embedder.bias"]
    weights["pos_embed.proj.bias"] = torch.zeros(3)
    with pytest.raises(
        ValueError, match=r"(?s)folder lacks.*pos_embed.proj.bias: expected \[32\], got \[3\]"
    ) as error:
        load_base_weights(backbone, weights, origin="folder")
    assert "context_embedder.bias: expected [32], got None" in str(error.value)


def test_lora_alone_is_trainable_and_starts_as_nothing(tiny_config, whole, inputs):
    plain, adapted = truncated(tiny_config, whole), truncated(tiny_config, whole, lora=LORA)
    trainable = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert trainable == {key for key in adapted.state_dict() if is_adapter_key(key)}
    # 3 blocks: to_q, to_out.0 and add_k_proj of `attn`, and to_q and to_out.0 of the first block's `attn2`.
    assert len(trainable) == 2 * (3 * 3 + 2)
    with torch.no_grad():
        torch.testing.assert_close(adapted(**inputs).visual[-1], plain(**inputs).visual[-1], rtol=0, atol=0)


@torch.no_grad()
def test_merging_keeps_the_function_and_drops_the_layers(tiny_config, whole, inputs):
    backbone = truncated(tiny_config, whole, lora=LORA)
    for name, parameter in backbone.named_parameters():
        if is_adapter_key(name):
            parameter.normal_(std=0.3)
    before = backbone(**inputs)
    query = backbone.transformer_blocks[0].attn.to_q
    # W + alpha / rank B A
    merged = query.base_layer.weight + 2 * query.lora_B["default"].weight @ query.lora_A["default"].weight

    merge_lora(backbone)
    torch.testing.assert_close(backbone.transformer_blocks[0].attn.to_q.weight, merged)
    torch.testing.assert_close(backbone(**inputs).visual[-1], before.visual[-1], rtol=1e-4, atol=1e-5)
    assert set(backbone.state_dict()) < set(whole.state_dict())
    assert all(parameter.requires_grad for parameter in backbone.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latents": (5, 3, 8, 6)}, r"latents: expected \[B, 4, H, W\], got \[5, 3, 8, 6\]"),
        ({"latents": (4, 8)}, r"latents: expected \[B, 4, H, W\], got \[4, 8\]"),
        ({"latents": (5, 4, 7, 6)}, "latents: .*multiples of 2 up to 24, got 7 x 6"),
        ({"latents": (5, 4, 26, 6)}, "latents: .*multiples of 2 up to 24, got 26 x 6"),
        ({"prompt_embeds": (4, 7, 12)}, r"prompt_embeds: expected \[5, L, 12\], got \[4, 7, 12\]"),
        ({"prompt_embeds": (5, 7, 11)}, r"prompt_embeds: expected \[5, L, 12\], got \[5, 7, 11\]"),
        ({"pooled_prompt_embeds": (5, 9)}, r"pooled_prompt_embeds: expected \[5, 10\], got \[5, 9\]"),
        ({"pooled_prompt_embeds": None}, r"pooled_prompt_embeds: expected \[5, 10\], got None"),
    ],
)
def test_wrong_shapes_are_named(tiny_config, tiny_inputs, changes, message):
    backbone = build_backbone(DinaConfig(**tiny_config))
    inputs = {**tiny_inputs, **{name: shape and torch.zeros(shape) for name, shape in changes.items()}}
    with pytest.raises(ValueError, match=message):
        backbone.check_inputs("latents", *inputs.values())


def test_unknown_family():
    with pytest.raises(ValueError, match=r"backbone_type: expected one of .*sd3.*, got 'unet'"):
        backbone_class("unet")


def test_position_embeddings_must_be_stored(tiny_config):
    tiny_config["transformer_config"]["pos_embed_max_size"] = None
    with pytest.raises(ValueError, match="pos_embed_max_size"):
        build_backbone(DinaConfig(**tiny_config))


def test_reading_a_diffusers_folder(whole, tmp_path):
    whole.save_pretrained(tmp_path / "transformer")
    config, commit = read_transformer_config("sd3", str(tmp_path))
    assert (config["num_layers"], config["attention_head_dim"], commit) == (4, 8, None)
    weights = TransformerWeights(str(tmp_path))
    torch.testing.assert_close(dict(weights), dict(whole.state_dict()), rtol=0, atol=0)


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    with pytest.raises(ValueError, match="expected the configuration of a SD3Transformer2DModel, got UNet2DModel"):
        read_transformer_config("sd3", str(tmp_path))


def test_an_incomplete_transformer_is_refused(tiny_config, whole, tmp_path):
    weights = whole.state_dict()
    del weights["transformer_blocks.1.attn.to_q.weight"]
    whole.save_pretrained(tmp_path / "transformer")
    save_file(weights, tmp_path / "transformer" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(ValueError, match=r"transformer_blocks.1.attn.to_q.weight: expected \[32, 32\], got None"):
        load_base_weights(build_backbone(DinaConfig(**tiny_config)), TransformerWeights(str(tmp_path)), "folder")


@pytest.mark.parametrize("subfolder", ["transformer", ""])
def test_only_shards_with_needed_weights_are_opened(tiny_config, whole, tmp_path, subfolder):
    folder = tmp_path / subfolder
    whole.save_pretrained(folder, max_shard_size="40KB")
    index = json.loads((folder / "diffusion_pytorch_model.safetensors.index.json").read_text())["weight_map"]
    backbone = build_backbone(DinaConfig(**tiny_config))
    needed = {index[key] for key in backbone.state_dict()}
    assert needed < set(index.values())
    for name in set(index.values()) - needed:
        (folder / name).unlink()
    load_base_weights(backbone, TransformerWeights(str(tmp_path)), origin="folder")
    torch.testing.assert_close(dict(backbone.state_dict()), part_of(whole, backbone), rtol=0, atol=0)
    (folder / needed.pop()).unlink()
    with pytest.raises(OSError, match=r"diffusion_pytorch_model-0\d+-of-0\d+.safetensors"):
        load_base_weights(backbone, TransformerWeights(str(tmp_path)), origin="folder")


def part_of(whole, backbone):
    return {key: value for key, value in whole.state_dict().items() if key in backbone.state_dict()}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("diffusion_pytorch_model.safetensors", b"no", "model.safetensors: expected safetensors"),
        ("diffusion_pytorch_model.safetensors.index.json", b"{}", "index.json: expected the files of all tensors"),
        ("diffusion_pytorch_model.safetensors.index.json", b"{", "index.json: expected the files of all tensors"),
    ],
)
def test_corrupt_weights_are_refused_by_name(whole, tmp_path, name, content, message):
    whole.save_pretrained(tmp_path / "transformer")
    (tmp_path / "transformer" / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        TransformerWeights(str(tmp_path))


def test_pickled_weights_are_not_read(whole, tmp_path):
    whole.save_pretrained(tmp_path / "transformer", safe_serialization=False)
    with pytest.raises(OSError, match=r"diffusion_pytorch_model.safetensors"):
        TransformerWeights(str(tmp_path))


def test_a_tensor_that_an_index_promises_and_its_file_lacks(tiny_config, whole, tmp_path):
    whole.save_pretrained(tmp_path / "transformer", max_shard_size="40KB")
    index = json.loads((tmp_path / "transformer" / "diffusion_pytorch_model.safetensors.index.json").read_text())
    name = "transformer_blocks.0.attn.to_q.weight"
    path = tmp_path / "transformer" / index["weight_map"][name]
    save_file({key: value for key, value in load_file(path).items() if key != name}, path)
    with pytest.raises(ValueError, match=f"{name}: expected .*, got None"):
        load_base_weights(build_backbone(DinaConfig(**tiny_config)), TransformerWeights(str(tmp_path)), "folder")


def test_a_lora_leaves_out_what_the_config_excludes(tiny_config, whole, inputs):
    lora = {**LORA, "exclude": ["transformer_blocks.2.attn.add_k_proj", "attn2.to_q"]}
    adapted = truncated(tiny_config, whole, lora=lora)
    modules = {key.split(".lora_")[0] for key in adapted.state_dict() if is_adapter_key(key)}
    everywhere = truncated(tiny_config, whole, lora=LORA)
    expected = {key.split(".lora_")[0] for key in everywhere.state_dict() if is_adapter_key(key)}
    assert expected - modules == {"transformer_blocks.2.attn.add_k_proj", "transformer_blocks.0.attn2.to_q"}
    assert modules < expected


def test_a_buffer_whose_values_would_be_lost_is_refused():
    with torch.device("meta"):
        module = torch.nn.Linear(2, 2)
        module.register_buffer("table", torch.ones(3), persistent=False)
    with pytest.raises(RuntimeError, match="expected a persistent buffer or one with values, got table"):
        allocate(module, torch.float32)
    table = module.table = torch.ones(3)
    allocate(module, torch.float32)
    assert module.table is table
