"""Check that a policy and a reward model have the same latent space and text conditioning."""

from pathlib import Path
from typing import Any

import torch
from transformers.utils import cached_file

from modeling_dina import DinaConfig, DinaRewardModel
from modeling_dina.backbone_dina import read_backbone_type
from modeling_dina.conditioning_dina import encode_prompts, load_pipeline
from modeling_dina.latents_dina import encode_images
from modeling_dina.official_dina import is_official, official_fields
from training.align.algorithm import Algorithm
from training.align.generators import GENERATORS, generator_of

PROBE = "a large red circle left of a small blue square"
# Relative. Half precision rounds by a thousandth; outputs of different encoders differ by about their own norm.
TOLERANCE = 0.05


def read_reward_family(source: str, revision: str | None = None, backbone: str | None = None) -> str:
    """The family of a reward model, a key of `BACKBONES`, from configuration files alone.

    Args:
        source: folder or Hub id of the reward model.
        revision: branch, tag or commit on the Hub.
        backbone: diffusion model of a checkpoint in the published layout; None uses the one that it names.
    """
    if not is_official(source, revision):
        return DinaConfig.from_pretrained(source, revision=revision or "main").backbone_type
    path = cached_file(source, "config.json", revision=revision)
    return read_backbone_type(backbone or official_fields(Path(str(path)).parent)[1])


def check_families(
    algorithm: type[Algorithm], policy_family: str, policy: str, reward_family: str, reward: str
) -> None:
    """Raise a ValueError if a policy and a reward model are of different families, or of one that alignment or the
    algorithm does not support; the message names them."""
    if policy_family != reward_family:
        raise ValueError(
            f"policy, reward_model: expected the same family of diffusion models, got {policy_family} of {policy} and "
            f"{reward_family} of {reward}"
        )
    if policy_family not in GENERATORS:
        raise ValueError(f"policy: expected a generator of {sorted(GENERATORS)}, got {policy_family} of {policy}")
    if algorithm.needs_flow and not GENERATORS[policy_family].is_flow:
        raise ValueError(
            f"algorithm: expected one that supports variance-preserving generators, because the policy {policy} is of "
            f"the family {policy_family}, got {algorithm.__name__}, which is defined only for flow matching"
        )


def check_compatible(pipeline: Any, policy: str, model: DinaRewardModel, reward: str) -> None:
    """Encode the same prompt and picture with the encoders of both, and compare the results.

    Args:
        pipeline: pipeline of the policy.
        policy, reward: names of the two in errors.
        model: reward model, whose config refers to its VAE and text encoders.

    Raises:
        ValueError: the two do not match; the message names both, and what differs.
    """
    expected = model.config.dimensions
    sizes = generator_of(pipeline).dimensions
    for name, meaning in (
        ("latent_channels", "latent channels"),
        ("text_width", "width of prompt_embeds"),
        ("pooled_width", "width of pooled_prompt_embeds"),
    ):
        if getattr(sizes, name) != getattr(expected, name):
            raise ValueError(
                f"policy, reward_model: expected the same {meaning}, got {getattr(sizes, name)} of {policy} and "
                f"{getattr(expected, name)} of {reward}"
            )
    if model.conditioning_location()[0] == pipeline.config["_name_or_path"]:
        return
    own = load_pipeline(model)
    probes = [_probe(each, model.config.max_sequence_length) for each in (pipeline, own)]
    for name, ours in probes[0].items():
        theirs = probes[1][name]
        if ours.shape != theirs.shape or (ours - theirs).norm() > TOLERANCE * theirs.norm():
            space = "latent space" if name == "latents" else "text conditioning"
            raise ValueError(
                f"policy, reward_model: expected the same {space}, got {name} of {policy} that are not those of "
                f"{reward} for the same input"
            )


@torch.no_grad()
def _probe(pipeline: Any, max_sequence_length: int) -> dict[str, torch.Tensor]:
    """Embeddings of a prompt, and latents of a picture with smooth colours, in float32 on the CPU."""
    embeddings = encode_prompts(pipeline, [PROBE], max_sequence_length)
    vae = pipeline.vae
    ramp = torch.linspace(-1, 1, 64, device=vae.device, dtype=vae.dtype)
    picture = torch.stack([ramp.expand(64, 64), ramp[:, None].expand(64, 64), ramp.flip(0).expand(64, 64)])[None]
    tensors = {**embeddings._asdict(), "latents": encode_images(vae, picture)}
    return {name: tensor.float().cpu() for name, tensor in tensors.items() if tensor is not None}
