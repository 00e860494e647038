"""Reward models at sampling time, with a stock `StableDiffusion3Pipeline`: best-of-N sampling, pruning of candidates
during sampling, and guidance by the reward's gradient. Latents are scored without decoding them.

```python
>>> best_of_n(pipe, model, "two purple stars", 16, height=64, width=64).images[0]
>>> prune = PruneCandidates(model, keep={5: 8, 10: 2})
>>> pipe("two purple stars", num_images_per_prompt=16, callback_on_step_end=prune, max_sequence_length=14).images
```

The callbacks use the pipeline's embeddings, so its `max_sequence_length` should be that of the reward model. Combine
several callbacks with diffusers' `MultiPipelineCallbacks`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.callbacks import PipelineCallback
from PIL import Image

from .conditioning_dina import check_conditioning
from .latents_dina import decode_latents
from .modeling_dina import DinaRewardModel
from .scoring_dina import DinaScorer

# Arguments of the pipeline that may have one entry per image.
PER_CANDIDATE = ("generator", "latents", "negative_prompt_embeds", "negative_pooled_prompt_embeds")
# Arguments of the pipeline that `best_of_n` sets itself.
OWN_ARGUMENTS = ("num_images_per_prompt", "output_type", "return_dict", "prompt_embeds", "pooled_prompt_embeds")


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
        pipeline: generator: a `StableDiffusion3Pipeline` with the reward model's latent space and text encoders.
        model: reward model in evaluation mode.
        prompt: prompt of all candidates.
        num_candidates: number N of candidates.
        keep: number of best candidates to decode.
        batch_size: number of candidates sampled at a time.
        call: further arguments of the pipeline, such as `guidance_scale`. Those of `PER_CANDIDATE` may be a list or a
            tensor with one entry per candidate; then candidates do not depend on `batch_size`. A single `generator` is
            used for one batch after the other.

    Raises:
        ValueError: an argument has a wrong value; the message names it.
    """
    if not 1 <= keep <= num_candidates:
        raise ValueError(f"keep: expected 1 to num_candidates={num_candidates}, got {keep}")
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
    _check_call(call, num_candidates)
    call = {"max_sequence_length": model.config.max_sequence_length, **call}
    parts = [
        _sample(pipeline, prompt, range(start, min(start + batch_size, num_candidates)), call)
        for start in range(0, num_candidates, batch_size)
    ]
    latents = torch.cat(parts)
    scorer = DinaScorer(model, pipeline, batch_size=batch_size)
    scores, order = scorer.score(prompts=[prompt] * num_candidates, latents=latents).scores.sort(descending=True)
    best = latents[order[:keep].to(latents.device)]
    pixels = decode_latents(pipeline.vae, best)
    return BestOfN(images=pipeline.image_processor.postprocess(pixels), latents=best, scores=scores)


def _check_call(call: dict[str, Any], num_candidates: int) -> None:
    """Raise a ValueError for an argument that `best_of_n` sets itself, or whose length is not the number of
    candidates."""
    for name in set(OWN_ARGUMENTS) & set(call):
        raise ValueError(f"{name}: expected no value, because best_of_n sets it, got {type(call[name]).__name__}")
    for name, value in call.items():
        if _is_per_candidate(name, value) and len(value) != num_candidates:
            raise ValueError(f"{name}: expected {num_candidates} entries, one per candidate, got {len(value)}")


def _is_per_candidate(name: str, value: Any) -> bool:
    return name in PER_CANDIDATE and isinstance(value, list | torch.Tensor)


def _sample(pipeline, prompt: str, candidates: range, call: dict[str, Any]) -> torch.Tensor:
    """Sample the latents [B, C, H, W] of some of the candidates."""
    part = slice(candidates.start, candidates.stop)
    call = {name: value[part] if _is_per_candidate(name, value) else value for name, value in call.items()}
    latents = pipeline(prompt, num_images_per_prompt=len(candidates), output_type="latent", **call).images
    if len(latents) != len(candidates):
        raise ValueError(
            f"callback_on_step_end: expected all {len(candidates)} candidates of a batch at its end, got "
            f"{len(latents)}; prune without best_of_n"
        )
    return latents


