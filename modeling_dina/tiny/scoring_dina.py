"""Scoring images for prompts, with a reward model and the text encoders and VAE of a diffusers pipeline. How a reward
is computed is left to the model."""

import math
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image

from .conditioning_dina import (
    check_conditioning,
    conditioning_state,
    encode_prompts,
    encoding_lock,
    load_pipeline,
)
from .images_dina import fit_size, load_image
from .latents_dina import encode_images, has_frames, latent_channels
from .noising_dina import check_seeds
from .pipelines_dina import EncodedPrompts
from .thurstone_dina import pair_statistics, spread_over_draws

ImageLike = str | os.PathLike | Image.Image

# Size of the encoded prompts that a scorer caches. With Stable Diffusion 3.5, one takes 1.7 MB in bfloat16.
PROMPT_CACHE_BYTES = 256 * 2**20
# The most pixels and images of a batch by default: pixels take memory, and more small images are hardly faster.
BATCH_PIXELS, MAX_BATCH_SIZE = 8 * 1024**2, 32
# Fields of `DinaEnsembleOutput` whose last dimension counts samples.
PER_SAMPLE = ("scores", "samples", "level_samples")


class _Result:
    """Base class of results, with conversion to plain values for JSON."""

    def to_dict(self) -> dict[str, Any]:
        """All fields that are not None, as numbers and nested lists. NaN (the spread of a single draw) becomes
        None."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return {name: _plain(value) for name, value in values.items() if value is not None}


def _plain(value):
    if isinstance(value, torch.Tensor):
        return _plain(value.tolist())
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


@dataclass(frozen=True, eq=False)
class Scores(_Result):
    """
    Rewards of B images, float32 on the CPU.

    Attributes:
        scores: [B].
        spread: [B], standard deviation over the noise draws; NaN for a single draw.
        samples: [K, N, B], the rewards at K levels with N draws each; K is 1 in mode "features".
        sigmas: the noise levels.
        variance: [K], the likelihood's variance of one sample.
        weights: [K], weights of the levels, which sum to one.
        level_samples: [number of levels, N, B], the rewards at each single level; None unless `with_levels`.
    """

    scores: torch.Tensor
    spread: torch.Tensor
    samples: torch.Tensor
    sigmas: torch.Tensor
    variance: torch.Tensor
    weights: torch.Tensor
    level_samples: torch.Tensor | None = None

    def to_dict(self) -> dict[str, Any]:
        """All fields that are not None but `variance` and `weights`, as numbers and nested lists."""
        return {name: value for name, value in super().to_dict().items() if name not in ("variance", "weights")}


@dataclass(frozen=True, eq=False)
class Comparison(_Result):
    """
    Two images of one prompt: the `Scores` of both, and `thurstone_dina.PairStatistics` of the pair.

    Attributes:
        scores, spread: [2].
        win_probability: probability that the first image is preferred.
        entropy: uncertainty of that preference in nats; the sum of the next two values.
        disagreement: part of the uncertainty that comes from differences between levels and draws.
        likelihood_entropy: mean uncertainty at a single level and draw.
        difference_error: standard error over draws of the score difference; NaN for a single draw.
        samples: [K, N, 2].
        sigmas: the noise levels.
        level_samples: [number of levels, N, 2], the rewards at each single level; None unless `with_levels`.
    """

    scores: torch.Tensor
    spread: torch.Tensor
    win_probability: float
    entropy: float
    disagreement: float
    likelihood_entropy: float
    difference_error: float
    samples: torch.Tensor
    sigmas: torch.Tensor
    level_samples: torch.Tensor | None = None


@dataclass(frozen=True, eq=False)
class Ranking(_Result):
    """
    M images of one prompt.

    Attributes:
        order: indices of the images, best first.
        scores: [M], in the order of the input images.
        samples: [K, N, M].
        variance: [K], the likelihood's variance of one sample.
        weights: [K], weights of the levels, which sum to one.
    """

    order: list[int]
    scores: torch.Tensor
    samples: torch.Tensor
    variance: torch.Tensor
    weights: torch.Tensor

    @cached_property
    def win_probability(self) -> torch.Tensor:
        """[M, M], probability that the image of the row is preferred to that of the column; computed on first use."""
        images = range(len(self.scores))
        return torch.stack([self.probability([row], images) for row in images])

    def probability(self, first: Sequence[int], second: Sequence[int]) -> torch.Tensor:
        """[P], probability that image `first[p]` is preferred to image `second[p]`; a single index is repeated."""
        samples_a, samples_b = (self.samples[..., list(indices)] for indices in (first, second))
        return pair_statistics(samples_a, samples_b, self.variance, self.weights).win_probability

    def to_dict(self) -> dict[str, Any]:
        """`order`, `scores` and the whole `win_probability`, as numbers and nested lists."""
        return {name: _plain(getattr(self, name)) for name in ("order", "scores", "win_probability")}


class DinaScorer:
    """
    Scores images for prompts.

    The pipeline encodes prompts and images. It may lack its transformer. It is never modified, so that a generator or
    other scorers can share it, except that a VAE that overflows in float16 is in float32 while it runs. Several
    threads may share a scorer.

    Args:
        model: a `DinaRewardModel` in evaluation mode.
        pipeline: the diffusers pipeline of the model's family, with the VAE and the text encoders that the model was
            trained with.
        batch_size: number of images and prompts that are decoded, encoded and scored at a time. It limits memory and
            does not affect scores. None takes as many images of `max_pixels` as have 8 megapixels, at most 32.
        max_pixels: larger images are shrunk to this area in pixels; None uses the transformer's training resolution.
        level_batching: as in `DinaRewardModel.reward`.

    Attributes:
        size_limits: arguments of `images_dina.fit_size`, which determine the size at which an image is scored.

    Raises:
        ValueError: an argument is out of range, or the pipeline's VAE or text encoders differ from those recorded in
            the model's config.
    """

    def __init__(
        self,
        model,
        pipeline,
        *,
        batch_size: int | None = None,
        max_pixels: int | None = None,
        level_batching: bool = False,
    ):
        sizes = model.config.dimensions
        if latent_channels(pipeline.vae) != sizes.latent_channels:
            raise ValueError(
                f"pipeline: expected a VAE with {sizes.latent_channels} latent channels, "
                f"got {latent_channels(pipeline.vae)}"
            )
        check_conditioning(pipeline, model.config)
        if getattr(pipeline, "text_encoder_3", pipeline) is None and pipeline.transformer is None:
            # Without a third text encoder, the pipeline takes the width of the zeros that replace its embeddings from
            # its transformer.
            pipeline = type(pipeline)(**pipeline.components)
            pipeline.transformer = SimpleNamespace(config=SimpleNamespace(**model.config.transformer_config))

        multiple = pipeline.vae_scale_factor * sizes.patch_size
        if max_pixels is None:
            max_pixels = (pipeline.vae_scale_factor * sizes.training_side) ** 2
        if max_pixels < multiple**2:
            raise ValueError(f"max_pixels: expected at least {multiple**2}, one patch, got {max_pixels}")
        if batch_size is None:
            batch_size = max(1, min(MAX_BATCH_SIZE, BATCH_PIXELS // max_pixels))
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
        self.model = model
        self.pipeline = pipeline
        self.batch_size = batch_size
        self.max_pixels = max_pixels
        self.level_batching = level_batching
        self.size_limits = {
            "multiple": multiple,
            "max_pixels": max_pixels,
            "max_side": pipeline.vae_scale_factor * sizes.max_side,
        }
        # The prompt that was used last is the last one.
        self._encoded: dict[str, EncodedPrompts] = {}
        self._encoded_bytes = 0
        self._encoded_by = conditioning_state(pipeline)

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        revision: str | None = None,
        batch_size: int | None = None,
        max_pixels: int | None = None,
        level_batching: bool = False,
        **options,
    ) -> "DinaScorer":
        """
        Load a scorer from a folder or a Hub repository, with the pipeline that the model's config names.

        Args:
            source: a folder written by `save_pretrained` or in the published layout, or a Hub id.
            device: device of model and pipeline; None uses the CPU, or the devices of `device_map`.
            dtype: dtype of model and pipeline; None uses that of the weights.
            revision: branch, tag or commit of the Hub repository.
            batch_size, max_pixels, level_batching: as in the class.
            options: further arguments of `DinaRewardModel.from_pretrained`, such as `backbone`,
                `cache_dir`, `token`, `local_files_only`, `subfolder` or `device_map`. Hub options are also used for
                the pipeline.

        Raises:
            ValueError, OSError: there is no reward model, its weights are incomplete, or it cannot be downloaded.
        """
        from .modeling_dina import DinaRewardModel

        model = DinaRewardModel.from_pretrained(
            os.fspath(source), dtype=dtype or "auto", revision=revision or "main", **options
        )
        if device is not None:
            model = model.to(device)
        pipeline = load_pipeline(model)
        return cls(model, pipeline, batch_size=batch_size, max_pixels=max_pixels, level_batching=level_batching)

    def score(
        self,
        *,
        prompts: Sequence[str],
        images: Sequence[ImageLike] | None = None,
        latents: torch.Tensor | None = None,
        sigmas: Sequence[float] | None = None,
        num_draws: int | None = None,
        mode: str | None = None,
        seed: int | Sequence[int] = 0,
        with_levels: bool = False,
    ) -> Scores:
        """
        Score images or latents, each for its own prompt.

        Args:
            prompts: B prompts.
            images: B paths or PIL images of any sizes.
            latents: clean latents [B, C, H, W] in model space, in place of images.
            sigmas, num_draws, mode, seed, with_levels: as in `DinaRewardModel.reward`; None uses the model's
                defaults.

        Raises:
            ValueError, TypeError: an argument has a wrong type or value; the message names it.
        """
        options = {"sigmas": sigmas, "num_draws": num_draws, "mode": mode, "with_levels": with_levels}
        ensemble = self._ensemble(prompts, images, latents, seed, options)
        return Scores(
            scores=ensemble.scores,
            spread=spread_over_draws(ensemble.samples),
            samples=ensemble.samples,
            sigmas=ensemble.sigmas,
            variance=ensemble.variance,
            weights=ensemble.weights,
            level_samples=ensemble.level_samples if with_levels else None,
        )

    def compare(
        self,
        *,
        prompt: str,
        images: Sequence[ImageLike],
        sigmas: Sequence[float] | None = None,
        num_draws: int | None = None,
        mode: str | None = None,
        seed: int | Sequence[int] = 0,
        with_levels: bool = False,
    ) -> Comparison:
        """
        Compare two images for a prompt: the probability that the first is preferred, and its uncertainty. Images of
        equal size are scored under the same noise, which cancels in the score difference.

        Args:
            prompt: prompt of both images.
            images: two paths or PIL images.
            sigmas, num_draws, mode, seed, with_levels: as in `score`.
        """
        images = _as_list("images", images)
        if len(images) != 2:
            raise ValueError(f"images: expected two images to compare, got {len(images)}")
        check_prompt(prompt)
        options = {"sigmas": sigmas, "num_draws": num_draws, "mode": mode, "with_levels": with_levels}
        ensemble = self._ensemble([prompt] * 2, images, None, seed, options)
        samples_a, samples_b = ensemble.samples.unbind(-1)
        pair = pair_statistics(samples_a, samples_b, ensemble.variance, ensemble.weights)
        return Comparison(
            scores=ensemble.scores,
            spread=spread_over_draws(ensemble.samples),
            **{name: value.item() for name, value in pair._asdict().items()},
            samples=ensemble.samples,
            sigmas=ensemble.sigmas,
            level_samples=ensemble.level_samples if with_levels else None,
        )

    def rank(
        self,
        *,
        prompt: str,
        images: Sequence[ImageLike],
        sigmas: Sequence[float] | None = None,
        num_draws: int | None = None,
        mode: str | None = None,
        seed: int | Sequence[int] = 0,
    ) -> Ranking:
        """
        Rank images of one prompt, best first.

        Args:
            prompt: prompt of all images.
            images: M paths or PIL images.
            sigmas, num_draws, mode, seed: as in `score`.
        """
        images = _as_list("images", images)
        check_prompt(prompt)
        options = {"sigmas": sigmas, "num_draws": num_draws, "mode": mode}
        ensemble = self._ensemble([prompt] * len(images), images, None, seed, options)
        return Ranking(
            order=ensemble.scores.argsort(descending=True).tolist(),
            scores=ensemble.scores,
            samples=ensemble.samples,
            variance=ensemble.variance,
            weights=ensemble.weights,
        )

    @torch.no_grad()
    def _ensemble(self, prompts, images, latents, seed, options: dict[str, Any]):
        """Check the arguments and score in batches. Returns a `DinaEnsembleOutput` in the order of the prompts,
        float32 on the CPU. `options` are further arguments of `reward`."""
        if self.model.training:
            raise ValueError("model: expected it in evaluation mode (model.eval()), got training mode")
        prompts = _as_list("prompts", prompts)
        for index, prompt in enumerate(prompts):
            check_prompt(prompt, f"prompts[{index}]")
        if (images is None) == (latents is None):
            raise ValueError(f"images, latents: expected one of them, got {'none' if images is None else 'both'}")
        if images is not None:
            images = _as_list("images", images)
        elif not isinstance(latents, torch.Tensor):
            raise TypeError(f"latents: expected a tensor [B, C, H, W], got {type(latents).__name__}")
        name, count = ("latents", len(latents)) if images is None else ("images", len(images))
        if count == 0:
            raise ValueError(f"{name}: expected at least one, got 0")
        if count != len(prompts):
            raise ValueError(f"prompts, {name}: expected one prompt for each, got {len(prompts)} and {count}")
        seeds = check_seeds(seed, count)

        options = {**options, "level_batching": self.level_batching}
        parts, order = [], []
        for indices, batch in self._batches(count, images, latents):
            encoded = self._encode_prompts([prompts[index] for index in indices])
            batch_seed = seeds if len(seeds) == 1 else [seeds[index] for index in indices]
            parts.append(self.model.reward(batch, *encoded, seed=batch_seed, **options))
            order += indices
        restore = torch.tensor(order, device="cpu").argsort()
        joined = {
            name: torch.cat([part[name].float().cpu() for part in parts], dim=-1)[..., restore]
            for name in parts[0]
            if name in PER_SAMPLE
        }
        if not joined["scores"].isfinite().all():
            broken = (~joined["scores"].isfinite()).nonzero().flatten().tolist()
            raise ValueError(f"scores: expected finite numbers, got NaN or infinity for the images {broken}")
        shared = {name: value.float().cpu() for name, value in parts[0].items() if name not in PER_SAMPLE}
        return type(parts[0])(**joined, **shared)

    def _batches(self, count: int, images, latents) -> Iterator[tuple[list[int], torch.Tensor]]:
        """Yield indices and latents of at most `batch_size` samples of one size. Only these images are in memory."""
        for start in range(0, count, self.batch_size):
            indices = list(range(start, min(start + self.batch_size, count)))
            if latents is not None:
                yield indices, latents[indices]
                continue
            by_size = defaultdict(list)
            for index in indices:
                image = load_image(images[index], f"images[{index}]")
                by_size[fit_size(*image.size, **self.size_limits)].append((index, image))
            for size, members in by_size.items():
                yield [index for index, _ in members], self._encode_images([image for _, image in members], size)

    def _encode_images(self, images: list[Image.Image], size: tuple[int, int]) -> torch.Tensor:
        """Encode RGB images to clean latents [B, C, H, W] in model space, on the model's device."""
        width, height = size
        pixels = self.pipeline.image_processor.preprocess(images, height=height, width=width)
        vae = self.pipeline.vae
        # A VAE with frames stores features of the current call.
        with encoding_lock(self.pipeline) if has_frames(vae) else nullcontext():
            latents = encode_images(vae, pixels.to(self.pipeline._execution_device))
        return latents.to(self.model.execution_device)

    def _encode_prompts(self, prompts: list[str]) -> EncodedPrompts:
        """Encode prompts on the model's device. Encoded prompts are cached, and of these the ones that were used last
        stay."""
        with encoding_lock(self.pipeline):
            state = conditioning_state(self.pipeline)
            if state != self._encoded_by:
                check_conditioning(self.pipeline, self.model.config)
                self._encoded.clear()
                self._encoded_bytes = 0
                self._encoded_by = state
            new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._encoded]
            if new:
                encoded = encode_prompts(self.pipeline, new, self.model.config.max_sequence_length)
                rows = encoded.to(self.model.execution_device).split()
                self._encoded.update(zip(new, rows, strict=True))
                self._encoded_bytes += sum(map(_nbytes, rows))
            for prompt in prompts:
                self._encoded[prompt] = self._encoded.pop(prompt)
            encoded = EncodedPrompts.join(self._encoded[prompt] for prompt in prompts)
            while self._encoded_bytes > PROMPT_CACHE_BYTES:
                self._encoded_bytes -= _nbytes(self._encoded.pop(next(iter(self._encoded))))
        return encoded


def _nbytes(encoded: EncodedPrompts) -> int:
    return sum(part.nbytes for part in encoded if part is not None)


def check_prompt(prompt: str, name: str = "prompt") -> None:
    """Raise a ValueError or TypeError that names the argument `name` unless the prompt is a non-blank text."""
    if not isinstance(prompt, str):
        raise TypeError(f"{name}: expected a text, got {type(prompt).__name__}")
    if not prompt.strip():
        raise ValueError(f"{name}: expected a text, got {prompt!r}, which is empty")
    if any("\ud800" <= character <= "\udfff" for character in prompt):
        raise ValueError(f"{name}: expected Unicode text, got {prompt!r} with half of a surrogate pair")


def _as_list(name: str, values) -> list:
    # A text is a sequence of letters, each of which would be a valid prompt or path.
    if isinstance(values, str | os.PathLike | Image.Image | torch.Tensor):
        raise TypeError(f"{name}: expected a list, got {type(values).__name__}")
    return list(values)


__all__ = ["Comparison", "DinaScorer", "Ranking", "Scores"]
