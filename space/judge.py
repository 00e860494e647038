"""What the page and the API ask of the models: comparisons, rankings and generated pictures, within fixed limits.

The limits are checked here and not in the widgets, because a program that calls the API does not use the widgets.
"""

# First, because ZeroGPU's `spaces` must be imported before torch.
try:
    import spaces
except ImportError:  # not on a ZeroGPU Space

    def on_accelerator(function):
        """Returns the function unchanged: its device is always available."""
        return function

else:
    # Borrows a GPU for each call.
    on_accelerator = spaces.GPU

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Event

import torch
from diffusers import StableDiffusion3Pipeline
from PIL import Image

from modeling_dina import DinaScorer
from modeling_dina.conditioning_dina import encode_prompts, encoding_lock, load_pipeline
from modeling_dina.configuration_dina import ENSEMBLE_MODES
from modeling_dina.latents_dina import decode_latents
from modeling_dina.pipelines_dina import prompts_of
from modeling_dina.scoring_dina import Comparison, Ranking, check_prompt

MAX_PROMPT_CHARACTERS = 1000
MAX_FILE_BYTES = 8 * 2**20
MAX_IMAGE_PIXELS = 4096 * 4096
MIN_RANKED, MAX_RANKED = 2, 16
# All files of the longest ranking, and 1 MiB for the rest of the request.
MAX_REQUEST_BYTES = MAX_RANKED * MAX_FILE_BYTES + 2**20
# Requests in the queue; further ones are refused.
MAX_WAITING = 32
MAX_LEVELS = 10
MAX_DRAWS = 32
MAX_SEED = 2**31 - 1
MAX_PICTURES = 8
MAX_STEPS = 50
MAX_GUIDANCE = 10.0
# The family whose pictures the page generates.
GENERATING_FAMILY = "sd3"

SETTLING_DRAWS = (1, 2, 4, 8, 16, 32, 64)
# Steps between two decodings. Decoding costs more than the reward, which is computed at every step.
STEPS_PER_VIEW = 3


def checked_ensemble(sigmas, num_draws, mode, seed) -> dict:
    """Checks the arguments of `DinaScorer.score` that define the noise, and returns them as keyword arguments. None
    stands for the model's default."""
    if sigmas is not None:
        if not isinstance(sigmas, Sequence) or isinstance(sigmas, str) or not 1 <= len(sigmas) <= MAX_LEVELS:
            raise ValueError(f"noise levels: expected 1 to {MAX_LEVELS} numbers in [0, 1], got {shortened(sigmas)}")
        sigmas = [checked_number("noise levels", sigma, 0, 1) for sigma in sigmas]
    if num_draws is not None:
        num_draws = checked_integer("draws", num_draws, 1, MAX_DRAWS)
    if mode is not None and mode not in ENSEMBLE_MODES:
        raise ValueError(f"mode: expected one of {', '.join(ENSEMBLE_MODES)}, got {shortened(mode)}")
    return {"sigmas": sigmas, "num_draws": num_draws, "mode": mode, "seed": checked_integer("seed", seed, 0, MAX_SEED)}


def checked_number(name: str, value, low: float, high: float) -> float:
    """Returns a finite number in [low, high]; ValueError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"{name}: expected a number from {low} to {high}, got {shortened(value)}")
    return float(value)


def checked_integer(name: str, value, low: int, high: int) -> int:
    """Returns a whole number in [low, high], which JSON and sliders may write as 4.0; ValueError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high or value % 1:
        raise ValueError(f"{name}: expected a whole number from {low} to {high}, got {shortened(value)}")
    return int(value)


def shortened(value) -> str:
    """The value as text of at most 60 characters, for an error message."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


class Judge:
    """A scorer that refuses requests beyond the limits.

    Every method raises a ValueError or TypeError that names the argument, what was expected and what came. `sigmas`,
    `num_draws` and `mode` are those of `DinaRewardModel.reward`; None takes the model's defaults.
    """

    def __init__(self, scorer: DinaScorer):
        self.scorer = scorer

    @property
    def config(self):
        """The reward model's configuration."""
        return self.scorer.model.config

    def checked_prompt(self, prompt) -> str:
        """Returns the prompt if the model can read all of it."""
        check_prompt(prompt)
        if len(prompt) > MAX_PROMPT_CHARACTERS:
            raise ValueError(f"prompt: expected at most {MAX_PROMPT_CHARACTERS} characters, got {len(prompt)}")
        pipeline = self.scorer.pipeline
        with encoding_lock(pipeline):
            # The last text encoder reads the longest prompts.
            seen = prompts_of(pipeline).tokenizations(pipeline, [prompt], self.config.max_sequence_length)[-1]
            (tokens,) = seen.lengths(pipeline)
        if tokens > seen.limit:
            raise ValueError(
                f"prompt: expected at most {seen.limit} tokens, which is what the model reads, got {tokens}"
            )
        return prompt

    def compare(
        self, prompt: str, images: Sequence[Image.Image], sigmas=None, num_draws=None, mode=None, seed=0
    ) -> Comparison:
        """Compares two images for a prompt, with the rewards at each noise level."""
        options = checked_ensemble(sigmas, num_draws, mode, seed)
        return self.scorer.compare(prompt=self.checked_prompt(prompt), images=images, with_levels=True, **options)

    def rank(self, prompt: str, images: Sequence, sigmas=None, num_draws=None, mode=None, seed=0) -> Ranking:
        """Ranks images, paths or PIL images, for a prompt."""
        options = checked_ensemble(sigmas, num_draws, mode, seed)
        return self.scorer.rank(prompt=self.checked_prompt(prompt), images=images, **options)

    def settle(
        self, prompt: str, images: Sequence[Image.Image], most_draws: int, sigmas=None, mode=None, seed=0
    ) -> Iterator[Comparison]:
        """Yields the same comparison with 1, 2, 4, … up to `most_draws` draws. Each one includes the draws of the one
        before, because the noise of draw n does not depend on the number of draws."""
        most_draws = checked_integer("draws", most_draws, 2, SETTLING_DRAWS[-1])
        options = checked_ensemble(sigmas, None, mode, seed)
        prompt = self.checked_prompt(prompt)
        for num_draws in SETTLING_DRAWS:
            if num_draws <= most_draws:
                yield self.scorer.compare(prompt=prompt, images=images, **options | {"num_draws": num_draws})