class _RewardCallback(PipelineCallback):
    """Base class of the callbacks: scores the state after a step, at its noise level and with its prompts.

    Args:
        model: reward model in evaluation mode.
    """

    def __init__(self, model: DinaRewardModel) -> None:
        super().__init__()
        if model.training:
            raise ValueError("model: expected it in evaluation mode (model.eval()), got training mode")
        self.model = model

    @property
    def tensor_inputs(self) -> list[str]:
        return ["latents", "prompt_embeds", "pooled_prompt_embeds"]

    def scores(self, latents: torch.Tensor, sigma: float, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        """Score latents [B, C, H, W] at a noise level, [B]; clean latents are scored by the noise ensemble."""
        # With guidance, the embeddings of the negative prompts come before those of the prompts.
        embeds, pooled = (tensors[name][-len(latents) :] for name in ("prompt_embeds", "pooled_prompt_embeds"))
        output = (
            self.model.reward(latents, embeds, pooled) if sigma == 0 else self.model(latents, sigma, embeds, pooled)
        )
        return output["scores"]


class PruneCandidates(_RewardCallback):
    """Continues with only the best candidates of each prompt, scored on their noisy states. It does not work with the
    pipeline's `skip_guidance_layers`, for which the pipeline stores embeddings that a callback cannot change.

    Generators and latents with one entry per candidate are consumed before the first step, so pruning does not affect
    their assignment. The scheduler must not store states of the candidates between steps, which would include pruned
    ones. Therefore it must be a `FlowMatchEulerDiscreteScheduler`.

    Args:
        model: reward model in evaluation mode.
        keep: number of candidates per prompt to keep after a step, by step counted from 0.
        num_prompts: number of prompts in the batch; the candidates of a prompt are consecutive, and equal in number.
    """

    def __init__(self, model: DinaRewardModel, keep: Mapping[int, int], num_prompts: int = 1) -> None:
        super().__init__(model)
        if not keep or min(keep.values()) < 1:
            raise ValueError(f"keep: expected a positive number for each of some steps, got {dict(keep)}")
        self.keep, self.num_prompts = keep, num_prompts

    @torch.no_grad()
    def callback_fn(self, pipeline, step_index, timesteps, callback_kwargs):
        if step_index not in self.keep:
            return callback_kwargs
        check_conditioning(pipeline, self.model.config)
        _check_scheduler(pipeline.scheduler)
        latents = callback_kwargs["latents"]
        if len(latents) % self.num_prompts or len(latents) // self.num_prompts < self.keep[step_index]:
            raise ValueError(
                f"keep: expected at least {self.keep[step_index]} candidates for each of {self.num_prompts} prompts "
                f"after step {step_index}, got {len(latents)} in all"
            )
        sigma = pipeline.scheduler.sigmas[pipeline.scheduler.step_index].item()
        scores = self.scores(latents, sigma, callback_kwargs).unflatten(0, (self.num_prompts, -1))
        best = scores.topk(self.keep[step_index], dim=1).indices.sort(dim=1).values
        rows = (best + torch.arange(self.num_prompts, device=best.device)[:, None] * scores.shape[1]).flatten()
        return {
            name: values.unflatten(0, (-1, len(latents)))[:, rows].flatten(0, 1)
            for name, values in callback_kwargs.items()
        }


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
    """

    def __init__(self, model: DinaRewardModel, scale: float, start: float = 1.0, stop: float = 0.0) -> None:
        super().__init__(model)
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
        (gradient,) = torch.autograd.grad(self.scores(latents, sigma, callback_kwargs).sum(), latents)
        guided = latents + (before - sigma) * sigma / (1 - sigma) * self.scale * gradient
        return {**callback_kwargs, "latents": guided.detach().to(callback_kwargs["latents"].dtype)}


__all__ = ["BestOfN", "GuideByReward", "PruneCandidates", "best_of_n"]
