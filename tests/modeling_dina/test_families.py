"""What holds for the backbone of every model family."""

import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, QwenImagePipeline, UNet2DConditionModel
from diffusers.hooks import apply_layerwise_casting
from huggingface_hub.errors import StrictDataclassError

from modeling_dina import DinaConfig, DinaRewardModel
from modeling_dina.backbone_dina import (
    BACKBONES,
    build_backbone,
    is_adapter_key,
    load_base_weights,
    merge_lora,
    read_backbone_type,
)
from modeling_dina.noising_dina import DEFAULT_LEVELS, path_from_scheduler
from modeling_dina.presets_dina import PRESETS
from tests.families import (
    ADAPTED_BLOCKS,
    FAMILIES,
    TRANSFORMERS,
    VARIANCE_PRESERVING,
    one_sample,
    randomised,
    tiny_fields,
    tiny_inputs,
    tiny_reward,
    tiny_scheduler,
    tiny_transformer,
)
from tests.official_layout import write_official

MASKED = [(family, masked) for family in FAMILIES for masked in {BACKBONES[family].takes_mask, False}]


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


def call_whole(family, whole, timestep, latents, prompt_embeds, pooled_prompt_embeds=None, prompt_embeds_mask=None):
    """A step of the family's pipeline, whose inputs are made by the library's own functions."""
    batch, channels, height, width = latents.shape
    if family == "sd3":
        return whole(latents, prompt_embeds, pooled_prompt_embeds, timestep)
    if family == "flux":
        ids = FluxPipeline._prepare_latent_image_ids(batch, height // 2, width // 2, "cpu", torch.float32)
        return whole(
            hidden_states=FluxPipeline._pack_latents(latents, batch, channels, height, width),
            encoder_hidden_states=prompt_embeds,
            pooled_projections=pooled_prompt_embeds,
            timestep=timestep / 1000,
            img_ids=ids,
            txt_ids=torch.zeros(prompt_embeds.shape[1], 3),
            guidance=torch.full([batch], 3.5),
        )
    if family == "zimage":
        mask = torch.ones(prompt_embeds.shape[:2], dtype=torch.bool)
        mask = mask if prompt_embeds_mask is None else prompt_embeds_mask
        texts = [text[of_text] for text, of_text in zip(prompt_embeds, mask, strict=True)]
        return whole(list(latents.unsqueeze(2).unbind(0)), (1000 - timestep) / 1000, texts)
    if family == "pixart":
        return whole(latents, prompt_embeds, timestep, encoder_attention_mask=prompt_embeds_mask)
    if family in ("sd", "sdxl"):
        size = (8 * height, 8 * width)
        sizes = torch.tensor([(*size, 0, 0, *size)] * batch)
        added = None if family == "sd" else {"text_embeds": pooled_prompt_embeds, "time_ids": sizes}
        return whole(latents, timestep, prompt_embeds, added_cond_kwargs=added)
    return whole(
        hidden_states=QwenImagePipeline._pack_latents(latents, batch, channels, height, width),
        encoder_hidden_states=prompt_embeds,
        encoder_hidden_states_mask=prompt_embeds_mask,
        timestep=timestep / 1000,
        img_shapes=[[(1, height // 2, width // 2)]] * batch,
    )


def states_of(family, whole, timestep, inputs):
    """What hooks read from the whole transformer: visual and text tokens before the first block and behind each."""
    states = []
    length = inputs["latents"].shape[2] // 2 * (inputs["latents"].shape[3] // 2)

    def note(state):
        if family == "zimage":
            padded = length + -length % 32
            state = state[:, :padded], state[:, padded:]
        if isinstance(whole, UNet2DConditionModel):
            state = state[0].flatten(2).transpose(1, 2), inputs["prompt_embeds"]
        states.append(state)

    def before(_module, args, kwargs):
        if family == "pixart":
            args = ((args[0], kwargs["encoder_hidden_states"]),)
        note(args[0] if args else (kwargs["hidden_states"], kwargs.get("encoder_hidden_states")))

    def after(module, _args, output):
        if family == "pixart":
            note((output, states[0][1]))
        elif isinstance(whole, UNet2DConditionModel):
            is_halved = getattr(module, "downsamplers", None) is not None
            note((output[1][-2 if is_halved else -1] if isinstance(output, tuple) else output, None))
        else:
            note(output if family == "zimage" else (output[1], output[0]))

    blocks = [block for name in BACKBONES[family].block_lists.values() for block in getattr(whole, name)]
    blocks += [whole.mid_block] if isinstance(whole, UNet2DConditionModel) else []
    hooks = [blocks[0].register_forward_pre_hook(before, with_kwargs=True)]
    hooks += [block.register_forward_hook(after) for block in blocks]
    with torch.no_grad():
        call_whole(family, whole, timestep, **inputs)
    for hook in hooks:
        hook.remove()
    return states


def backbone_of(family, whole, **changes):
    backbone = build_backbone(DinaConfig(**tiny_fields(family) | changes))
    load_base_weights(backbone, whole.state_dict(), origin="whole")
    return backbone.eval()


@pytest.mark.parametrize(("family", "masked"), MASKED)
def test_taps_are_the_whole_transformers_states(family, masked):
    """On a grid of odd sides, at every block, kept or not."""
    whole = tiny_transformer(family)
    depth = BACKBONES[family].depth(TRANSFORMERS[family])
    inputs, timestep = (
        tiny_inputs(family, masked=masked),
        torch.tensor([1, 400, 999] if family in VARIANCE_PRESERVING else [1.0, 400.0, 1000.0]),
    )
    states = states_of(family, whole, timestep, inputs)
    for num_layers in (0, 2, depth):
        layers = list(range(num_layers + 1))
        texts = layers[:-1] if family == "sd3" and num_layers == depth else layers
        texts = [0] if BACKBONES[family].text_is_constant else texts
        backbone = backbone_of(family, whole, num_layers=num_layers, visual_layers=layers, text_layers=texts)
        with torch.no_grad():
            latents, *conditioning = (inputs.get(name) for name in ARGUMENTS)
            features = backbone(latents, timestep, *conditioning)
        for layer, tokens in zip(layers, features.visual, strict=True):
            torch.testing.assert_close(tokens, states[layer][0], rtol=1e-4, atol=1e-5)
        of_text = torch.ones(features.text[0].shape[:2], dtype=torch.bool)
        of_text = of_text if features.text_mask is None else features.text_mask
        assert masked == (features.text_mask is not None)
        for layer, tokens in zip(texts, features.text, strict=True):
            torch.testing.assert_close(tokens[of_text], states[layer][1][of_text], rtol=1e-4, atol=1e-5)


ARGUMENTS = ("latents", "prompt_embeds", "pooled_prompt_embeds", "prompt_embeds_mask")


def test_nothing_unread_is_kept(family):
    whole = tiny_transformer(family)
    kept = set(backbone_of(family, whole).state_dict())
    assert kept < set(whole.state_dict())
    lists = tuple(f"{name}." for name in BACKBONES[family].block_lists.values())
    assert len({tuple(key.split(".")[:2]) for key in kept if key.startswith(lists)}) == 3
    assert not any(key.startswith(("norm_out", "proj_out", "all_final_layer")) for key in kept)


@pytest.mark.parametrize("mode", ["features", "mean"])
@torch.no_grad()
def test_scores_depend_on_neither_batch_nor_padding(family, mode):
    model, inputs = tiny_reward(family), tiny_inputs(family)
    together = model.reward(**inputs, mode=mode).scores
    alone = [model.reward(**one_sample(inputs, index), mode=mode).scores for index in range(3)]
    assert together.std() > 1e-3
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-5)
    if "prompt_embeds_mask" in inputs:
        padded = dict(inputs)
        for name, value in (("prompt_embeds", 7.0), ("prompt_embeds_mask", False)):
            filling = torch.full_like(inputs[name][:, :1], value).expand(-1, 30, *inputs[name].shape[2:])
            padded[name] = torch.cat([inputs[name], filling], dim=1)
        torch.testing.assert_close(model.reward(**padded, mode=mode).scores, together, rtol=0, atol=1e-5)
        everything = model.reward(**{**inputs, "prompt_embeds_mask": None}, mode=mode).scores
        assert (everything - together)[:2].abs().max() > 1e-3


@pytest.mark.parametrize("options", [{"mode": "features", "with_levels": True}, {"mode": "precision"}])
def test_levels_in_one_batch_change_no_score(family, options):
    """Also with levels of each sample; the backbone runs once for each draw."""
    model, inputs = tiny_reward(family), tiny_inputs(family)
    passes = []
    model.backbone.register_forward_hook(lambda module, arguments, output: passes.append(len(arguments[0])))
    for sigmas in ([0.2, 0.5, 0.7], torch.tensor([[0.2, 0.3, 0.4], [0.5, 0.6, 0.7]])):
        gradients = []
        for level_batching in (False, True):
            inputs["latents"] = inputs["latents"].detach().requires_grad_()
            output = model.reward(**inputs, **options, sigmas=sigmas, num_draws=2, level_batching=level_batching)
            output.scores.sum().backward()
            gradients.append((output, inputs["latents"].grad))
        for name, value in gradients[0][0].items():
            torch.testing.assert_close(gradients[1][0][name], value, rtol=0, atol=1e-5)
        torch.testing.assert_close(gradients[1][1], gradients[0][1], rtol=1e-3, atol=1e-5)
    assert passes == [*[3] * 6, *[9] * 2, *[3] * 4, *[6] * 2]


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable.*:FutureWarning")
def test_gradient_checkpointing_changes_no_gradient(family):
    model, inputs = tiny_reward(family), tiny_inputs(family)

    def gradients():
        model.zero_grad()
        latents = inputs["latents"].clone().requires_grad_()
        model.reward(**{**inputs, "latents": latents}, sigmas=[0.4]).scores.sum().backward()
        return [latents.grad, *(each.grad for each in model.parameters() if each.grad is not None)]

    plain = gradients()
    model.gradient_checkpointing_enable()
    calls = []
    checkpoint = model.backbone._gradient_checkpointing_func
    for module in model.backbone.modules():  # the blocks of a UNet checkpoint their own layers
        if hasattr(module, "_gradient_checkpointing_func"):
            module._gradient_checkpointing_func = lambda *args: calls.append(1) or checkpoint(*args)
    for ours, theirs in zip(gradients(), plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    # With the two refiners of Z-Image; a UNet's residual layers are counted too.
    assert len(calls) == ADAPTED_BLOCKS[family] + (3 if family in ("sd", "sdxl") else 0)


@torch.no_grad()
def test_half_precision(family, tmp_path):
    model, inputs = tiny_reward(family), tiny_inputs(family)
    model.save_pretrained(tmp_path)
    half = DinaRewardModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {each.dtype for each in half.backbone.parameters()} == {torch.bfloat16}
    scores = half.reward(**inputs).scores
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, model.reward(**inputs).scores, rtol=0, atol=3e-2)


@pytest.mark.filterwarnings("ignore:Mismatch dtype:UserWarning")
@torch.no_grad()
def test_weights_in_float8_and_autocast(family):
    model, inputs = tiny_reward(family), tiny_inputs(family)
    expected = model.reward(**inputs, sigmas=[0.5]).scores
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model.reward(**inputs, sigmas=[0.5]).scores, expected, rtol=0, atol=1e-2)
    apply_layerwise_casting(model.backbone, storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    torch.testing.assert_close(model.reward(**inputs, sigmas=[0.5]).scores, expected, rtol=0, atol=0.1)


@torch.no_grad()
def test_lora_of_the_default_projections(family):
    lora = {"rank": 2, "alpha": 4, "targets": list(BACKBONES[family].lora_targets)}
    whole, inputs = tiny_transformer(family), tiny_inputs(family)
    plain, adapted = backbone_of(family, whole), backbone_of(family, whole, lora=lora)
    adapters = [name for name in adapted.state_dict() if is_adapter_key(name)]
    assert len(adapters) == 2 * ADAPTED_BLOCKS[family] * len(lora["targets"])
    arguments = [inputs["latents"], torch.tensor([1.0, 400.0, 1000.0])]
    arguments += [inputs.get(name) for name in ARGUMENTS[1:]]
    # LoRA layers change the memory format of feature maps, on which the rounding of convolutions depends.
    rounding = 1e-6 if family in ("sd", "sdxl") else 0
    torch.testing.assert_close(adapted(*arguments).visual[-1], plain(*arguments).visual[-1], rtol=0, atol=rounding)
    for name, parameter in adapted.named_parameters():
        if is_adapter_key(name):
            parameter.normal_(std=0.3)
    before = adapted(*arguments)
    assert not torch.allclose(before.visual[-1], plain(*arguments).visual[-1], atol=1e-3)
    merge_lora(adapted)
    torch.testing.assert_close(adapted(*arguments).visual[-1], before.visual[-1], rtol=1e-3, atol=1e-4)
    assert set(adapted.state_dict()) == set(plain.state_dict())


def test_the_family_is_read_from_the_source(family, tmp_path):
    tiny_transformer(family).save_pretrained(tmp_path / BACKBONES[family].component)
    (tmp_path / "config.json").write_text('{"model_type": "dina"}')  # of a reward model in the same folder
    assert read_backbone_type(str(tmp_path)) == family
    scheduler = tiny_scheduler(family)
    scheduler.register_to_config(note=2.0)
    scheduler.save_pretrained(tmp_path / "scheduler")
    model = DinaRewardModel.from_backbone(tmp_path)
    config = model.config
    assert config.backbone_type == family
    assert config.num_layers == config.visual_layers[-1] <= 4
    assert config.text_layers == ([0] if BACKBONES[family].text_is_constant else config.visual_layers)
    assert config.timestep_scale == 1000
    assert config.scheduler_config["note"] == 2.0
    assert ("timestep_scale" in config.to_dict()) is False


@pytest.mark.parametrize("family", ["flux", "zimage", "qwenimage"])
@pytest.mark.parametrize("variant", ["lora", "frozen", "full_model"])
@torch.no_grad()
def test_variants_of_the_published_layout(family, variant, tmp_path):
    """With the embedded input as a layer, the logistic function and another shift than the parity data."""
    tiny_transformer(family).save_pretrained(tmp_path / "base" / "transformer")
    FlowMatchEulerDiscreteScheduler(shift=2.0).save_pretrained(tmp_path / "base" / "scheduler")
    lora = {"rank": 2, "alpha": 4, "targets": list(BACKBONES[family].lora_targets)}
    fields = {"num_layers": 3, "visual_layers": [0, 3], "text_layers": [0, 1], "logistic": True}
    fields |= {"lora": None if variant == "frozen" else lora, **BACKBONES[family].official_fields}
    model = randomised(DinaRewardModel.from_backbone(tmp_path / "base", **fields, num_attention_heads=4)).eval()
    official = write_official(tmp_path / "official", model, full_model=variant == "full_model")
    converted = DinaRewardModel.from_official(official)
    assert converted.config.backbone_type == family
    assert converted.config.timestep_scale == (1.0 if family == "flux" else 1000.0)
    inputs = tiny_inputs(family)
    torch.testing.assert_close(converted.reward(**inputs).scores, model.reward(**inputs).scores, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["flux", "zimage", "qwenimage", *VARIANCE_PRESERVING])
@torch.no_grad()
@pytest.mark.slow
def test_forward_is_one_graph(family):
    model, inputs = tiny_reward(family), tiny_inputs(family)
    arguments = [inputs["latents"], torch.tensor([0.1, 0.4, 0.9]), *(inputs.get(name) for name in ARGUMENTS[1:])]
    compiled = torch.compile(model, fullgraph=True, backend="eager")(*arguments)
    torch.testing.assert_close(compiled.scores, model(*arguments).scores)
    torch._dynamo.reset()


def test_a_transformer_of_no_family_is_refused(tmp_path):
    (tmp_path / "transformer").mkdir()
    (tmp_path / "config.json").write_text('{"model_type": "dina"}')
    (tmp_path / "transformer" / "config.json").write_text('{"_class_name": "HunyuanDiT2DModel"}')
    with pytest.raises(ValueError, match=r"one of \['Flux.*got HunyuanDiT2DModel"):
        read_backbone_type(str(tmp_path))


# Blocks, embedders and refiners that are kept, in millions of parameters.
SIZES = {
    "sd3.5-medium": 12 * 101.5 + 19.5,
    "sd3.5-large": 19 * 213.0 + 39.6,
    "flux1-dev": 19 * 339.8 + 64.1,
    "flux1-schnell": 19 * 339.8 + 53.9,
    "z-image": 16 * 180.9 + 2 * (180.9 + 177.0) + 11.9,
    "z-image-turbo": 16 * 180.9 + 2 * (180.9 + 177.0) + 11.9,
    "qwen-image": 20 * 339.8 + 40.5,
    "sd1.5": 10.5 + 36.8 + 140.0 + 62.3 + 97.0 + 2.1,
    "sdxl": 5.4 + 60.1 + 757.4 + 413.1 + 7.3,
    "pixart-sigma": 14 * 21.3 + 16.2,
}
LAYERS = {
    "sd3-medium": [4, 8, 12],
    "sd3.5-medium": [4, 8, 12],
    "sd3.5-large": [6, 13, 19],
    "flux1-dev": [8, 12, 16, 19],
    "flux1-schnell": [8, 12, 16, 19],
    "z-image": [4, 8, 12, 16],
    "z-image-turbo": [4, 8, 12, 16],
    "qwen-image": [5, 10, 15, 20],
    "sd1.5": [1, 2, 3, 4, 5],
    "sd2.1-768": [1, 2, 3, 4, 5],
    "sdxl": [1, 2, 3, 4],
    "pixart-sigma": [5, 9, 14],
}
# The timestep at which the signal-to-noise ratio is nearest to that of level 0.2 of a rectified flow.
STEPS = {"sd1.5": 60, "sd2.1-768": 60, "sdxl": 60, "pixart-sigma": 73}
# The scheduler's level nearest to 0.2: of k / 1000 under dynamic shifting, of shift s / (1 + (shift - 1) s) otherwise.
NEAREST = {
    "flux1-dev": 0.2,
    "flux1-schnell": 0.2,
    "qwen-image": 0.2,
    "z-image": 0.24 / 1.2,
    "z-image-turbo": 0.231 / 1.154,
}


@pytest.mark.parametrize("name", PRESETS)
def test_presets(name):
    config = DinaConfig.preset(name, temperature=2.0)
    assert config.temperature == 2.0
    assert config.visual_layers == LAYERS[name]
    path = path_from_scheduler(config.scheduler_config)
    if name in STEPS:
        assert config.text_layers == [0]
        assert config.dimensions.latent_channels == 4
        torch.testing.assert_close(torch.tensor(config.default_sigmas), path.from_flow(torch.tensor(DEFAULT_LEVELS)))
        assert path.timestep(torch.tensor(config.default_sigmas))[0] == STEPS[name]
        return
    assert config.text_layers == LAYERS[name]
    assert config.dimensions.latent_channels == 16
    assert config.default_sigmas == DEFAULT_LEVELS
    level = path_from_scheduler(config.scheduler_config).snap(torch.tensor([0.2])).item()
    assert level == pytest.approx(NEAREST.get(name, 0.231 / 1.154), abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_presets_at_full_size(name):
    """On the meta device."""
    config = DinaConfig.preset(name)
    with torch.device("meta"):
        model = DinaRewardModel(config)
    count = sum(each.numel() for each in model.backbone.parameters()) / 1e6
    # The embedders' sizes include output layers, which are not kept.
    assert SIZES[name] * 0.99 < count <= SIZES[name] * 1.001
    size = config.dimensions
    inputs = {"prompt_embeds": (2, 40, size.text_width), "noisy_latents": (2, size.latent_channels, 64, 64)}
    if size.pooled_width is not None:
        inputs["pooled_prompt_embeds"] = (2, size.pooled_width)
    inputs = {key: torch.empty(shape, device="meta") for key, shape in inputs.items()}
    assert model(**inputs, sigma=0.5).scores.shape == (2,)


def test_the_default_is_a_preset():
    ours, default = DinaConfig.preset("sd3.5-medium").to_dict(), DinaConfig().to_dict()
    assert {name for name in ours if ours[name] != default[name]} == {"conditioning_source"}
    with pytest.raises(ValueError, match=r"name: expected one of .*'flux1-dev'.*, got 'flux'"):
        DinaConfig.preset("flux")


@torch.no_grad()
def test_the_scale_of_flux():
    """With the scale of the published reward models, the backbone computes what the library computes from inputs that
    are divided by 1000."""
    whole, inputs, timestep = tiny_transformer("flux"), tiny_inputs("flux"), torch.tensor([1.0, 400.0, 1000.0])
    arguments = [inputs.get(name) for name in ARGUMENTS[1:]]
    features = backbone_of("flux", whole, timestep_scale=1.0)(inputs["latents"], timestep, *arguments)
    pooled = inputs["pooled_prompt_embeds"]
    torch.testing.assert_close(
        features.conditioning, whole.time_text_embed(timestep / 1000, torch.full([3], 3.5), pooled)
    )
    for value, family in ((0.0, "flux"), (math.inf, "flux"), (1.0, "sd3"), (1.0, "zimage")):
        with pytest.raises(StrictDataclassError, match=f"timestep_scale: expected .*, got {value}"):
            DinaConfig(**tiny_fields(family), timestep_scale=value)
    config = DinaConfig(**tiny_fields("flux"), timestep_scale=1.0)
    assert DinaConfig.from_dict(config.to_dict()).timestep_scale == 1.0


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("flux", {"num_layers": 6}, "num_layers: expected 0 to the transformer's 5 blocks, got 6"),
        ("zimage", {"transformer_config": {"dim": 32}}, "transformer_config: .*'n_layers', got None"),
        (
            "qwenimage",
            {"transformer_config": {**TRANSFORMERS["qwenimage"], "zero_cond_t": True}},
            "transformer_config: .*zero_cond_t=True",
        ),
        ("sd", {"transformer_config": {}}, "transformer_config: .*'down_block_types', got None"),
        ("sd", {"text_layers": [1]}, r"text_layers: expected \[0\].*UNet2DConditionModel.*, got \[1\]"),
        ("sd", {"transformer_config": TRANSFORMERS["sdxl"]}, "addition_embed_type=None.*'sd', got 'text_time'"),
        ("sdxl", {"transformer_config": TRANSFORMERS["sd"]}, "addition_embed_type='text_time'.*'sdxl', got None"),
        (
            "sd",
            {"transformer_config": {**TRANSFORMERS["sd"], "in_channels": 9}},
            "transformer_config: .*in_channels=4, got 9",
        ),
        (
            "sd",
            {"transformer_config": {**TRANSFORMERS["sd"], "class_embed_type": "timestep"}},
            "transformer_config: .*class_embed_type.*None.*, got 'timestep'",
        ),
        (
            "sd",
            {"transformer_config": {**TRANSFORMERS["sd"], "down_block_types": ["DownBlock2D"] * 2 + ["AttnDown"]}},
            r"transformer_config: .*CrossAttnDownBlock2D.*, got \['AttnDown'\]",
        ),
        (
            "pixart",
            {"transformer_config": {**TRANSFORMERS["pixart"], "use_additional_conditions": True}},
            "transformer_config: .*use_additional_conditions=False",
        ),
        ("sd3", {"num_layers": 4, "visual_layers": [4], "text_layers": [4]}, r"text_layers: .*got \[4\]"),
        ("unet", {}, r"backbone_type: expected one of .*'zimage'.*, got 'unet'"),
    ],
)
def test_families_check_their_configs(family, changes, message):
    fields = tiny_fields("sd3" if family == "unet" else family) | {"backbone_type": family}
    with pytest.raises(StrictDataclassError, match=message):
        DinaConfig(**fields | changes)


@pytest.mark.parametrize("family", ["sd", "sdxl"])
@torch.no_grad()
def test_feature_maps_of_unlike_widths_and_grids(family):
    """All layers, on a grid of odd sides; the head's tokens are those of each layer, one layer behind the other."""
    layers = [0, 1, 2, 3, 4]
    model, inputs = tiny_reward(family, num_layers=4, visual_layers=layers), tiny_inputs(family)
    features = model.features(**inputs, sigmas=[0.4])
    (features,) = next(iter(features.draws))
    assert [tokens.shape[1:] for tokens in features.visual] == [(60, 8), (60, 8), (15, 16), (6, 32), (6, 32)]
    torch.testing.assert_close(features.text, [inputs["prompt_embeds"]])
    visual, _ = model.head._tokens(features)
    assert visual.shape == (3, 60 + 60 + 15 + 6 + 6, 32)
    width = model.head.query_tokens.shape[-1] // 4
    for layer, (tokens, part) in enumerate(zip(features.visual, visual.split([60, 60, 15, 6, 6], dim=1), strict=True)):
        adapted = model.head.layer_adapters_visual[layer](tokens, features.conditioning)
        weight = model.head.agg_visual.weight[:, layer * width : (layer + 1) * width]
        expected = torch.nn.functional.linear(adapted, weight, model.head.agg_visual.bias)
        torch.testing.assert_close(part, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["flux", "zimage", "qwenimage"])
def test_text_behind_the_last_block_is_used(family):
    depth = BACKBONES[family].depth(TRANSFORMERS[family])
    model = tiny_reward(family, num_layers=depth, visual_layers=[depth], text_layers=[depth])
    assert model.reward(**tiny_inputs(family)).scores.isfinite().all()


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("flux", {"latents": torch.zeros(3, 16, 6, 10)}, r"latents: expected \[B, 4, H, W\], got \[3, 16, 6, 10\]"),
        ("flux", {"latents": torch.zeros(3, 4, 7, 10)}, "latents: .*multiples of 2, got 7 x 10"),
        ("flux", {"pooled_prompt_embeds": None}, r"pooled_prompt_embeds: expected \[3, 8\], got None"),
        ("flux", {"prompt_embeds_mask": torch.ones(3, 40).bool()}, r"prompt_embeds_mask: expected None.*\[3, 40\]"),
        ("sd3", {"prompt_embeds_mask": torch.ones(3, 40).bool()}, r"prompt_embeds_mask: expected None.*\[3, 40\]"),
        ("zimage", {"pooled_prompt_embeds": torch.zeros(3, 8)}, r"pooled_prompt_embeds: expected None, got \[3, 8\]"),
        ("zimage", {"latents": torch.zeros(3, 4, 66, 2)}, "latents: .*up to 64, got 66 x 2"),
        ("zimage", {"prompt_embeds": torch.zeros(3, 321, 24)}, r"prompt_embeds: expected at most 320 tokens"),
        ("qwenimage", {"prompt_embeds_mask": torch.ones(3, 40)}, r"prompt_embeds_mask: expected bool \[3, 40\], got"),
        ("qwenimage", {"prompt_embeds_mask": torch.ones(3, 9).bool()}, r"prompt_embeds_mask: .*\[3, 40\], got.*3, 9"),
        (
            "qwenimage",
            {"prompt_embeds_mask": torch.zeros(3, 40).bool()},
            "prompt_embeds_mask: .*at least one.*0, 0, 0",
        ),
        (
            "zimage",
            {"prompt_embeds_mask": (torch.arange(40) != 3).expand(3, 40)},
            "prompt_embeds_mask: .*padding only behind the text, got text lengths .39, 39, 39",
        ),
    ],
)
def test_inputs_that_a_family_does_not_have(family, changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_reward(family).reward(**tiny_inputs(family) | changes)
