"""Model cards: metadata as the Hub reads it, and nothing left to fill in."""

import pytest
from huggingface_hub import ModelCard

from modeling_dina import DinaConfig
from training.card import write_card

MEDIUM = "stabilityai/stable-diffusion-3.5-medium"
LORA = {"rank": 4, "alpha": 8, "targets": ["to_q"]}


@pytest.mark.parametrize("adapter_only", [True, False])
def test_weights_made_from_sd35(tmp_path, adapter_only):
    config = DinaConfig(base_model=MEDIUM, adapter_only=adapter_only, lora=LORA)
    write_card(tmp_path, config, {"learning rate": 1e-4, "loss": "a|b\nc"}, {"accuracy": 0.76543}, "owner/name")
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "transformers"
    assert card.data.base_model == MEDIUM
    assert card.data.to_dict()["base_model_relation"] == ("adapter" if adapter_only else "finetune")
    assert card.data.license == "other"
    assert card.data.license_name == "stabilityai-ai-community"
    assert card.data.license_link == f"https://huggingface.co/{MEDIUM}/blob/main/LICENSE.md"
    assert 'AutoModel.from_pretrained("owner/name", trust_remote_code=True)' in card.text
    assert "| learning rate | 0.0001 |\n| loss | a\\|b c |\n" in card.text
    assert "| accuracy | 0.7654 |" in card.text
    assert ("LoRA adapter" in card.text) is adapter_only
    assert "More Information Needed" not in card.content
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_weights_of_its_own_and_no_evaluation(tmp_path):
    write_card(tmp_path, DinaConfig(), {"steps": 10}, {})
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.license == "apache-2.0"
    assert card.data.base_model is None
    assert "## Evaluation" not in card.text
    assert "None" not in card.content


def test_a_base_on_this_machine_is_not_named(tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    write_card(tmp_path, DinaConfig(base_model=str(base)), {}, {})
    card = ModelCard.load(tmp_path / "README.md")
    assert "license" not in card.data.to_dict()
    assert str(base) not in card.content
    assert "inherit its licence" in card.text


def test_a_card_that_is_there_stays(tmp_path):
    (tmp_path / "README.md").write_text("mine")
    write_card(tmp_path, DinaConfig(), {}, {})
    assert (tmp_path / "README.md").read_text() == "mine"
