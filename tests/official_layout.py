"""A writer of the published checkpoint layout, the inverse of `DinaRewardModel.from_official`."""

import json

import torch
from peft import LoraConfig, get_peft_model

from modeling_dina import DinaConfig
from modeling_dina.backbone_dina import backbone_class

LORA = {"rank": 2, "alpha": 4, "targets": ["to_q", "to_out.0", "add_k_proj"]}


def write_official(folder, model, *, num_layers=None, full_model=False, **settings):
    """Write `model` as the published layout has it: the inverse of `from_official`."""
    config = model.config
    lora = {"r": LORA["rank"], "lora_alpha": LORA["alpha"]}
    published = {
        "backbone_model_id": config.base_model,
        "num_transformer_layers": num_layers or config.num_layers,
        "use_lora": config.lora is not None,
        "lora_config": lora,
        "use_text_features": True,
        "use_t_embed": True,
        "use_logistic": config.logistic,
        "visual_head_idx": config.visual_layers,
        "text_head_idx": config.text_layers,
        "reward_head": {
            "use_proj_in": config.project_in,
            "width": config.head_width or -1,
            "out_dim": 1,
            "num_queries": config.num_queries,
            "num_attn_heads": config.num_attention_heads,
            "dropout": 0.0,
        },
        **settings,
    }
    checkpoint = folder / "checkpoint"
    checkpoint.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model": published, "training": {}}))
    if full_model:
        parts = {"backbone.": model.backbone, "rm_head.": model.head}
        whole = {prefix + key: value for prefix, part in parts.items() for key, value in part.state_dict().items()}
        torch.save(whole, checkpoint / "full_model.pt")
        return folder
    torch.save(model.head.state_dict(), checkpoint / "rm_head.pt")
    if config.lora is not None:
        plain = backbone_class(config.backbone_type)(DinaConfig(**{**config.to_dict(), "lora": None}))
        peft = get_peft_model(plain, LoraConfig(**lora, target_modules=list(config.lora["targets"])))
        own = model.backbone.state_dict()
        peft.load_state_dict({f"base_model.model.{key}": value for key, value in own.items()})
        peft.save_pretrained(checkpoint / "backbone_lora")
    return folder
