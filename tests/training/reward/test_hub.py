"""From a training run to the Hub and back, over HTTP: what a fresh process loads scores like what was trained."""

import json

import pytest
import torch

from modeling_dina import DinaRewardModel
from tests.processes import run_code

LOAD = """
import json, sys
sys.modules["modeling_dina"] = None
import torch
from transformers import AutoModel

model = AutoModel.from_pretrained("lab/reward", trust_remote_code=True, revision=sys.argv[1]).eval()
assert type(model).__module__.startswith("transformers_modules"), type(model)
generator = torch.Generator().manual_seed(0)
inputs = [torch.randn(shape, generator=generator) for shape in json.loads(sys.argv[2])]
print(json.dumps(model.reward(*inputs, num_draws=2).scores.tolist()))
"""


@pytest.mark.slow
def test_pushed_while_training(launch, loopback_hub, output_dir, tmp_path):
    pushing = ("--push_to_hub", "--hub_model_id", "lab/reward", "--hub_strategy", "checkpoint", "--hub_tag", "v1.0")
    environment = loopback_hub.environment(tmp_path / "home") | {"TRACKIO_DIR": str(tmp_path / "trackio")}
    process = launch(*pushing, "--report_to", "trackio", **environment)
    printed = process.communicate(timeout=240)[0]
    assert process.returncode == 0, printed
    assert "tag v1.0" in printed
    assert list((tmp_path / "trackio").glob("*.db"))

    repository = loopback_hub.repos["lab/reward"]
    assert repository.private
    files = repository.files("v1.0")
    assert {"config.json", "model.safetensors", "modeling_dina.py", "README.md"} <= files.keys()
    assert not any(name.endswith((".pt", ".pth", ".bin")) for name in files if "/" not in name)
    assert files["model.safetensors"] == (output_dir / "model" / "model.safetensors").read_bytes()
    state = json.loads(files["last-checkpoint/trainer_state.json"])
    assert state["global_step"] in (2, 4, 6, 8)

    model = DinaRewardModel.from_pretrained(output_dir / "model").eval()
    transformer = model.config.transformer_config
    shapes = [
        (3, transformer["in_channels"], 8, 8),
        (3, 28, transformer["joint_attention_dim"]),
        (3, transformer["pooled_projection_dim"]),
    ]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        scores = model.reward(*(torch.randn(shape, generator=generator) for shape in shapes), num_draws=2).scores
    printed = run_code(
        LOAD, "v1.0", json.dumps(shapes), folder=tmp_path, environment=loopback_hub.environment(tmp_path / "another")
    )
    assert json.loads(printed[-1]) == pytest.approx(scores.tolist(), abs=1e-6)


@pytest.mark.slow
def test_training_outlives_the_hub(launch, loopback_hub, output_dir, tmp_path):
    """Whatever the Hub does, the run ends well, its checkpoints are whole, and what was not pushed is told."""
    loopback_hub.fail("any", status=403, times=10_000)
    process = launch("--push_to_hub", "--hub_model_id", "lab/reward", **loopback_hub.environment(tmp_path / "home"))
    printed = process.communicate(timeout=240)[0]
    assert process.returncode == 0, printed
    assert "not pushed: step 8" in printed
    assert "HF_TOKEN" in printed
    assert DinaRewardModel.from_pretrained(output_dir / "model").config.num_layers == 1
    assert (output_dir / "checkpoint-8" / "optimizer.pt").exists()
    assert not (output_dir / ".pushing").exists()