@dataclass(frozen=True)
class SamplingState:
    """The state of sampling N pictures after one step.

    Attributes:
        step: steps taken, from 1.
        num_steps: total number of steps.
        sigma: noise level of the states.
        scores: [N], rewards of the noisy states at that level.
        pictures: the N decoded states, or None at steps that are not decoded.
    """

    step: int
    num_steps: int
    sigma: float
    scores: torch.Tensor
    pictures: list[Image.Image] | None


class Generator:
    """A pipeline of Stable Diffusion 3 whose noisy states the reward model scores during sampling.

    Args:
        pipeline: the generator, on the judge's device.
        judge: a judge that reads the same latents and prompts.
    """

    def __init__(self, pipeline: StableDiffusion3Pipeline, judge: Judge):
        self.pipeline = pipeline
        self.judge = judge
        pipeline.set_progress_bar_config(disable=True)

    @classmethod
    def beside(cls, judge: Judge) -> "Generator | None":
        """Loads the generator from the judge's own folder or repository, sharing its VAE and text encoders. Returns
        None if the folder has no generator, or that of another family."""
        model, shared = judge.scorer.model, judge.scorer.pipeline
        if model.config.conditioning_source != "." or model.config.backbone_type != GENERATING_FAMILY:
            return None
        # The scheduler keeps its place in a sampling: it alone is not shared.
        components = {
            name: part for name, part in shared.components.items() if name not in ("transformer", "scheduler")
        }
        pipeline = load_pipeline(model, without=(), **components)
        return None if pipeline.transformer is None else cls(pipeline, judge)

    def sample(
        self, prompt: str, count: int, guidance_scale: float, num_steps: int, seed: int
    ) -> Iterator[SamplingState]:
        """Generates `count` pictures from the seeds `seed`, `seed` + 1, …, and yields the state after every step. The
        last state has the finished pictures. Closing the iterator stops the sampling.

        Raises:
            ValueError, TypeError: naming the argument, what was expected and what came.
        """
        prompt = self.judge.checked_prompt(prompt)
        count = checked_integer("pictures", count, 2, MAX_PICTURES)
        guidance_scale = checked_number("guidance", guidance_scale, 1, MAX_GUIDANCE)
        num_steps = checked_integer("steps", num_steps, 4, MAX_STEPS)
        seed = checked_integer("seed", seed, 0, MAX_SEED)
        # Not by the pipeline itself, which shares its tokenizers with the scorer and would not wait for it.
        encoded = encode_prompts(self.pipeline, [prompt, ""], self.judge.config.max_sequence_length)
        embeds, pooled = encoded.pair()
        states: SimpleQueue[SamplingState | None] = SimpleQueue()
        abandoned = Event()

        def observe(pipeline, index, timestep, tensors):
            # How diffusers lets a callback end a sampling.
            pipeline._interrupt = abandoned.is_set()
            states.put(self._state(index, num_steps, **tensors))
            return {}

        def run():
            try:
                self.pipeline(
                    prompt_embeds=embeds[:1].repeat(count, 1, 1),
                    pooled_prompt_embeds=pooled[:1].repeat(count, 1),
                    negative_prompt_embeds=embeds[1:].repeat(count, 1, 1),
                    negative_pooled_prompt_embeds=pooled[1:].repeat(count, 1),
                    guidance_scale=guidance_scale,
                    num_inference_steps=num_steps,
                    generator=[torch.Generator().manual_seed(seed + index) for index in range(count)],
                    output_type="latent",
                    callback_on_step_end=observe,
                    callback_on_step_end_tensor_inputs=["latents", "prompt_embeds", "pooled_prompt_embeds"],
                )
            finally:
                states.put(None)

        # The pipeline calls back and does not yield: it runs in a thread, and its states come through a queue.
        with ThreadPoolExecutor(1) as executor:
            sampling = executor.submit(run)
            try:
                yield from iter(states.get, None)
            finally:
                abandoned.set()
            sampling.result()

    def _state(self, index, num_steps, latents, prompt_embeds, pooled_prompt_embeds) -> SamplingState:
        # Under guidance the text without a prompt comes first.
        count = len(latents)
        sigma = self.pipeline.scheduler.sigmas[index + 1].item()
        scores = self.judge.scorer.model(latents, sigma, prompt_embeds[-count:], pooled_prompt_embeds[-count:]).scores
        is_decoded = index % STEPS_PER_VIEW == 0 or index + 1 == num_steps
        pictures = self._decode(latents) if is_decoded else None
        return SamplingState(index + 1, num_steps, sigma, scores.float().cpu(), pictures)

    def _decode(self, latents: torch.Tensor) -> list[Image.Image]:
        pixels = decode_latents(self.pipeline.vae, latents)
        return self.pipeline.image_processor.postprocess(pixels)
