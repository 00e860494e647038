"""How the diffusers pipelines of the model families encode prompts."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from diffusers import (
    FluxPipeline,
    PixArtSigmaPipeline,
    QwenImagePipeline,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    ZImagePipeline,
)
from torch.nn.utils.rnn import pad_sequence


class EncodedPrompts(NamedTuple):
    """Text conditioning of B samples, in the order in which `DinaRewardModel.reward` takes it.

    Attributes:
        prompt_embeds: [B, L, D].
        pooled_prompt_embeds: [B, P]; None for families without them.
        prompt_embeds_mask: bool [B, L], True for text and False for padding behind it; None if there is no padding.
    """

    prompt_embeds: torch.Tensor
    pooled_prompt_embeds: torch.Tensor | None = None
    prompt_embeds_mask: torch.Tensor | None = None

    def take(self, rows: Sequence[int]) -> "EncodedPrompts":
        """The samples `rows`, which may repeat."""
        return self._map(lambda part: part[list(rows)])

    def repeat(self, count: int) -> "EncodedPrompts":
        """All samples, `count` times in succession."""
        return self._map(lambda part: part.repeat(count, *[1] * (part.ndim - 1)))

    def to(self, device: torch.device) -> "EncodedPrompts":
        """The same on another device."""
        return self._map(lambda part: part.to(device))

    def _map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> "EncodedPrompts":
        optional = (None if part is None else function(part) for part in self[1:])
        return EncodedPrompts(function(self.prompt_embeds), *optional)

    def pair(self) -> tuple[torch.Tensor, torch.Tensor]:
        """`prompt_embeds` and `pooled_prompt_embeds`, for code that supports only families with both and without a
        mask.

        Raises:
            ValueError: there are no pooled embeddings, or there is a mask.
        """
        if self.pooled_prompt_embeds is None or self.prompt_embeds_mask is not None:
            raise ValueError(
                "pooled_prompt_embeds: expected pooled embeddings and no mask, got those of another family"
            )
        return self.prompt_embeds, self.pooled_prompt_embeds

    def split(self) -> list["EncodedPrompts"]:
        """Each sample as a batch of one, without padding."""
        samples = [self.take([row]) for row in range(len(self.prompt_embeds))]
        if self.prompt_embeds_mask is None:
            return samples
        lengths = self.prompt_embeds_mask.sum(dim=1).tolist()
        return [
            EncodedPrompts(sample.prompt_embeds[:, :length], sample.pooled_prompt_embeds)
            for sample, length in zip(samples, lengths, strict=True)
        ]

    @classmethod
    def join(cls, samples: Iterable["EncodedPrompts"]) -> "EncodedPrompts":
        """One batch of samples that have been `split`, padded to the longest text."""
        samples = list(samples)
        embeds = [sample.prompt_embeds[0] for sample in samples]
        pooled = [sample.pooled_prompt_embeds for sample in samples if sample.pooled_prompt_embeds is not None]
        lengths = [len(each) for each in embeds]
        mask = None
        if len(set(lengths)) > 1:
            device = embeds[0].device
            mask = torch.arange(max(lengths), device=device) < torch.tensor(lengths, device=device)[:, None]
        return cls(pad_sequence(embeds, batch_first=True), torch.cat(pooled) if pooled else None, mask)


class Tokenization(NamedTuple):
    """What one tokenizer of a pipeline sees of prompts.

    Attributes:
        tokenizer: the tokenizer's name in the pipeline.
        texts: the prompts, with the pipeline's template.
        limit: number of tokens that are used.
        prefix: number of first tokens, all of the template, that are dropped and do not count.
    """

    tokenizer: str
    texts: list[str]
    limit: int
    prefix: int = 0


class SD3Prompts:
    """Stable Diffusion 3 and 3.5."""

    pipeline_class: Any = StableDiffusion3Pipeline
    # Components that encode neither prompts nor images.
    unused = ("transformer",)

    @staticmethod
    def encode(pipeline, prompts: list[str], max_sequence_length: int) -> EncodedPrompts:
        """Encode prompts on the pipeline's device."""
        embeds, _, pooled, _ = pipeline.encode_prompt(
            prompts,
            prompt_2=None,
            prompt_3=None,
            do_classifier_free_guidance=False,
            max_sequence_length=max_sequence_length,
        )
        return EncodedPrompts(embeds, pooled)

    @staticmethod
    def tokenizations(pipeline, prompts: list[str], max_sequence_length: int) -> list[Tokenization]:
        """What each tokenizer sees of prompts."""
        seen = [Tokenization(name, prompts, pipeline.tokenizer_max_length) for name in ("tokenizer", "tokenizer_2")]
        if pipeline.text_encoder_3 is not None:
            seen.append(Tokenization("tokenizer_3", prompts, max_sequence_length))
        return seen


class FluxPrompts:
    """FLUX.1."""

    pipeline_class: Any = FluxPipeline
    unused = ("transformer",)

    @staticmethod
    def encode(pipeline, prompts, max_sequence_length):
        embeds, pooled, _ = pipeline.encode_prompt(prompts, max_sequence_length=max_sequence_length)
        return EncodedPrompts(embeds, pooled)

    @staticmethod
    def tokenizations(pipeline, prompts, max_sequence_length):
        return [
            Tokenization("tokenizer", prompts, pipeline.tokenizer_max_length),
            Tokenization("tokenizer_2", prompts, max_sequence_length),
        ]


