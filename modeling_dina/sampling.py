"""Reward models at sampling time, with the stock diffusers pipelines of all families: best-of-N sampling, pruning of
candidates during sampling, guidance by the reward's gradient, and records of the reward. Latents are scored without
decoding them.

```python
>>> best_of_n(pipe, model, "two purple stars", 16, height=64, width=64).images[0]
>>> prune = PruneCandidates(model, keep={5: 8, 10: 2})
>>> pipe("two purple stars", num_images_per_prompt=16, callback_on_step_end=prune, max_sequence_length=14).images
```

Without `prompts`, the callbacks use the pipeline's embeddings, so its `max_sequence_length` should be that of the
reward model. Only `StableDiffusion3Pipeline` reads which tensors a callback needs; to others, pass them as
`callback_on_step_end_tensor_inputs=callback.tensor_inputs`. Combine several callbacks with diffusers'
`MultiPipelineCallbacks`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.callbacks import PipelineCallback
from PIL import Image

from .conditioning_dina import check_conditioning, conditioning_state, encode_prompts
from .latents_dina import decode_latents
from .modeling_dina import DinaRewardModel
from .noising_dina import RectifiedFlow, path_from_scheduler
from .packing import unpack_latents
from .pipelines_dina import PIPELINES, EncodedPrompts
from .scoring_dina import DinaScorer

NEGATIVE_EMBEDDINGS = ("negative_prompt_embeds", "negative_pooled_prompt_embeds", "negative_prompt_embeds_mask")
# Arguments of the pipeline that may have one entry per image.
PER_CANDIDATE = ("generator", "latents", *NEGATIVE_EMBEDDINGS)
# Families whose pipelines repeat given negative embeddings for each image.
REPEATING = ("zimage", "qwenimage")
# Arguments of the pipeline that `best_of_n` sets itself.
OWN_ARGUMENTS = (
    "num_images_per_prompt",
    "output_type",
    "return_dict",
    "prompt_embeds",
    "pooled_prompt_embeds",
    "prompt_embeds_mask",
)
# Tensors of all candidates that the callbacks of a family's pipeline cannot change.
FIXED = {"flux": "pooled_prompt_embeds", "qwenimage": "prompt_embeds_mask and negative_prompt_embeds"}


@dataclass(frozen=True, eq=False)
class BestOfN:
    """The best of N candidates, best first.

    Attributes:
        images: decoded images of the best candidates.
        latents: their latents [keep, C, H, W].
        scores: scores [N] of all candidates, in descending order.
    """

    images: list[Image.Image]
    latents: torch.Tensor
    scores: torch.Tensor


@torch.no_grad()
def best_of_n(
    pipeline,
    model: DinaRewardModel,
    prompt: str,
    num_candidates: int,
    *,
    keep: int = 1,
    batch_size: int = 8,
    **call: Any,
) -> BestOfN:
    """Sample candidates, score their latents, and decode the best.

    Args:
        pipeline: generator: the stock pipeline of the model's family, with its latent space and text encoders.
        model: reward model in evaluation mode.
        prompt: prompt of all candidates.
        num_candidates: number N of candidates.
        keep: number of best candidates to decode.
        batch_size: number of candidates sampled at a time.
        call: further arguments of the pipeline, such as `guidance_scale`. Those of `PER_CANDIDATE` may be a list or a
            tensor with one entry per candidate; then candidates do not depend on `batch_size`. A single `generator` is
            used for one batch after the other. The pipelines of Z-Image and Qwen-Image repeat negative embeddings for
            each image, so these have one entry.

    Raises:
        ValueError: an argument has a wrong value; the message names it.
    """
    if not 1 <= keep <= num_candidates:
        raise ValueError(f"keep: expected 1 to num_candidates={num_candidates}, got {keep}")
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
    _check_path(model)
    own = _per_candidate(call, num_candidates, model.config.backbone_type in REPEATING)
    call = {"max_sequence_length": model.config.max_sequence_length, **call}
    parts = [
        _sample(pipeline, prompt, range(start, min(start + batch_size, num_candidates)), call, own)
        for start in range(0, num_candidates, batch_size)
    ]
    latents = torch.cat(parts)
    scorer = DinaScorer(model, pipeline, batch_size=batch_size)
    scores, order = scorer.score(prompts=[prompt] * num_candidates, latents=latents).scores.sort(descending=True)
    best = latents[order[:keep].to(latents.device)]
    pixels = decode_latents(pipeline.vae, best)
    return BestOfN(images=pipeline.image_processor.postprocess(pixels), latents=best, scores=scores)


def _check_path(model: DinaRewardModel) -> None:
    """Raise a ValueError unless the model is on a rectified flow, as the pipelines that these functions support."""
    path = path_from_scheduler(model.config.scheduler_config)  # not the model's own, whose class may be remote code
    if not isinstance(path, RectifiedFlow):
        raise ValueError(
            f"model: expected a reward model of a flow-matching family, got {model.config.backbone_type} with "
            f"{type(path).__name__}"
        )


def _per_candidate(call: dict[str, Any], num_candidates: int, repeats_negative: bool) -> dict[str, Any]:
    """The arguments with one entry per candidate. Raises a ValueError for an argument that `best_of_n` sets itself, or
    that has a wrong number of entries."""
    for name in set(OWN_ARGUMENTS) & set(call):
        raise ValueError(f"{name}: expected no value, because best_of_n sets it, got {type(call[name]).__name__}")
    found = {}
    for name in set(PER_CANDIDATE) & set(call):
        value = call[name]
        if not isinstance(value, list | torch.Tensor):
            continue
        if repeats_negative and name in NEGATIVE_EMBEDDINGS:
            if len(value) != 1:
                raise ValueError(
                    f"{name}: expected 1 entry, which the pipeline repeats for each candidate, got {len(value)}"
                )
        elif len(value) != num_candidates:
            raise ValueError(f"{name}: expected {num_candidates} entries, one per candidate, got {len(value)}")
        else:
            found[name] = value
    return found


def _sample(pipeline, prompt: str, candidates: range, call: dict[str, Any], own: dict[str, Any]) -> torch.Tensor:
    """Sample the latents [B, C, H, W] of some of the candidates; `own` are the arguments with one entry for each."""
    part = slice(candidates.start, candidates.stop)
    call = call | {name: value[part] for name, value in own.items()}
    latents = pipeline(prompt, num_images_per_prompt=len(candidates), output_type="latent", **call).images
    if len(latents) != len(candidates):
        raise ValueError(
            f"callback_on_step_end: expected all {len(candidates)} candidates of a batch at its end, got "
            f"{len(latents)}; prune without best_of_n"
        )
    if latents.ndim == 4:
        return latents
    default = pipeline.default_sample_size * pipeline.vae_scale_factor
    return unpack_latents(latents, call.get("height") or default, call.get("width") or default)


class _RewardCallback(PipelineCallback):
    """Base class of the callbacks: scores the state after a step, at its noise level and with its prompts. The
    arguments are those of `RecordRewards`."""

    def __init__(
        self,
        model: DinaRewardModel,
        prompts: Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
    ) -> None:
        super().__init__()
        if model.training:
            raise ValueError("model: expected it in evaluation mode (model.eval()), got training mode")
        _check_path(model)
        if isinstance(prompts, str) or (prompts is not None and not prompts):
            raise ValueError(f"prompts: expected a list of at least one text, got {prompts!r}")
        self.model, self.prompts, self.height, self.width = model, prompts, height, width
        # The text conditioning of the prompts, with the state of the text encoders that computed it.
        self._encoded: tuple[tuple, EncodedPrompts] | None = None

    @property
    def tensor_inputs(self) -> list[str]:
        """The pipeline's tensors that the callback needs."""
        available = PIPELINES[self.model.config.backbone_type].pipeline_class._callback_tensor_inputs
        return [name for name in ("latents", "prompt_embeds", "pooled_prompt_embeds") if name in available]

    def scores(self, pipeline, latents: torch.Tensor, sigma: float, tensors: dict[str, Any]) -> torch.Tensor:
        """Score latents [B, C, H, W] or [B, N, 4 C] at a noise level, [B]; clean latents are scored by the noise
        ensemble."""
        prompts = self._given_prompts(pipeline, len(latents), tensors)
        if latents.ndim == 3:
            latents = unpack_latents(latents, self.height, self.width)
        output = self.model.reward(latents, *prompts) if sigma == 0 else self.model(latents, sigma, *prompts)
        return output["scores"]

    def _given_prompts(self, pipeline, count: int, tensors: dict[str, Any]) -> EncodedPrompts:
        """The text conditioning of the candidates."""
        if self.prompts is not None:
            return self._own_prompts(pipeline, self.prompts, count)
        embeds, pooled = tensors.get("prompt_embeds"), tensors.get("pooled_prompt_embeds")
        if isinstance(embeds, list):  # of Z-Image, one text for each candidate
            return EncodedPrompts.join(EncodedPrompts(text[None]) for text in embeds)
        if embeds is None or pooled is None:
            raise ValueError(
                f"prompts: expected the prompts of the batch, because the callback of {type(pipeline).__name__} gets "
                f"only {sorted(tensors)}, got None"
            )
        # With guidance, the embeddings of the negative prompts come before those of the prompts.
        return EncodedPrompts(embeds[-count:], pooled[-count:])

    @torch.no_grad()
    def _own_prompts(self, pipeline, prompts: Sequence[str], count: int) -> EncodedPrompts:
        """The text conditioning of prompts, repeated for their candidates. It is computed once per pipeline."""
        if count % len(prompts):
            raise ValueError(
                f"prompts: expected as many candidates for each prompt, got {len(prompts)} for {count} candidates"
            )
        state = conditioning_state(pipeline)
        if self._encoded is None or self._encoded[0] != state:
            self._encoded = state, encode_prompts(pipeline, prompts, self.model.config.max_sequence_length)
        return self._encoded[1].take([index * len(prompts) // count for index in range(count)])


class PruneCandidates(_RewardCallback):
    """Continues with only the best candidates of each prompt, scored on their noisy states. It does not work with the
    pipeline's `skip_guidance_layers`, for which the pipeline stores embeddings that a callback cannot change.

    Generators and latents with one entry per candidate are consumed before the first step, so pruning does not affect
    their assignment. The scheduler must not store states of the candidates between steps, which would include pruned
    ones. Therefore it must be a `FlowMatchEulerDiscreteScheduler`.

    The pipelines of FLUX.1 and Qwen-Image do not support pruning, because their callbacks cannot change all tensors of
    the candidates. That of Z-Image supports it only without guidance (`guidance_scale=0`).

    Args:
        model: reward model in evaluation mode.
        keep: number of candidates per prompt to keep after a step, by step counted from 0.
        num_prompts: number of prompts in the batch; the candidates of a prompt are consecutive, and equal in number.
    """

    def __init__(self, model: DinaRewardModel, keep: Mapping[int, int], num_prompts: int = 1) -> None:
        super().__init__(model)
        family = model.config.backbone_type
        if family in FIXED:
            name = PIPELINES[family].pipeline_class.__name__
            raise ValueError(
                f"model: expected a family whose pipeline supports pruning, got {family}: a callback of {name} cannot "
                f"change {FIXED[family]}"
            )
        if not keep or min(keep.values()) < 1:
            raise ValueError(f"keep: expected a positive number for each of some steps, got {dict(keep)}")
        self.keep, self.num_prompts = keep, num_prompts

    @torch.no_grad()
    def callback_fn(self, pipeline, step_index, timesteps, callback_kwargs):
        if self.model.config.backbone_type == "zimage" and pipeline.do_classifier_free_guidance:
            raise ValueError(
                f"guidance_scale: expected 0, because {type(pipeline).__name__} supports pruning only without "
                f"guidance, got {pipeline.guidance_scale}"
            )
        if step_index not in self.keep:
            return callback_kwargs
        missing = set(self.tensor_inputs) - set(callback_kwargs)
        if missing:
            raise ValueError(
                f"callback_on_step_end_tensor_inputs: expected {self.tensor_inputs}, got {list(callback_kwargs)}"
            )
        check_conditioning(pipeline, self.model.config)
        _check_scheduler(pipeline.scheduler)
        latents = callback_kwargs["latents"]
        if len(latents) % self.num_prompts or len(latents) // self.num_prompts < self.keep[step_index]:
            raise ValueError(
                f"keep: expected at least {self.keep[step_index]} candidates for each of {self.num_prompts} prompts "
                f"after step {step_index}, got {len(latents)} in all"
            )
        sigma = pipeline.scheduler.sigmas[pipeline.scheduler.step_index].item()
        scores = self.scores(pipeline, latents, sigma, callback_kwargs).unflatten(0, (self.num_prompts, -1))
        best = scores.topk(self.keep[step_index], dim=1).indices.sort(dim=1).values
        rows = (best + torch.arange(self.num_prompts, device=best.device)[:, None] * scores.shape[1]).flatten()
        return {name: _take(values, rows, len(latents)) for name, values in callback_kwargs.items()}


def _take(values: Any, rows: torch.Tensor, count: int) -> Any:
    """The entries of some of `count` candidates. With guidance, a tensor has those of the negative prompts first."""
    if isinstance(values, list):
        return [values[row] for row in rows.tolist()]
    return values.unflatten(0, (-1, count))[:, rows].flatten(0, 1)


def _check_scheduler(scheduler) -> None:
    if not isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        raise ValueError(
            f"scheduler: expected a FlowMatchEulerDiscreteScheduler, got {type(scheduler).__name__}, which may store "
            f"the states of pruned candidates"
        )


class GuideByReward(_RewardCallback):
    """Samples from the generator's distribution tilted towards the reward, p(x) exp(scale r(x)).

    This adds scale times the reward's gradient to the score of the noisy distribution. As the score of a rectified
    flow is -(x + (1 - s) v) / s, it adds -s / (1 - s) times that to the velocity. The correction of a step from s to
    s' is computed at the state after the step: x' + (s - s') s' / (1 - s') scale grad r(x', s').

    Args:
        model: reward model in evaluation mode.
        scale: inverse temperature, in units of 1 / reward.
        start, stop: highest and lowest noise level at which to guide.
        prompts, height, width: as in `RecordRewards`.
    """

    def __init__(
        self,
        model: DinaRewardModel,
        scale: float,
        start: float = 1.0,
        stop: float = 0.0,
        *,
        prompts: Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
    ) -> None:
        super().__init__(model, prompts, height, width)
        if not 0 <= stop <= start <= 1:
            raise ValueError(f"start, stop: expected 1 >= start >= stop >= 0, got {start} and {stop}")
        self.scale, self.start, self.stop = scale, start, stop

    @torch.enable_grad()
    def callback_fn(self, pipeline, step_index, timesteps, callback_kwargs):
        index = pipeline.scheduler.step_index
        before, sigma = pipeline.scheduler.sigmas[index - 1 : index + 1].tolist()
        if not self.stop <= sigma <= self.start or sigma in (0, 1):
            return callback_kwargs
        check_conditioning(pipeline, self.model.config)
        latents = callback_kwargs["latents"].detach().float().requires_grad_()
        (gradient,) = torch.autograd.grad(self.scores(pipeline, latents, sigma, callback_kwargs).sum(), latents)
        guided = latents + (before - sigma) * sigma / (1 - sigma) * self.scale * gradient
        return {**callback_kwargs, "latents": guided.detach().to(callback_kwargs["latents"].dtype)}


class RecordRewards(_RewardCallback):
    """Records the rewards of the sampler's own noisy states; it does not change them.

    Args:
        model: reward model in evaluation mode.
        prompts: the prompts of the batch; the candidates of a prompt are consecutive, and equal in number. None uses
            the embeddings of the pipeline, which those of FLUX.1 and Qwen-Image do not provide completely.
        height, width: size of the images in pixels, needed only for FLUX.1 and Qwen-Image, whose latents are packed.

    Attributes:
        sigmas: noise level after each step of the last sampling.
        rewards: [B] after each step.
    """

    sigmas: list[float]
    rewards: list[torch.Tensor]

    @torch.no_grad()
    def callback_fn(self, pipeline, step_index, timesteps, callback_kwargs):
        if step_index == 0:
            self.sigmas, self.rewards = [], []
        check_conditioning(pipeline, self.model.config)
        sigma = pipeline.scheduler.sigmas[pipeline.scheduler.step_index].item()
        self.sigmas.append(sigma)
        self.rewards.append(self.scores(pipeline, callback_kwargs["latents"], sigma, callback_kwargs))
        return callback_kwargs


__all__ = ["BestOfN", "GuideByReward", "PruneCandidates", "RecordRewards", "best_of_n"]
