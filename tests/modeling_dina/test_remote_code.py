"""A saved folder is all that is needed: it loads and scores in a process that cannot import the package."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from modeling_dina.remote_code import copy_remote_code, remote_code_files
from tests.families import FAMILIES, tiny_inputs, tiny_reward
from tests.processes import run_code

STRANGER = """
import sys
sys.modules["modeling_dina"] = None  # whatever is installed, `import modeling_dina` fails
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel

for folder in sys.argv[1:]:
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules"), type(model)
    assert type(model.config).__module__.startswith("transformers_modules"), type(model.config)
    with torch.no_grad():
        scores = model.reward(**load_file(folder.removesuffix("-again") + "-inputs"), num_draws=2).scores
    save_file({"scores": scores}, folder + "-outputs")
    model.save_pretrained(folder + "-again")
"""


def test_a_folder_alone_scores_identically(tmp_path):
    """For every family of backbones, in one process."""
    expected = {}
    for family in FAMILIES:
        model, inputs = tiny_reward(family), tiny_inputs(family)
        model.save_pretrained(tmp_path / family)
        save_file(inputs, tmp_path / f"{family}-inputs")
        with torch.no_grad():
            expected[family] = model.reward(**inputs, num_draws=2).scores

    # The second round reads what the stranger itself has saved.
    for suffix in ("", "-again"):
        folders = [str(tmp_path / family) + suffix for family in FAMILIES]
        run_code(STRANGER, *folders, folder=tmp_path)
        for folder, scores in zip(folders, expected.values(), strict=True):
            torch.testing.assert_close(load_file(f"{folder}-outputs")["scores"], scores, rtol=0, atol=1e-6)


def test_the_folder_holds_every_file_the_model_needs(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    code = {path.name for path in remote_code_files()}
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors", *code}


def test_copies_are_brought_up_to_date(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    for name in ("modeling_dina.py", "removed_dina.py"):
        (tmp_path / name).write_text("old")
    copy_remote_code(tmp_path)
    assert sorted(tmp_path.glob("*.py")) == [tmp_path / path.name for path in remote_code_files()]
    assert all((tmp_path / path.name).read_bytes() == path.read_bytes() for path in remote_code_files())


def test_no_other_folder_loses_its_files(tmp_path):
    (tmp_path / "mine.py").write_text("mine")
    with pytest.raises(ValueError, match=f"folder: .*{tmp_path}"):
        copy_remote_code(tmp_path)
    assert (tmp_path / "mine.py").read_text() == "mine"
