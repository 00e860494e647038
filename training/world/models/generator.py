"""Stage two: a Stable Diffusion 3 pipeline with text encoders and transformer trained jointly by flow matching."""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from diffusers.training_utils import compute_density_for_timestep_sampling
from torch import nn
from torch.nn.functional import mse_loss
from torch.utils.data import Dataset

from modeling_dina.files import atomic_path
from modeling_dina.noising_dina import rectified_flow_state
from training.world.latents import Shard, build_shards, encode, load_shards
from training.world.models import text
from training.world.models.pictures import Pictures
from training.world.models.stage import train_stage
from training.world.seeds import Seed

WIDTH = 128
# Share of training pictures with a defect, so that the generator also learns defects, like one trained on web data.
DEFECT_SHARE = 0.1
# Share of captions dropped in training, for classifier-free guidance.
UNCONDITIONAL = 0.1


class CaptionedLatents(Dataset):
    """Latents [16, 8, 8] with their captions, `epochs` times; some captions are replaced by the empty text."""

    def __init__(self, latents: torch.Tensor, captions: list[str], epochs: int) -> None:
        self.latents, self.captions, self.epochs = latents, captions, epochs

    def __len__(self) -> int:
        return self.epochs * len(self.captions)

    def __getitem__(self, index: int) -> dict:
        dropped = torch.rand((), generator=torch.Generator().manual_seed(index)) < UNCONDITIONAL
        row = index % len(self.captions)
        return {"latents": self.latents[row].float(), "caption": "" if dropped else self.captions[row]}


class FlowMatchingObjective(nn.Module):
    """Mean squared error of the velocity `eps - x0` at logit-normal noise levels (Stable Diffusion 3)."""

    def __init__(self, pipeline: StableDiffusion3Pipeline) -> None:
        super().__init__()
        self.transformer = pipeline.transformer
        # T5 without its wrapper, which has two names for the embedding; a checkpoint stores a tensor only once.
        self.text_encoders = nn.ModuleList(
            [pipeline.text_encoder, pipeline.text_encoder_2, pipeline.text_encoder_3.encoder]
        )
        self.encode_prompt = pipeline.encode_prompt

    def forward(self, latents: torch.Tensor, caption: list[str]) -> dict[str, torch.Tensor]:
        prompt_embeds, _, pooled_prompt_embeds, _ = self.encode_prompt(
            caption, None, None, do_classifier_free_guidance=False, max_sequence_length=text.MAX_LENGTH
        )
        sigma = compute_density_for_timestep_sampling("logit_normal", len(latents), 0.0, 1.0, device=latents.device)
        noise = torch.randn_like(latents)
        state = rectified_flow_state(latents, noise, sigma)
        velocity = self.transformer(state, prompt_embeds, pooled_prompt_embeds, 1000 * sigma).sample
        return {"loss": mse_loss(velocity.float(), noise - latents)}


def new_pipeline(vae: AutoencoderKL) -> StableDiffusion3Pipeline:
    """Create the generator with a trained autoencoder and randomly initialised text encoders and transformer."""
    clip_tokenizer, t5_tokenizer = text.build_clip_tokenizer(), text.build_t5_tokenizer()
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=6,
        num_attention_heads=4,
        attention_head_dim=WIDTH // 4,
        caption_projection_dim=WIDTH,
        joint_attention_dim=text.T5_WIDTH,
        pooled_projection_dim=2 * text.CLIP_WIDTH,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
    )
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        vae=vae,
        text_encoder=text.build_clip_encoder(clip_tokenizer),
        tokenizer=clip_tokenizer,
        text_encoder_2=text.build_clip_encoder(clip_tokenizer),
        tokenizer_2=clip_tokenizer,
        text_encoder_3=text.build_t5_encoder(t5_tokenizer),
        tokenizer_3=t5_tokenizer,
    )


def build_generator(
    directory: Path, vae: AutoencoderKL, *, images: int, epochs: int, batch_size: int = 128
) -> StableDiffusion3Pipeline:
    """Train the generator on `images` pictures for `epochs` epochs, and save it under `pipeline/`."""
    pictures = Pictures(Seed.GENERATOR, size=images, defect_share=DEFECT_SHARE)

    def make(indices: range) -> Shard:
        drawn = [pictures.draw(index) for index in indices]
        latents = encode(vae, np.stack([image for _, image in drawn]))
        return Shard({"latents": latents}, [description.caption for description, _ in drawn])

    tensors, captions = load_shards(build_shards(directory / "pictures", images, make))
    pipeline = new_pipeline(vae)
    train_stage(
        FlowMatchingObjective(pipeline),
        CaptionedLatents(tensors["latents"], captions, epochs),
        directory / "generator",
        batch_size=batch_size,
        learning_rate=1e-3,
        dataloader_num_workers=0,
    )
    with atomic_path(directory / "pipeline") as partial:
        pipeline.save_pretrained(partial)
    return pipeline
