"""Pictures by the generator that a reward model's folder also holds, watched by the reward model while they appear."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Event

import torch
from diffusers import StableDiffusion3Pipeline
from PIL import Image

from .judging import Judge
from .limits import MAX_GUIDANCE, MAX_PICTURES, MAX_SEED, MAX_STEPS, checked_integer, checked_number

# Steps from one look at the pictures to the next. Decoding costs more than the reward, which is read at every step.
STEPS_PER_VIEW = 3


@dataclass(frozen=True)
class SamplingState:
    """
    Where the sampling of N pictures stands.

    Attributes:
        step: steps taken, from 1.
        num_steps: steps in all.
        sigma: noise level of the states.
        scores: [N], rewards of the noisy states at that level.
        pictures: the states decoded, N of them, or None where nobody looked.
    """

    step: int
    num_steps: int
    sigma: float
    scores: torch.Tensor
    pictures: list[Image.Image] | None


class Generator:
    """
    A diffusers pipeline whose samples a reward model watches.

    Args:
        pipeline: the generator, on the judge's device.
        judge: the judge, for the same latents and prompts.
    """

    def __init__(self, pipeline: StableDiffusion3Pipeline, judge: Judge):
        self.pipeline = pipeline
        self.judge = judge
        pipeline.set_progress_bar_config(disable=True)

    @classmethod
    def beside(cls, judge: Judge) -> "Generator | None":
        """The generator in the judge's own folder or repository, sharing its VAE and text encoders; None if it has
        none."""
        model, shared = judge.scorer.model, judge.scorer.pipeline
        if model.config.conditioning_source != ".":
            return None
        source, revision = model.conditioning_location()
        parts = StableDiffusion3Pipeline.load_config(source, revision=revision)
        if parts.get("transformer", [None, None])[1] is None:
            return None
        # The scheduler keeps its place in a sampling: it alone is not shared.
        kept = {name: part for name, part in shared.components.items() if name not in ("transformer", "scheduler")}
        pipeline = StableDiffusion3Pipeline.from_pretrained(
            source, revision=revision, dtype=model.compute_dtype, **kept
        )
        return cls(pipeline.to(model.execution_device), judge)

    def sample(
        self, prompt: str, count: int, guidance_scale: float, num_steps: int, seed: int
    ) -> Iterator[SamplingState]:
        """
        Generates `count` pictures, one from each of the seeds `seed`, `seed` + 1, …, and yields every step. The last
        state holds the finished pictures. A caller that stops reading stops the sampling.

        Raises:
            ValueError, TypeError: naming the argument, what was expected and what came.
        """
        prompt = self.judge.checked_prompt(prompt)
        count = checked_integer("pictures", count, 2, MAX_PICTURES)
        guidance_scale = checked_number("guidance", guidance_scale, 1, MAX_GUIDANCE)
        num_steps = checked_integer("steps", num_steps, 4, MAX_STEPS)
        seed = checked_integer("seed", seed, 0, MAX_SEED)
        states: SimpleQueue[SamplingState | None] = SimpleQueue()
        abandoned = Event()

        def watch(pipeline, index, timestep, tensors):
            # How diffusers has a callback end a sampling.
            pipeline._interrupt = abandoned.is_set()
            states.put(self._observe(index, num_steps, **tensors))
            return {}

        def run():
            try:
                self.pipeline(
                    prompt,
                    num_images_per_prompt=count,
                    guidance_scale=guidance_scale,
                    num_inference_steps=num_steps,
                    max_sequence_length=self.judge.config.max_sequence_length,
                    generator=[torch.Generator().manual_seed(seed + index) for index in range(count)],
                    output_type="latent",
                    callback_on_step_end=watch,
                    callback_on_step_end_tensor_inputs=["latents", "prompt_embeds", "pooled_prompt_embeds"],
                )
            finally:
                states.put(None)

        # The pipeline calls back rather than yields: it runs beside, and its states come through a queue.
        with ThreadPoolExecutor(1) as executor:
            sampling = executor.submit(run)
            try:
                yield from iter(states.get, None)
            finally:
                abandoned.set()
            sampling.result()

    def _observe(self, index, num_steps, latents, prompt_embeds, pooled_prompt_embeds) -> SamplingState:
        # Under guidance the text without a prompt comes first.
        count = len(latents)
        sigma = self.pipeline.scheduler.sigmas[index + 1].item()
        scores = self.judge.scorer.model(latents, sigma, prompt_embeds[-count:], pooled_prompt_embeds[-count:]).scores
        is_seen = index % STEPS_PER_VIEW == 0 or index + 1 == num_steps
        pictures = self._decode(latents) if is_seen else None
        return SamplingState(index + 1, num_steps, sigma, scores.float().cpu(), pictures)

    def _decode(self, latents: torch.Tensor) -> list[Image.Image]:
        vae = self.pipeline.vae
        pixels = vae.decode(latents / vae.config.scaling_factor + vae.config.shift_factor).sample
        return self.pipeline.image_processor.postprocess(pixels)
