"""Cached latents: written and read back bit by bit, and never unpickled."""

import io

import numpy as np
import pytest
import torch

from modeling_dina.data.latents import pack, unpack
from training.preference_data.latents import read_latents


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_round_trip(dtype):
    latents = torch.randn(4, 3, 5).to(dtype)
    assert torch.equal(unpack(pack(latents)), latents)
    assert torch.equal(unpack(pack(latents.transpose(1, 2))), latents.transpose(1, 2))


class Trap:
    def __reduce__(self):
        return pytest.fail, ("unpickled",)


def saved(array):
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (saved(np.array([Trap()], dtype=object)), "expected .npy bytes"),
        (b"", "got 0 bytes"),
        (None, "got 0 bytes"),
        (b"not an array", "expected .npy bytes"),
        (saved(np.zeros((2, 3, 4)))[:-1], "expected .npy bytes"),
        (saved(np.zeros((2, 3))), r"expected floating-point numbers \[C, H, W\], got float64 \[2, 3\]"),
        (saved(np.zeros((2, 3, 4), np.int8)), "got int8"),
    ],
)
def test_other_bytes_are_refused(data, message):
    with pytest.raises(ValueError, match=f"latents: .*{message}"):
        unpack(data)


def test_a_folder_without_all_its_shards_is_refused(tmp_path):
    with pytest.raises(ValueError, match="folder: expected shards of latents"):
        read_latents(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train-00000-of-00002.parquet").touch()
    with pytest.raises(ValueError, match="folder: expected 2 shards, got 1"):
        read_latents(tmp_path)
