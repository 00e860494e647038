"""Check that a policy and a reward model have the same latent space and text conditioning."""

import torch
from diffusers import StableDiffusion3Pipeline

from modeling_dina import DinaRewardModel
from modeling_dina.conditioning_dina import encode_prompts, load_pipeline
from modeling_dina.latents_dina import encode_images

PROBE = "a large red circle left of a small blue square"
# Relative. Half precision rounds by a thousandth; outputs of different encoders differ by about their own norm.
TOLERANCE = 0.05


def check_compatible(pipeline: StableDiffusion3Pipeline, policy: str, model: DinaRewardModel, reward: str) -> None:
    """Encode the same prompt and picture with the encoders of both, and compare the results.

    Args:
        pipeline: pipeline of the policy.
        policy, reward: names of the two in errors.
        model: reward model, whose config refers to its VAE and text encoders.

    Raises:
        ValueError: the two do not match; the message names both, and what differs.
    """
    generator, expected = pipeline.transformer.config, model.config.transformer_config
    for name, meaning in (
        ("in_channels", "latent channels"),
        ("joint_attention_dim", "width of prompt_embeds"),
        ("pooled_projection_dim", "width of pooled_prompt_embeds"),
    ):
        if generator[name] != expected[name]:
            raise ValueError(
                f"policy, reward_model: expected the same {meaning}, got {generator[name]} of {policy} and "
                f"{expected[name]} of {reward}"
            )
    if model.conditioning_location()[0] == pipeline.config["_name_or_path"]:
        return
    own = load_pipeline(model)
    for name, ours, theirs in zip(
        ("prompt_embeds", "pooled_prompt_embeds", "latents"),
        _probe(pipeline, model.config.max_sequence_length),
        _probe(own, model.config.max_sequence_length),
        strict=True,
    ):
        if ours.shape != theirs.shape or (ours - theirs).norm() > TOLERANCE * theirs.norm():
            space = "latent space" if name == "latents" else "text conditioning"
            raise ValueError(
                f"policy, reward_model: expected the same {space}, got {name} of {policy} that are not those of "
                f"{reward} for the same input"
            )


@torch.no_grad()
def _probe(pipeline: StableDiffusion3Pipeline, max_sequence_length: int) -> tuple[torch.Tensor, ...]:
    """Embeddings of a prompt, and latents of a picture with smooth colours, in float32 on the CPU."""
    embeds, pooled = encode_prompts(pipeline, [PROBE], max_sequence_length).pair()
    vae = pipeline.vae
    ramp = torch.linspace(-1, 1, 64, device=vae.device, dtype=vae.dtype)
    picture = torch.stack([ramp.expand(64, 64), ramp[:, None].expand(64, 64), ramp.flip(0).expand(64, 64)])[None]
    return embeds.float().cpu(), pooled.float().cpu(), encode_images(vae, picture).float().cpu()
