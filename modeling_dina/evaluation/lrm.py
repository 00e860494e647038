"""LRM, a diffusion model as a reward on noisy latents (arXiv 2502.01051), as a baseline: the cosine of projected
features of a UNet and of CLIP's text, times a learnt scale."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from modeling_dina.backbone_dina import (
    allocate_backbone,
    backbone_class,
    build_backbone,
    load_base_weights,
    read_backbone_type,
    read_transformer_config,
)
from modeling_dina.conditioning_dina import encode_prompts
from modeling_dina.configuration_dina import DinaConfig
from modeling_dina.identity import weights_hash
from modeling_dina.latents_dina import encode_images
from modeling_dina.noising_dina import path_from_scheduler, shared_noise
from modeling_dina.pipelines_dina import PIPELINES
from modeling_dina.presets_dina import PRESETS
from modeling_dina.weights_dina import TransformerWeights

PREFIX = "lrm:"
TIMESTEP = 1  # of the authors' validation
GUIDANCE = 7.5  # of the features of the mid block, as published
BASES = {"sd": "sd1.5", "sdxl": "sdxl"}


class LRM:
    """
    LRM on Stable Diffusion 1.5 or XL, in the layout of its authors: `unet/`, `text_encoder/`, for XL also
    `text_encoder_2/`, and `state_dict.pt` with `visual_projection`, `logit_scale` and, except for XL,
    `text_projection`.

    Calling it with prompts and images returns one reward per image. Images are resized to the square that the UNet was
    trained on. The noise is the same for all images.

    Args:
        folder: the checkpoint.
        base: diffusers pipeline with VAE, tokenizers and scheduler, a folder or Hub id; None uses the published model.
        device: device to compute on.
        hub: options of the Hub's loaders for `base`, such as `revision` or `cache_dir`.

    Attributes:
        revision: hashes of the weights.

    Raises:
        OSError, ValueError: a part is missing or does not fit.
    """

    def __init__(self, folder: str, base: str | None = None, device: str | torch.device = "cpu", **hub):
        if not os.path.isfile(weights := os.path.join(folder, "state_dict.pt")):
            raise ValueError(f"scorer: expected {PREFIX} and a folder with unet/ and state_dict.pt, got {folder}")
        family = read_backbone_type(folder)
        if family not in BASES:
            raise ValueError(f"scorer: expected an LRM on one of {sorted(BASES)}, got {family} in {folder}")
        prompts = PIPELINES[family]
        base = base or PRESETS[BASES[family]]["conditioning_source"]
        parts: dict[str, Any] = {"text_encoder": CLIPTextModel.from_pretrained(folder, subfolder="text_encoder")}
        if family == "sdxl":
            parts["text_encoder_2"] = CLIPTextModelWithProjection.from_pretrained(folder, subfolder="text_encoder_2")
        self.pipeline = prompts.pipeline_class.from_pretrained(base, **hub, **dict.fromkeys(prompts.unused), **parts)
        self.pipeline.to(device)

        whole, _ = read_transformer_config(family, folder)
        scheduler = dict(self.pipeline.scheduler.config)
        fields = backbone_class(family).default_fields(whole)  # all down blocks and the mid block
        config = DinaConfig(backbone_type=family, transformer_config=whole, scheduler_config=scheduler, **fields)
        with torch.device("meta"):
            self.backbone = build_backbone(config)
        allocate_backbone(self.backbone, torch.float32)
        load_base_weights(self.backbone, TransformerWeights(folder, component="unet"), origin=folder)
        self.backbone.to(device).eval()
        self.path = path_from_scheduler(scheduler)
        state = torch.load(weights, map_location=device, weights_only=True)
        self.visual_projection = state["visual_projection"]["weight"].float()
        self.text_projection = state["text_projection"]["weight"].float() if "text_projection" in state else None
        self.scale = state["logit_scale"].float().exp()
        self.revision = {name: weights_hash(Path(folder, name)) for name in ("unet", *parts)}

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> list[float]:
        """Compute one reward per image, [B], for B prompts and images."""
        visual = self._visual_features(self._noisy_latents(images), prompts)
        image_features = F.linear(visual, self.visual_projection)
        text_features = self._text_features(prompts)
        return (self.scale * F.cosine_similarity(image_features, text_features, dim=-1)).tolist()

    def _noisy_latents(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Latents [B, C, h, w] of images at the first noise level."""
        pipeline = self.pipeline
        side = self.backbone.dimensions.training_side * pipeline.vae_scale_factor
        resized = [image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR) for image in images]
        pixels = pipeline.image_processor.preprocess(resized)
        latents = encode_images(pipeline.vae, pixels.to(pipeline.vae.device))
        noise = shared_noise(latents.shape[1:], 1)[0].to(latents.device)
        return self.path.add_noise(latents, noise, self.path.sigmas[TIMESTEP])

    def _visual_features(self, noisy_latents: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """Means of all feature maps, [B, sum of their widths]. That of the mid block is guided."""
        timestep = torch.full([len(noisy_latents)], TIMESTEP, device=noisy_latents.device)

        def means(texts):
            encoded = encode_prompts(self.pipeline, texts, self.backbone.dimensions.text_length)
            return [tokens.mean(dim=1) for tokens in self.backbone(noisy_latents, timestep, *encoded).visual]

        *down, mid = means(prompts)
        unconditional = means([""] * len(prompts))[-1]
        return torch.cat([*down, unconditional + GUIDANCE * (mid - unconditional)], dim=-1)

    def _text_features(self, prompts: Sequence[str]) -> torch.Tensor:
        """Pooled text embeddings [B, D] in the space of `visual_projection`."""
        if self.text_projection is None:
            return encode_prompts(self.pipeline, prompts, self.backbone.dimensions.text_length).pair()[1]
        tokenizer, encoder = self.pipeline.tokenizer, self.pipeline.text_encoder
        length = tokenizer.model_max_length
        tokens = tokenizer(
            list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        return F.linear(encoder(tokens.input_ids.to(encoder.device)).pooler_output, self.text_projection)


__all__ = ["LRM", "PREFIX"]
