"""Stage two: a Stable Diffusion 3 pipeline with text encoders and transformer trained jointly by flow matching."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from diffusers.training_utils import compute_density_for_timestep_sampling
from torch import nn
from torch.nn.functional import mse_loss

from modeling_dina.files import atomic_path
from modeling_dina.noising_dina import rectified_flow_state
from training.world.models import text
from training.world.models.settings import Settings
from training.world.models.stage import Batches, train_stage

HEADS, HEAD_WIDTH = 5, 32
# Shift of the noise levels, in training and in sampling, as in Stable Diffusion 3: a latent of 16 x 16 loses its
# shapes only above sigma 0.6, so that the content is decided above.
SHIFT = 3.0
# Share of training pictures with a defect, so that the generator also learns defects, like one trained on web data.
DEFECT_SHARE = 0.1
# Share of captions dropped in training, for classifier-free guidance.
UNCONDITIONAL = 0.1


class FlowMatchingObjective(nn.Module):
    """Mean squared error of the velocity `eps - x0` at shifted logit-normal noise levels (Stable Diffusion 3)."""

    def __init__(self, pipeline: StableDiffusion3Pipeline) -> None:
        super().__init__()
        self.transformer = pipeline.transformer
        self.text_encoders = text.TextEncoders(pipeline)
        self.no_text: torch.Tensor
        self.register_buffer("no_text", text.tokenize(pipeline, [""]), persistent=False)

    def forward(self, latents: torch.Tensor, clip_ids: torch.Tensor, t5_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        latents = latents.float()
        dropped = torch.rand(len(latents), 1, device=latents.device) < UNCONDITIONAL
        ids = [
            torch.where(dropped, no_text, ids) for no_text, ids in zip(self.no_text, (clip_ids, t5_ids), strict=True)
        ]
        prompt_embeds, pooled_prompt_embeds = self.text_encoders(*ids)
        u = compute_density_for_timestep_sampling("logit_normal", len(latents), 0.0, 1.0, device=latents.device)
        sigma = SHIFT * u / (1 + (SHIFT - 1) * u)
        noise = torch.randn_like(latents)
        state = rectified_flow_state(latents, noise, sigma)
        velocity = self.transformer(state, prompt_embeds, pooled_prompt_embeds, 1000 * sigma).sample
        return {"loss": mse_loss(velocity.float(), noise - latents)}


def new_pipeline(vae: AutoencoderKL) -> StableDiffusion3Pipeline:
    """Create the generator with a trained autoencoder and randomly initialised text encoders and transformer."""
    clip_tokenizer, t5_tokenizer = text.build_clip_tokenizer(), text.build_t5_tokenizer()
    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=6,
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_WIDTH,
        caption_projection_dim=HEADS * HEAD_WIDTH,
        joint_attention_dim=text.T5_WIDTH,
        pooled_projection_dim=2 * text.CLIP_WIDTH,
        pos_embed_max_size=16,
        qk_norm="rms_norm",
    )
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        vae=vae,
        text_encoder=text.build_clip_encoder(clip_tokenizer),
        tokenizer=clip_tokenizer,
        text_encoder_2=text.build_clip_encoder(clip_tokenizer),
        tokenizer_2=clip_tokenizer,
        text_encoder_3=text.build_t5_encoder(t5_tokenizer),
        tokenizer_3=t5_tokenizer,
    )


def build_generator(
    directory: Path,
    vae: AutoencoderKL,
    latents: torch.Tensor,
    captions: list[str],
    settings: Settings,
    device: str,
) -> StableDiffusion3Pipeline:
    """
    Train the generator, and save it under `pipeline/`.

    Args:
        directory: folder of the build.
        vae: autoencoder.
        latents, captions: training set, float16 [N, 16, 16, 16] in model space.
        settings: numbers of updates and of pictures per update, and how they are computed.
        device: device of the training.
    """
    pipeline = new_pipeline(vae).to(device)
    clip_ids, t5_ids = text.tokenize(pipeline, captions).to(device)
    rows = {"latents": latents.to(device), "clip_ids": clip_ids, "t5_ids": t5_ids}
    objective = FlowMatchingObjective(pipeline)
    if settings.compiled:
        for block in pipeline.transformer.transformer_blocks:
            block.compile()
    train_stage(
        objective,
        Batches(rows, updates=settings.generator_updates, batch_size=settings.generator_batch),
        directory / "generator",
        learning_rate=1e-3,
        ema_decay=0.9995,
        bf16=settings.bf16,
    )
    with atomic_path(directory / "pipeline") as partial:
        pipeline.save_pretrained(partial)
    return StableDiffusion3Pipeline.from_pretrained(directory / "pipeline").to(device)
