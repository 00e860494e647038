"""A reward model on pixels, the baseline for the latent reward."""

import torch
from diffusers import AutoencoderKL
from huggingface_hub import PyTorchModelHubMixin
from torch import nn


class PixelRewardModel(nn.Module, PyTorchModelHubMixin):
    """
    Scores pictures for captions with a small transformer on features of an autoencoder's encoder and text embeddings.

    Args:
        vae_config: config of the autoencoder whose frozen encoder is the vision encoder.
        text_width: width of prompt_embeds.
        width: width of the transformer.
        layers: number of layers of the transformer.
    """

    def __init__(self, vae_config: dict, text_width: int, width: int = 128, layers: int = 3) -> None:
        super().__init__()
        vae = AutoencoderKL.from_config(vae_config)
        self.vision_encoder = vae.encoder.requires_grad_(False)
        self.vision_encoder.conv_out = nn.Identity()  # returns the features before their projection to latents
        channels = vae.config.block_out_channels
        side = vae.config.sample_size // 2 ** (len(channels) - 1)
        self.from_picture, self.from_text = nn.Linear(channels[-1], width), nn.Linear(text_width, width)
        self.position = nn.Parameter(0.02 * torch.randn(side * side, width))
        self.query = nn.Parameter(0.02 * torch.randn(1, 1, width))
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.reader = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.score = nn.Linear(width, 1)

    def features(self, pictures: torch.Tensor) -> torch.Tensor:
        """Vision features [B, tokens, channels] of pictures [B, 3, H, W] in [-1, 1]."""
        return self.vision_encoder(pictures).flatten(2).transpose(1, 2)

    def read(self, features: torch.Tensor, prompt_embeds: torch.Tensor) -> torch.Tensor:
        """Scores [B] of features [B, tokens, channels] for prompt_embeds [B, L, D]."""
        picture = self.from_picture(features) + self.position
        query = self.query.expand(len(features), -1, -1)
        tokens = torch.cat([query, picture, self.from_text(prompt_embeds)], dim=1)
        return self.score(self.reader(tokens)[:, 0]).squeeze(1)

    def forward(
        self, pictures: torch.Tensor, prompt_embeds: torch.Tensor, pooled_prompt_embeds: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Scores [B] of pictures [B, 3, H, W] in [-1, 1]. The pooled embeddings are unused."""
        return self.read(self.features(pictures), prompt_embeds)

    @classmethod
    def _from_pretrained(cls, **options):
        # By default, the mixin ignores missing and misnamed weights, and leaves them random.
        return super()._from_pretrained(**options | {"strict": True})
