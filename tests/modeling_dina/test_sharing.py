"""A reward that reads the base weights of a generator."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from modeling_dina import DinaRewardModel
from modeling_dina.backbone_dina import BACKBONES, is_adapter_key
from tests.families import FAMILIES, MAX_SEQUENCE_LENGTH, tiny_fields, tiny_inputs, tiny_pipeline
from training.align.policy import Policy

HEIGHT = 64


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A pipeline of each family."""
    root = tmp_path_factory.mktemp("pipelines")
    for family in FAMILIES:
        tiny_pipeline(family).save_pretrained(root / family)
    return root


def rewarded(folders, family, lora=True) -> DinaRewardModel:
    """A reward on the pipeline, with a LoRA that has an effect."""
    fields = {
        name: value
        for name, value in tiny_fields(family).items()
        if name not in ("backbone_type", "transformer_config", "scheduler_config")
    }
    adapter = {"rank": 2, "alpha": 4, "targets": list(BACKBONES[family].lora_targets)} if lora else None
    torch.manual_seed(0)
    model = DinaRewardModel.from_backbone(folders / family, lora=adapter, **fields).eval()
    for name, parameter in model.backbone.named_parameters():
        if is_adapter_key(name):
            nn.init.normal_(parameter, std=0.3)
    return model


def generator(folders, family):
    pipeline = tiny_pipeline(family)
    return type(pipeline).from_pretrained(folders / family)


def storages(*modules: nn.Module) -> dict[int, int]:
    """Bytes of each piece of memory that the modules use."""
    tensors = [each for module in modules for each in (*module.parameters(), *module.buffers())]
    return {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.slow
def test_the_reward_owns_only_its_adapter_and_head(folders, family):
    model, pipe = rewarded(folders, family), generator(folders, family)
    policy = Policy(pipe, rank=2, alpha=4, max_sequence_length=MAX_SEQUENCE_LENGTH[family], resolution=HEIGHT)
    with torch.no_grad():
        for parameter in policy.parameters:
            parameter.normal_(std=0.3)
    modules = {name: (id(module), type(module)) for name, module in policy.transformer.named_modules()}
    weights = {name: (id(weight), weight.clone()) for name, weight in policy.transformer.named_parameters()}
    required = {name: weight.requires_grad for name, weight in policy.transformer.named_parameters()}
    inputs = tiny_inputs(family)
    with torch.no_grad():
        before = model.reward(**inputs).scores
    apart = sum(storages(policy.transformer, model).values())
    base = sum(value.nbytes for name, value in model.backbone.state_dict().items() if not is_adapter_key(name))

    assert model.sharing(pipe) is model
    together = sum(storages(policy.transformer, model).values())
    assert apart - together == base
    own = {key for key in storages(model) if key not in storages(policy.transformer)}
    assert own == set(storages(model.head)) | {
        weight.untyped_storage().data_ptr()
        for name, weight in model.backbone.named_parameters()
        if is_adapter_key(name)
    }
    with torch.no_grad():
        assert torch.equal(model.reward(**inputs).scores, before)
    trained = {name for name, weight in model.backbone.named_parameters() if weight.requires_grad}
    assert trained == {name for name, _ in model.backbone.named_parameters() if is_adapter_key(name)}

    # A step of the reward's training changes nothing of the generator.
    optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=1.0)
    model.reward(**inputs).scores.sum().backward()
    optimizer.step()
    model.merge_adapter()
    assert {name: (id(module), type(module)) for name, module in policy.transformer.named_modules()} == modules
    for name, weight in policy.transformer.named_parameters():
        assert id(weight) == weights[name][0]
        assert torch.equal(weight, weights[name][1])
        assert weight.requires_grad == required[name]
        assert weight.grad is None
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in policy.transformer.modules())


@pytest.mark.parametrize("family", ["sd3", "sdxl"])
@pytest.mark.slow
def test_generator_and_reward_run_at_the_same_time(folders, family):
    """The generator with its LoRA and without it, as alignment does, and the reward in another thread."""
    pipe = generator(folders, family)
    policy = Policy(pipe, rank=2, alpha=4, max_sequence_length=MAX_SEQUENCE_LENGTH[family], resolution=HEIGHT)
    with torch.no_grad():
        for parameter in policy.parameters:
            parameter.normal_(std=0.3)
    model, inputs = rewarded(folders, family).sharing(pipe), tiny_inputs(family)
    conditioning, noise = policy.encode(["abc", "d"]), policy.noise(2, torch.Generator().manual_seed(0))

    def generate():
        states = []
        for _ in range(10):
            states.append(policy.sample(conditioning, noise, policy.sigmas(2), batch_size=2).states[-1])
            with policy.reference():
                states.append(policy.sample(conditioning, noise, policy.sigmas(2), batch_size=2).states[-1])
        return torch.stack(states)

    @torch.no_grad()
    def score():
        return torch.stack([model.reward(**inputs).scores for _ in range(20)])

    expected = generate(), score()
    assert not torch.equal(expected[0][0], expected[0][1])
    with ThreadPoolExecutor(2) as threads:
        results = [threads.submit(task) for task in (generate, score)]
        assert all(torch.equal(each.result(), alone) for each, alone in zip(results, expected, strict=True))


def test_equal_weights_are_shared_and_others_are_not(folders):
    """A merged LoRA changes the projections of the attention only."""
    model, pipe = rewarded(folders, "sd3"), generator(folders, "sd3")
    model.merge_adapter()
    inputs = tiny_inputs("sd3")
    with torch.no_grad():
        before = model.reward(**inputs).scores
        assert torch.equal(model.sharing(pipe).reward(**inputs).scores, before)
    theirs = storages(pipe.transformer)
    shared = {name for name, weight in model.named_parameters() if weight.untyped_storage().data_ptr() in theirs}
    assert "backbone.transformer_blocks.0.ff.net.2.weight" in shared
    assert "backbone.transformer_blocks.0.attn.to_q.weight" not in shared


def test_a_generator_without_equal_weights_is_refused(folders):
    model = rewarded(folders, "sd3")
    for pipe in (generator(folders, "sd3").to(torch.bfloat16), tiny_pipeline("sd3")):
        for weight in pipe.transformer.parameters():
            weight.data.add_(1)
        for weight in pipe.transformer.buffers():
            weight.data.add_(1)
        with pytest.raises(ValueError, match=f"pipe: expected .* torch.float32, got one in {pipe.dtype}"):
            model.sharing(pipe)
    with pytest.raises(ValueError, match=r"pipe: expected .*SD3Transformer2DModel.*, got FluxTransformer2DModel"):
        model.sharing(generator(folders, "flux"))
    with pytest.raises(ValueError, match=r"pipe: expected .*SD3Transformer2DModel.*, got NoneType"):
        model.sharing(generator(folders, "sd"))
    pipe = generator(folders, "sd3")
    pipe.transformer.to("meta")
    with pytest.raises(ValueError, match=r"pipe: expected .* in memory, got offloaded"):
        model.sharing(pipe)
