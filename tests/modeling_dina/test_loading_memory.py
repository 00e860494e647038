"""Loading a model takes hardly more memory than the model: blocks that it does not use are never in memory."""

import json

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel

from modeling_dina import DinaRewardModel
from tests.official_layout import LORA, write_official
from tests.processes import Worker

# 24 blocks, of which the model uses 12: about 220 MB and 130 MB in float32.
TRANSFORMER = {
    "sample_size": 16,
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 4,
    "joint_attention_dim": 64,
    "caption_projection_dim": 256,
    "pooled_projection_dim": 64,
    "pos_embed_max_size": 96,
    "dual_attention_layers": list(range(6)),
    "qk_norm": "rms_norm",
}
FIELDS = {"num_layers": 12, "visual_layers": [4, 8, 12], "text_layers": [4, 8, 12], "lora": LORA}


def write_base(folder):
    """A diffusers folder with random weights, in two files."""
    with torch.device("meta"):
        whole = SD3Transformer2DModel(**TRANSFORMER)
    weights = {
        name: torch.empty_like(value, device="cpu").uniform_(-0.1, 0.1) for name, value in whole.state_dict().items()
    }
    whole.load_state_dict(weights, assign=True)
    whole.save_pretrained(folder / "transformer", max_shard_size="150MB")
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(folder / "scheduler")


@pytest.mark.slow
def test_the_peak_of_loading(tiny_model, tmp_path):
    write_base(tmp_path / "base")
    model = DinaRewardModel.from_backbone(tmp_path / "base", **FIELDS)
    write_official(tmp_path / "official", model, backbone_model_id="owner/base")
    model.save_pretrained(tmp_path / "adapter", adapter_only=True)
    tiny_model.save_pretrained(tmp_path / "small")
    folders = [tmp_path / name for name in ("base", "official", "adapter", "small")]
    worker = Worker("tests.measure_loading", *folders, json.dumps(FIELDS), environment={})
    printed, _ = worker.communicate()
    assert worker.returncode == 0, printed
    peaks = json.loads(printed.splitlines()[-1])
    assert {name: peak / retained for name, (retained, peak) in peaks.items() if peak > 1.1 * retained} == {}
    assert peaks["half"][0] < 0.6 * peaks["backbone"][0]