class ZImagePrompts:
    """Z-Image."""

    pipeline_class: Any = ZImagePipeline
    unused = ("transformer",)

    @staticmethod
    def encode(pipeline, prompts, max_sequence_length):
        # The pipeline writes its template into the list that it is given.
        texts, _ = pipeline.encode_prompt(
            list(prompts), do_classifier_free_guidance=False, max_sequence_length=max_sequence_length
        )
        return EncodedPrompts.join(EncodedPrompts(text[None]) for text in texts)

    @staticmethod
    def tokenizations(pipeline, prompts, max_sequence_length):
        texts = [
            pipeline.tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}],
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=True,
            )
            for prompt in prompts
        ]
        return [Tokenization("tokenizer", texts, max_sequence_length)]


class QwenImagePrompts:
    """Qwen-Image."""

    pipeline_class: Any = QwenImagePipeline
    unused = ("transformer",)

    @staticmethod
    def encode(pipeline, prompts, max_sequence_length):
        embeds, mask = pipeline.encode_prompt(prompts, max_sequence_length=max_sequence_length)
        return EncodedPrompts(embeds, None, None if mask is None else mask.bool())

    @staticmethod
    def tokenizations(pipeline, prompts, max_sequence_length):
        texts = [pipeline.prompt_template_encode.format(prompt) for prompt in prompts]
        prefix = pipeline.prompt_template_encode_start_idx
        return [Tokenization("tokenizer", texts, min(max_sequence_length, pipeline.tokenizer_max_length), prefix)]


class SDPrompts:
    """Stable Diffusion 1 and 2."""

    pipeline_class: Any = StableDiffusionPipeline
    unused = ("unet", "safety_checker", "feature_extractor", "image_encoder")

    @staticmethod
    def encode(pipeline, prompts, max_sequence_length):
        embeds, _ = pipeline.encode_prompt(
            prompts, pipeline._execution_device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return EncodedPrompts(embeds)

    @staticmethod
    def tokenizations(pipeline, prompts, max_sequence_length):
        return [Tokenization("tokenizer", prompts, pipeline.tokenizer.model_max_length)]


class SDXLPrompts:
    """Stable Diffusion XL."""

    pipeline_class: Any = StableDiffusionXLPipeline
    unused = ("unet", "feature_extractor", "image_encoder")

    @staticmethod
    def encode(pipeline, prompts, max_sequence_length):
        embeds, _, pooled, _ = pipeline.encode_prompt(prompts, do_classifier_free_guidance=False)
        return EncodedPrompts(embeds, pooled)

    @staticmethod
    def tokenizations(pipeline, prompts, max_sequence_length):
        return [
            Tokenization(name, prompts, getattr(pipeline, name).model_max_length)
            for name in ("tokenizer", "tokenizer_2")
        ]


class PixArtPrompts:
    """PixArt-Sigma."""

    pipeline_class: Any = PixArtSigmaPipeline
    unused = ("transformer",)

    @staticmethod
    def encode(pipeline, prompts, max_sequence_length):
        embeds, mask, _, _ = pipeline.encode_prompt(
            prompts, do_classifier_free_guidance=False, max_sequence_length=max_sequence_length
        )
        # The pipeline pads to `max_sequence_length`, and masks the padding.
        return EncodedPrompts.join(EncodedPrompts(embeds, None, mask.bool()).split())

    @staticmethod
    def tokenizations(pipeline, prompts, max_sequence_length):
        return [Tokenization("tokenizer", pipeline._text_preprocessing(prompts), max_sequence_length)]


# The keys are those of `backbone_dina.BACKBONES`.
PIPELINES: dict[str, Any] = {
    "sd3": SD3Prompts,
    "flux": FluxPrompts,
    "zimage": ZImagePrompts,
    "qwenimage": QwenImagePrompts,
    "sd": SDPrompts,
    "sdxl": SDXLPrompts,
    "pixart": PixArtPrompts,
}


def prompts_of(pipeline) -> Any:
    """The class in `PIPELINES` for a pipeline. Other pipelines of a family, such as those that edit images, encode
    prompts alike.

    Raises:
        ValueError: the pipeline belongs to no known family.
    """
    names = [base.__name__ for base in type(pipeline).__mro__ if base.__name__.endswith("Pipeline")]
    families = {family.pipeline_class.__name__.removesuffix("Pipeline"): family for family in PIPELINES.values()}
    # The longest first, because StableDiffusion is also the beginning of StableDiffusion3 and StableDiffusionXL.
    for prefix in sorted(families, key=len, reverse=True):
        if any(name.startswith(prefix) for name in names):
            return families[prefix]
    known = sorted(family.pipeline_class.__name__ for family in PIPELINES.values())
    raise ValueError(f"pipeline: expected one of {known}, got {type(pipeline).__name__}")


__all__ = ["PIPELINES", "EncodedPrompts", "Tokenization", "prompts_of"]
