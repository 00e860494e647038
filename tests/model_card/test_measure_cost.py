"""Cost: what the counters count against what can be worked out, the published sizes of other rewards, and the ratios
that a reward promises."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
import typer
from transformers import Qwen2VLImageProcessor
from typer.testing import CliRunner

from model_card import measure_cost
from model_card.measure_cost import (
    SMALL,
    Contender,
    Device,
    build_inputs,
    build_model,
    claims,
    contenders,
    count,
    gradient,
    measure,
    policy,
)
from model_card.other_rewards import (
    MINIATURE,
    BlipReward,
    ClipReward,
    DecodedReward,
    QwenReward,
    Sizes,
    build_decoder,
    patches,
)
from model_card.pipeline_parts import build_pipeline_parts, largest_layer_bytes
from modeling_dina.presets_dina import PRESETS, SD35_MEDIUM
from training.align.dry_run import Cost
from training.align.run import load_run

RESULTS = Path(__file__).parents[2] / "model_card/results/presets"
CONFIG = Path(__file__).parents[2] / "training/configs/align/small_world_prfl.yaml"


def command(*arguments):
    """Runs the command in this process."""
    app = typer.Typer()
    app.command()(measure_cost.main)
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The file that the command writes of the small preset, on the meta device."""
    out = tmp_path_factory.mktemp("cost") / "cost.json"
    result = command("--preset", "small", "--out", str(out))
    assert result.exit_code == 0, result.output
    return out


@cache
def sd35_medium():
    """What is counted of that preset."""
    return measure(SD35_MEDIUM, Device.meta, 512, 1, torch.bfloat16)


@pytest.mark.slow
def test_flops_of_a_reward(written):
    assert_flops(json.loads(written.read_text()))


@pytest.mark.slow
def test_flops_of_a_reward_on_sd35_medium():
    assert_flops(sd35_medium())
    flops = sd35_medium()["flops"]
    assert flops["backbone + head"] < 1.1 * flops["backbone"]


def assert_flops(result):
    assert result["flops_ratios"]["1 level / (backbone + head)"] <= 1.001
    assert result["flops_ratios"]["3 levels / 1 level"] <= 3.1
    flops = result["flops"]
    assert flops["reward, 3 levels x 4 draws"] == pytest.approx(4 * flops["reward, 3 levels"])
    assert "seconds" not in result


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_committed_parameters_of_presets(preset):
    """Those of the models that `DinaConfig.preset` describes; FLOPs take longer to count."""
    committed = json.loads((RESULTS / f"{preset}.json").read_text())
    model = build_model(preset, "meta", torch.bfloat16)
    for part, parameters in committed["parameters"].items():
        assert parameters == sum(weight.numel() for weight in getattr(model, part).parameters())
    assert_flops(committed)
    rewards = committed["rewards"]
    assert rewards[measure_cost.DINA]["forward"]["flops"] == committed["flops"]["reward, 1 level"]


@pytest.mark.slow
def test_parameters_of_sd35_medium():
    """Half of the blocks of a 2.5 billion parameter transformer (its model card), and a head a tenth of that."""
    parameters = sd35_medium()["parameters"]
    assert 1.1e9 < parameters["backbone"] < 1.7e9
    assert parameters["head"] < 0.15 * parameters["backbone"]


@pytest.mark.parametrize(
    ("reward", "published"),
    [
        # CLIP-ViT-H-14-laion2B, with its scale.
        (ClipReward, 986_109_441),
        # Qwen2-VL-7B-Instruct less its output layer, and the head of HPSv3.
        (QwenReward, 8_291_375_616 - 152_064 * 3584 + 3585 * 1024 + 1025 * 16 + 17 * 2),
    ],
)
def test_parameters_of_other_rewards(reward, published):
    with torch.device("meta"):
        model = reward(Sizes(), torch.bfloat16)
    assert sum(weight.numel() for weight in model.parameters()) == published


def test_parameters_of_the_pipeline():
    """Those of the text encoders and the VAE on the Hub; the largest layer is T5's table of embeddings."""
    parts = build_pipeline_parts(torch.bfloat16)
    assert {name: sum(weight.numel() for weight in part.parameters()) for name, part in parts.items()} == {
        "text_encoder": 123_650_304,
        "text_encoder_2": 694_659_840,
        "text_encoder_3": 4_762_310_656,
        "vae": 83_819_683,
    }
    assert largest_layer_bytes(parts["text_encoder_3"]) == 32_128 * 4096 * 2


def test_parameters_of_image_reward():
    """Its checkpoint has 1.79 GB in float32."""
    with torch.device("meta"):
        model = BlipReward(Sizes(), torch.float32)
    assert sum(weight.nbytes for weight in model.parameters()) == pytest.approx(1.79e9, rel=0.01)


