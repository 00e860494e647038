"""The adapters, through the interfaces that the other trainers have in public."""

import importlib
import inspect
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from PIL import Image

from modeling_dina import DinaRewardModel, DinaScorer
from modeling_dina.adapters import verl_omni
from modeling_dina.adapters.diffusion_nft import latent_reward
from modeling_dina.adapters.flow_grpo import dina_score
from modeling_dina.adapters.samples import unpack_latents
from modeling_dina.conditioning_dina import encode_prompts
from tests.families import FAMILIES, LATENT_CHANNELS, save_tiny_folder

TINY = str(Path(__file__).parents[2] / "modeling_dina" / "tiny")
PROMPTS = ["two purple stars", "a large red circle", "two purple stars"]


@pytest.fixture(scope="module")
def scorer():
    return DinaScorer.from_pretrained(TINY)


@pytest.fixture(scope="module")
def latents():
    return torch.randn(3, 16, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def expected(scorer, latents):
    return scorer.score(prompts=PROMPTS, latents=latents).scores


@pytest.fixture(scope="module")
def embeddings(scorer):
    return encode_prompts(scorer.pipeline, PROMPTS, scorer.model.config.max_sequence_length).pair()


def test_flow_grpo_scores_latents_and_pictures(scorer, latents, expected):
    """As its `multi_score` uses a function: (images, prompts, metadata), then weight * score for score in scores."""
    reward = dina_score(scorer)
    scores, details = reward(latents, tuple(PROMPTS), [{}] * 3)
    assert [0.5 * score for score in scores] == pytest.approx((0.5 * expected).tolist(), abs=1e-6)
    assert details == {}

    pixels = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    pictures = scorer.score(prompts=PROMPTS, images=[Image.fromarray(each) for each in pixels]).scores.tolist()
    assert reward(pixels, PROMPTS, {})[0] == pytest.approx(pictures, abs=1e-6)
    assert reward(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255, PROMPTS, {})[0] == pytest.approx(
        pictures, abs=1e-6
    )


def test_flow_grpo_loads_a_model_onto_a_device(latents, expected):
    scores, _ = dina_score(TINY, "cpu")(latents, PROMPTS, {})
    assert scores == pytest.approx(expected.tolist(), abs=1e-6)


def test_diffusion_nft_takes_the_last_latents_of_a_rollout(scorer, latents, expected):
    rollout = torch.stack([torch.zeros_like(latents), latents], dim=1)
    rewards, _ = latent_reward(scorer)(rollout[:, -1], PROMPTS, [{}] * 3, only_strict=True)
    as_tensors = {name: torch.as_tensor(values).float() for name, values in rewards.items()}
    torch.testing.assert_close(as_tensors["avg"], expected, rtol=0, atol=1e-6)
    assert set(as_tensors) == {"dina", "avg"}


@pytest.fixture
def flow_factory(monkeypatch):
    """The part of Flow-Factory's public interface that a reward meets, in its stead."""

    class PointwiseRewardModel:
        required_fields, use_tensor_inputs = ("image", "prompt"), False

        def __init__(self, config, accelerator):
            self.config, self.accelerator, self.device = config, accelerator, accelerator.device

    package, rewards = ModuleType("flow_factory"), ModuleType("flow_factory.rewards")
    rewards.PointwiseRewardModel = PointwiseRewardModel
    rewards.RewardModelOutput = lambda rewards, extra_info=None: SimpleNamespace(rewards=rewards)
    monkeypatch.setitem(sys.modules, "flow_factory", package)
    monkeypatch.setitem(sys.modules, "flow_factory.rewards", rewards)
    monkeypatch.delitem(sys.modules, "modeling_dina.adapters.flow_factory", raising=False)
    return importlib.import_module("modeling_dina.adapters.flow_factory")


def test_flow_factory_asks_by_field(flow_factory, latents, embeddings, expected):
    """Its processor hands over, as lists, those fields of the samples that `__call__` names."""
    config = SimpleNamespace(model=TINY, batch_size=3)
    reward = flow_factory.DinaReward(config, SimpleNamespace(device=torch.device("cpu")))
    trajectory = torch.stack([torch.zeros_like(latents), latents, torch.zeros_like(latents)], dim=1)
    fields = {
        "prompt": PROMPTS,
        "all_latents": list(trajectory),
        "latent_index_map": [torch.tensor([0, -1, 1])] * 3,
        "prompt_embeds": list(embeddings[0]),
        "pooled_prompt_embeds": list(embeddings[1]),
        "height": [64] * 3,
        "width": [64] * 3,
    }
    assert set(reward.required_fields) <= set(inspect.signature(reward.__call__).parameters)
    output = reward(**fields)
    torch.testing.assert_close(output.rewards, expected, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=r"latent_index_map: expected .* got index -1"):
        reward(**fields | {"latent_index_map": [torch.tensor([0, 1, -1])] * 3})
    with pytest.raises(ValueError, match="prompt_embeds: expected one for each of 3 prompts, got None"):
        reward(**fields | {"prompt_embeds": None})


def test_verl_omni_scores_one_sample(latents, embeddings, expected):
    """With keyword arguments from its configuration, batched or not; a dictionary with a float under "score"."""
    for row in range(3):
        extra_info = {"prompt_embeds": embeddings[0][row], "pooled_prompt_embeds": embeddings[1][row : row + 1]}
        answer = verl_omni.compute_score(
            solution_image=latents[row],
            ground_truth=PROMPTS[row],
            extra_info=extra_info,
            data_source="prompts",
            model=TINY,
        )
        assert answer == {"score": pytest.approx(expected[row].item(), abs=1e-6)}
    assert verl_omni.load_model(TINY, "cpu") is verl_omni.load_model(TINY, "cpu")
    with pytest.raises(ValueError, match="prompt_embeds: expected one sample of rank 2, got NoneType"):
        verl_omni.compute_score(latents[0], "", {}, model=TINY)
    with pytest.raises(ValueError, match=r"solution_image: expected one sample of rank 3, got \[3, 16, 8, 8\]"):
        verl_omni.compute_score(latents, "", extra_info, model=TINY)


def test_no_adapter_changes_the_model(scorer, latents):
    before = {name: value.clone() for name, value in scorer.model.state_dict().items()}
    dina_score(scorer)(latents, PROMPTS, {})
    assert all(torch.equal(before[name], value) for name, value in scorer.model.state_dict().items())
    assert isinstance(scorer.model, DinaRewardModel)


SIZE = {"height": 64, "width": 96}  # of images, in pixels
PACKED = ("flux", "qwenimage")  # families whose pipelines return and store packed latents


@pytest.fixture(scope="module", params=FAMILIES)
def case(request, tmp_path_factory):
    """A model of each family: its folder, scorer, latents as it takes them and as its pipeline returns them, and their
    scores."""
    folder = tmp_path_factory.mktemp("models") / request.param
    save_tiny_folder(request.param, folder)
    scorer = DinaScorer.from_pretrained(folder)
    latents = torch.randn(3, LATENT_CHANNELS, 8, 12, generator=torch.Generator().manual_seed(0))
    is_packed = request.param in PACKED
    return SimpleNamespace(
        folder=str(folder),
        scorer=scorer,
        is_packed=is_packed,
        latents=FluxPipeline._pack_latents(latents, 3, LATENT_CHANNELS, 8, 12) if is_packed else latents,
        texts=encode_prompts(scorer.pipeline, PROMPTS, scorer.model.config.max_sequence_length),
        expected=scorer.score(prompts=PROMPTS, latents=latents).scores,
    )


def test_packed_latents_are_unpacked_as_in_the_pipeline():
    latents = torch.randn(2, 4, 8, 12)
    packed = FluxPipeline._pack_latents(latents, 2, 4, 8, 12)
    assert torch.equal(unpack_latents(packed, 64, 96), latents)
    assert torch.equal(unpack_latents(packed, 79, 96), FluxPipeline._unpack_latents(packed, 79, 96, 8))
    with pytest.raises(ValueError, match=r"height, width: expected a size of 24 tokens .* got 64 x 64"):
        unpack_latents(packed, 64, 64)
    with pytest.raises(ValueError, match=r"height, width: expected .* for packed latents, got None and 96"):
        unpack_latents(packed, None, 96)


def test_functions_score_what_pipelines_return(case):
    for make in (dina_score, latent_reward):
        rewards, _ = make(case.scorer, **SIZE)(case.latents, PROMPTS, [{}] * 3)
        scores = rewards if make is dina_score else rewards["avg"]
        torch.testing.assert_close(torch.tensor(scores), case.expected, rtol=0, atol=1e-5)
    if case.is_packed:
        with pytest.raises(ValueError, match="height, width: expected "):
            dina_score(case.scorer)(case.latents, PROMPTS, [{}] * 3)


def processed(reward, samples):
    """Flow-Factory's processor: lists of those fields that `__call__` names and that all samples have."""
    names = [name for name in inspect.signature(reward.__call__).parameters if samples[0].get(name) is not None]
    assert set(reward.required_fields) <= set(names)
    return reward(**{name: [sample[name] for sample in samples] for name in names}).rewards


def test_flow_factory_scores_samples_of_every_family(flow_factory, case):
    """Texts of Z-Image are lists without padding or a mask; those of Qwen-Image have both."""
    model = case.scorer.model
    reward = flow_factory.DinaReward(SimpleNamespace(model=case.folder), SimpleNamespace(device=torch.device("cpu")))
    texts = case.texts.split() if model.config.backbone_type == "zimage" else [case.texts.take([i]) for i in range(3)]
    samples = []
    for index, (embeds, pooled, mask) in enumerate(texts):
        latents = case.latents[index]
        samples.append(
            {
                "prompt": PROMPTS[index],
                "all_latents": torch.stack([torch.zeros_like(latents), latents]),
                "latent_index_map": torch.tensor([0, -1, 1]),
                "prompt_embeds": embeds[0],
                "pooled_prompt_embeds": None if pooled is None else pooled[0],
                "prompt_embeds_mask": None if mask is None else mask[0].long(),
                "image": Image.new("RGB", (96, 64)),
                **SIZE,
            }
        )
    if model.backbone.takes_mask:
        assert (samples[0]["prompt_embeds_mask"] is None) == (model.config.backbone_type == "zimage")
        lengths = [len(sample["prompt_embeds"]) for sample in samples]
        assert len(set(lengths)) == (2 if model.config.backbone_type == "zimage" else 1)
    torch.testing.assert_close(processed(reward, samples), case.expected, rtol=0, atol=1e-5)
    if case.is_packed:
        with pytest.raises(ValueError, match="height, width: expected "):
            processed(reward, [{**sample, "width": None} for sample in samples])
    if model.config.dimensions.pooled_width is not None:
        with pytest.raises(ValueError, match="pooled_prompt_embeds: expected "):
            processed(reward, [{**sample, "pooled_prompt_embeds": None} for sample in samples])


def test_verl_omni_scores_samples_of_every_family(case):
    """Its rollouts pad texts with zeros to one length, and their masks likewise."""
    options = {"model": case.folder, **SIZE}
    for index, (embeds, pooled, _) in enumerate(case.texts.split()):
        padding = 7 * (index + 1)
        extra_info = {
            "prompt_embeds": torch.nn.functional.pad(embeds[0], (0, 0, 0, padding)),
            "prompt_embeds_mask": (torch.arange(embeds.shape[1] + padding) < embeds.shape[1]).long()[None],
            "pooled_prompt_embeds": pooled,
        }
        expected = {"score": pytest.approx(case.expected[index].item(), abs=1e-5)}
        for latents in (case.latents[index], case.latents[index : index + 1]):
            assert verl_omni.compute_score(latents, "", extra_info, **options) == expected
        both = {**extra_info, "latents_clean": case.latents[index]}
        pixels = torch.zeros(3, 64, 96, dtype=torch.uint8)
        assert verl_omni.compute_score(pixels, "", both, **options) == expected
    with pytest.raises(ValueError, match=r"prompt_embeds_mask: expected \[\d+\] .* got \[3\] with 0"):
        verl_omni.compute_score(latents, "", {**extra_info, "prompt_embeds_mask": torch.zeros(3)}, **options)
