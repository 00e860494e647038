"""The adapters, through the interfaces that the other trainers have in public."""

import importlib
import inspect
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_dina import DinaRewardModel, DinaScorer
from modeling_dina.adapters import verl_omni
from modeling_dina.adapters.diffusion_nft import latent_reward
from modeling_dina.adapters.flow_grpo import dina_score
from modeling_dina.conditioning_dina import encode_prompts

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