def test_patches_are_those_of_the_image_processor():
    image = torch.rand(1, 3, 56, 56)
    processor = Qwen2VLImageProcessor(do_resize=False, do_rescale=False, do_normalize=False)
    expected = processor(images=[image[0].numpy()], return_tensors="pt", input_data_format="channels_first")
    torch.testing.assert_close(patches(image, 14, 2, 2), expected["pixel_values"])


@pytest.mark.parametrize("reward", [ClipReward, BlipReward, QwenReward])
def test_gradients_of_other_rewards_reach_the_latent(reward):
    torch.manual_seed(0)
    model = DecodedReward(build_decoder(MINIATURE, torch.float32), reward(MINIATURE, torch.float32))
    model.eval().requires_grad_(False)
    latents = torch.randn(2, 16, 8, 8)
    assert model(latents).shape == (2,)
    found = gradient(Contender(model, model), latents)
    assert found.shape == latents.shape
    assert found.isfinite().all()
    assert found.flatten(1).any(dim=1).all()


def test_claims_by_hand():
    def cost(flops, weights, kept):
        return {"forward": {"flops": flops}, "weight_bytes": weights, "gradient": {"kept_bytes": kept}}

    rewards = {measure_cost.DINA: cost(3, 1, 1), measure_cost.HPSV3: cost(12, 4, 4)}
    flops, memory = claims(rewards, cost(0, 3, 1))
    assert flops["found"] == {"with decoding": 0.75}
    assert memory["found"] == {"reward alone": 0.75, "reward and generator": 0.5}


@pytest.mark.slow
def test_a_dry_run_keeps_what_is_counted_here():
    """Activations of generator and reward: with fused attention, which counts at more pixels than usual."""
    side, dtype = 128, torch.float32
    model = build_model(SMALL, "meta", dtype)
    inputs = build_inputs(model, side, 1)
    rewards = contenders(SMALL, model, inputs, dtype, compiled=False)
    counted = [count(each, inputs.latents) for each in (rewards[measure_cost.DINA], policy(model, inputs, dtype))]
    fields = {"resolution": side, "batch_size": 1, "lora_rank": measure_cost.POLICY_RANK, "dtype": "float32"}
    cost = Cost(*load_run(CONFIG, **fields))
    expected = sum(each["gradient"]["kept_bytes"] for each in counted)
    assert cost.memory["activations"] == pytest.approx(expected, rel=0.01)


@pytest.mark.slow
def test_all_rewards_on_a_cpu(tmp_path):
    out = tmp_path / "cost.json"
    ran = command("--device", "cpu", "--batch-size", "2", "--others", "--rounds", "2", "--out", str(out))
    assert ran.exit_code == 0, ran.output
    result = json.loads(out.read_text())
    assert set(result["seconds"]) == set(result["flops"]) == set(result["peak_bytes"])
    assert result["seconds"]["reward, 3 levels x 4 draws"] > result["seconds"]["reward, 1 level"] > 0
    expected = {
        "DiNa-LRM, 1 level",
        "DiNa-LRM, 3 levels",
        "PickScore, HPSv2",
        "ImageReward",
        "HPSv3",
        "decoding alone",
    }
    assert set(result["rewards"]) == expected
    for name, reward in result["rewards"].items():
        for kind in ("forward", "gradient"):
            assert reward[kind]["images_per_second"] == pytest.approx(2 / reward[kind]["seconds"])
            assert reward[kind]["peak_bytes"] >= 0
            assert name in ran.output
        assert reward["gradient"]["flops"] > reward["forward"]["flops"] > 0
        assert reward["gradient"]["kept_bytes"] > 0
    # Miniatures of the others are held against no claim.
    assert "claims" not in result


@pytest.mark.slow
def test_command_writes_what_repeats_it(written):
    result = json.loads(written.read_text())
    assert (result["kind"], result["settings"]["device"]) == ("cost", "meta")
    assert result["command"].endswith(f" --out {written}")
    written.unlink()
    repeated = command(*result["command"].split()[3:])
    assert repeated.exit_code == 0, repeated.output
    assert json.loads(written.read_text()) == result


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--resolution", "65"], "resolution"),
        (["--resolution", "-16"], "resolution"),
        (["--dtype", "int8"], "dtype"),
        (["--preset", "sd35"], "preset"),
        (["--preset", "flux1-dev", "--others"], "others"),
        (["--out", "nowhere/cost.json"], "out"),
        (["--out", "cost.txt"], "out"),
    ],
)
def test_rude_arguments(arguments, named):
    result = command(*arguments)
    assert result.exit_code == 2
    assert f"{named}: expected" in " ".join(result.output.split())
