"""LRM on random weights, against its formula computed step by step with the library's whole models."""

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from PIL import Image

from modeling_dina.evaluation.rewards import CallableEvaluator
from modeling_dina.noising_dina import shared_noise
from tests.families import tiny_pipeline

PROMPTS = ["a cat", "two red cubes", "a cat"]


@pytest.fixture(params=["sd", "sdxl"])
def folders(request, tmp_path):
    """A base pipeline, and an LRM with other weights."""
    tiny_pipeline(request.param).save_pretrained(tmp_path / "base")
    trained = tiny_pipeline(request.param)
    width = 8 if request.param == "sd" else 6
    state = {
        "visual_projection": {"weight": torch.randn(width, 8 + 16 + 32 + 32)},
        "logit_scale": torch.tensor(2.6592),
    }
    if request.param == "sd":
        state["text_projection"] = {"weight": torch.randn(width, 8)}
    names = ["unet", "text_encoder"] + (["text_encoder_2"] if request.param == "sdxl" else [])
    for name in names:
        for parameter in getattr(trained, name).parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        getattr(trained, name).save_pretrained(tmp_path / "lrm" / name)
    torch.save(state, tmp_path / "lrm" / "state_dict.pt")
    return tmp_path, trained, state


@pytest.fixture
def images():
    values = np.random.default_rng(0).integers(0, 256, (3, 40, 56, 3), dtype=np.uint8)
    return [Image.fromarray(each) for each in values]


def step_by_step(trained, state, prompt, image):
    pixels = torch.from_numpy(np.array(image.resize((64, 64), Image.Resampling.BILINEAR))).permute(2, 0, 1)
    mode = trained.vae.encode(pixels[None] / 127.5 - 1).latent_dist.mode()
    latents = (mode - trained.vae.config.shift_factor) * trained.vae.config.scaling_factor
    scheduler = DDPMScheduler.from_config(trained.scheduler.config)
    noisy = scheduler.add_noise(latents, shared_noise((4, 8, 8), 1)[0], torch.tensor([1]))

    def read(text):
        def ids(tokenizer):
            return tokenizer(text, padding="max_length", max_length=16, truncation=True, return_tensors="pt").input_ids

        first = trained.text_encoder(ids(trained.tokenizer), output_hidden_states=True)
        if "text_projection" in state:
            hidden, pooled, added = first.last_hidden_state, first.pooler_output, None
            pooled = pooled @ state["text_projection"]["weight"].T
        else:
            second = trained.text_encoder_2(ids(trained.tokenizer_2), output_hidden_states=True)
            hidden = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
            pooled = second.text_embeds
            added = {"text_embeds": pooled, "time_ids": torch.tensor([[64, 64, 0, 0, 64, 64]])}
        found = []
        unet = trained.unet
        hooks = [
            block.register_forward_hook(lambda _module, _inputs, output: found.append(output))
            for block in (*unet.down_blocks, unet.mid_block)
        ]
        unet(noisy, torch.tensor([1]), hidden, added_cond_kwargs=added)
        for hook in hooks:
            hook.remove()
        *down, mid = found
        # One residual layer a block, then its downsampler.
        return [*(residuals[0].mean(dim=(2, 3)) for _, residuals in down), mid.mean(dim=(2, 3))], pooled

    (*down, mid), pooled = read(prompt)
    (*_, unconditional), _ = read("")
    visual = torch.cat([*down, unconditional + 7.5 * (mid - unconditional)], dim=-1)
    projected = visual @ state["visual_projection"]["weight"].T
    cosine = (projected * pooled).sum() / projected.norm() / pooled.norm()
    return cosine.item() * float(np.exp(np.float32(2.6592)))


@torch.no_grad()
def test_rewards_are_those_of_the_formula(folders, images):
    folder, trained, state = folders
    evaluator = CallableEvaluator(f"lrm:{folder / 'lrm'}", base=str(folder / "base"))
    rewards = evaluator.score(PROMPTS, images)[0, 0]
    expected = [step_by_step(trained, state, *pair) for pair in zip(PROMPTS, images, strict=True)]
    assert np.std(expected) > 1e-3
    np.testing.assert_allclose(rewards, expected, atol=1e-4)
    np.testing.assert_allclose(evaluator.score(PROMPTS[1:2], images[1:2])[0, 0], expected[1:2], atol=1e-4)
    assert set(evaluator.settings["revision"]) >= {"unet", "text_encoder"}


def test_command(folders, run, write_json, write_greys):
    folder = folders[0]
    write_json([{"prompt": "a cat", "path1": "2.png", "path2": "1.png"}])
    write_greys({"1.png": 100, "2.png": 200})
    results = run("hpdv3", "--backbone", folder / "base", scorer=f"lrm:{folder / 'lrm'}")
    assert results["accuracy"] in (0.0, 1.0)
    assert f"--scorer lrm:{folder / 'lrm'} --backbone {folder / 'base'}" in results["command"]
    assert set(results["revision"]) >= {"unet", "text_encoder"}


def test_a_folder_without_the_layout_is_refused(tmp_path):
    with pytest.raises(ValueError, match=rf"scorer: expected .*state_dict.pt, got {tmp_path}"):
        CallableEvaluator(f"lrm:{tmp_path}")
