"""Stage one: an autoencoder from 64 x 64 pictures to 16 x 8 x 8 latents."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import nn
from torch.nn.functional import l1_loss, mse_loss

from modeling_dina.files import atomic_path
from training.world.models.pictures import Pictures
from training.world.models.stage import train_stage
from training.world.seeds import Seed

# Weight of the Kullback-Leibler term, averaged over latent values. It is large for a latent-diffusion autoencoder, so
# that latents remain informative for a reward model under diffusion noise.
KL_WEIGHT = 2e-4
# The squared error is needed to learn the shapes, which cover a tenth of a picture: under the absolute error alone,
# plain grey remains a good solution for long. The absolute error later sharpens edges.
ABSOLUTE_WEIGHT = 0.1
DEFECT_SHARE = 0.4  # share of pictures with a defect


class AutoencoderObjective(nn.Module):
    """Sum of the squared and the absolute error of the pixels and of the Kullback-Leibler term."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        posterior = self.vae.encode(pixel_values).latent_dist
        decoded = self.vae.decode(posterior.sample()).sample.float()
        error = mse_loss(decoded, pixel_values) + ABSOLUTE_WEIGHT * l1_loss(decoded, pixel_values)
        return {"loss": error + KL_WEIGHT * posterior.kl().mean() / posterior.mean[0].numel()}


def build_autoencoder(directory: Path, *, images: int, sample: int, batch_size: int = 32) -> AutoencoderKL:
    """Train the autoencoder and save it under `pipeline/vae/`.

    Args:
        directory: folder of the build.
        images: number of training pictures, each used once.
        sample: number of pictures whose latents are scaled to mean 0 and variance 1.
        batch_size: pictures per update.
    """
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 96),
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=8,
        sample_size=64,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )
    train_stage(
        AutoencoderObjective(vae),
        Pictures(Seed.AUTOENCODER, size=images, defect_share=DEFECT_SHARE),
        directory / "autoencoder",
        batch_size=batch_size,
        save_steps=250,
        learning_rate=1.5e-3,
        bf16=True,
    )
    pictures = Pictures(Seed.LATENT_SCALE, size=sample, defect_share=DEFECT_SHARE)
    with torch.no_grad():
        latents = torch.cat(
            [vae.encode(pictures[i]["pixel_values"][None].to(vae.device)).latent_dist.mode() for i in range(sample)]
        )
    vae.register_to_config(shift_factor=latents.mean().item(), scaling_factor=1 / latents.std().item())
    with atomic_path(directory / "pipeline" / "vae") as partial:
        vae.save_pretrained(partial)
    return vae
