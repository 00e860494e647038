"""Stage one: an autoencoder from 64 x 64 pictures to 16 x 16 x 16 latents."""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import nn
from torch.nn.functional import l1_loss, mse_loss

from modeling_dina.files import atomic_path
from training.world.latents import encode
from training.world.models.stage import Batches, train_stage

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

    def forward(self, pictures: torch.Tensor) -> dict[str, torch.Tensor]:
        """Half of the pictures, RGB uint8 [B, 64, 64, 3], are mirrored."""
        pixels = pictures.movedim(-1, 1).float() / 127.5 - 1
        mirrored = torch.rand(len(pixels), 1, 1, 1, device=pixels.device) < 0.5
        pixels = torch.where(mirrored, pixels.flip(-1), pixels)
        posterior = self.vae.encode(pixels).latent_dist
        decoded = self.vae.decode(posterior.sample()).sample.float()
        error = mse_loss(decoded, pixels) + ABSOLUTE_WEIGHT * l1_loss(decoded, pixels)
        return {"loss": error + KL_WEIGHT * posterior.kl().mean() / posterior.mean[0].numel()}


def build_autoencoder(
    directory: Path, pictures: np.ndarray, sample: np.ndarray, *, updates: int, batch_size: int, device: str
) -> AutoencoderKL:
    """Train the autoencoder and save it under `pipeline/vae/`.

    Args:
        directory: folder of the build.
        pictures: training pictures, RGB uint8 [N, 64, 64, 3].
        sample: pictures whose latents are scaled to mean 0 and variance 1.
        updates, batch_size: number of updates, and pictures per update.
        device: device of the training.
    """
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 48, 64),
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=8,
        sample_size=64,
        scaling_factor=1.0,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    ).to(device)
    train_stage(
        AutoencoderObjective(vae),
        Batches({"pictures": torch.from_numpy(pictures).to(device)}, updates=updates, batch_size=batch_size),
        directory / "autoencoder",
        learning_rate=1.5e-3,
        bf16=True,
    )
    latents = encode(vae, sample).float()
    vae.register_to_config(shift_factor=latents.mean().item(), scaling_factor=1 / latents.std().item())
    with atomic_path(directory / "pipeline" / "vae") as partial:
        vae.save_pretrained(partial)
    return vae
