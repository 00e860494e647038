"""One reward model on one device, which processes batches of requests, independent of network and queue."""

import io
import logging
from collections.abc import Sequence

import torch

from modeling_dina import DinaRewardModel
from modeling_dina.images_dina import read_image

from .comparison import CompareRequest
from .protocol import ScoreRequest

Job = ScoreRequest | CompareRequest
Answer = list[float] | dict
logger = logging.getLogger(__name__)


class ModelFaultError(RuntimeError):
    """The model did not compute finite scores for a valid request."""


class RewardEngine:
    """
    Args:
        model: reward model in evaluation mode.
        scorer: a `DinaScorer` of the model; None supports latents only.
        max_batch_size: number of samples that the model processes at a time. It limits memory, and affects scores
            only by rounding.
    """

    def __init__(self, model: DinaRewardModel, scorer=None, *, max_batch_size: int):
        self.model = model
        self.scorer = scorer
        self.max_batch_size = max_batch_size

    @classmethod
    def from_pretrained(
        cls,
        source: str,
        *,
        device: str,
        dtype: torch.dtype | None = None,
        latents_only: bool = False,
        max_batch_size: int = 32,
        **options,
    ) -> "RewardEngine":
        """
        Args:
            source: folder or Hub id of a reward model.
            device: device of the model.
            dtype: dtype of the model; None uses that of the weights.
            latents_only: do not load the VAE and the text encoders.
            options: further arguments of `DinaRewardModel.from_pretrained`, such as `revision`, `backbone` or
                `cache_dir`.

        Raises:
            ValueError, OSError: there is no reward model, its weights are incomplete, or it cannot be downloaded.
        """
        model = DinaRewardModel.from_pretrained(source, dtype=dtype or "auto", **options).to(device)
        return cls(model, None if latents_only else model.scorer(), max_batch_size=max_batch_size)

    def check(self, job: Job) -> None:
        """Raise a ValueError that names the argument unless the model supports the job. Accepted jobs can share a
        batch."""
        if isinstance(job, ScoreRequest):
            self.model.backbone.check_inputs("latents", job.latents, job.prompt_embeds, job.pooled_prompt_embeds)
        elif self.scorer is None:
            raise ValueError(
                "images: expected latents for /v1/score, because this server was started with latents only"
            )

    def answer(self, jobs: Sequence[Job]) -> list[Answer | Exception]:
        """
        Process jobs. The answer to each, in their order, is the scores of its samples, the ranking of its images, a
        `ModelFaultError`, or a ValueError for invalid images. A failing job does not affect the others.

        Args:
            jobs: jobs with equal `batch_key`.
        """
        try:
            return self._try(jobs)
        except Exception as error:
            if len(jobs) == 1:
                logger.exception("the model failed on a request")
                return [ModelFaultError(f"{type(error).__name__} in the model")]
            # One of the jobs made the batch fail, or the batch is too large for the device.
            return [answer for job in jobs for answer in self.answer([job])]

    @torch.no_grad()
    def _try(self, jobs: Sequence[Job]) -> list[Answer | Exception]:
        comparisons = [job for job in jobs if isinstance(job, CompareRequest)]
        if comparisons:  # and nothing else, in a batch of one key
            return [self._compare(job) for job in comparisons]
        requests = [job for job in jobs if isinstance(job, ScoreRequest)]
        answers: list[Answer | Exception] = []
        for scores in self._score(requests).split([request.size for request in requests]):
            finite = bool(scores.isfinite().all())
            answers.append(scores.tolist() if finite else ModelFaultError("the score is not finite"))
        return answers

    def _score(self, requests: Sequence[ScoreRequest]) -> torch.Tensor:
        """Scores of all samples, float32 on the CPU. Each equals `DinaRewardModel.reward` of this sample alone, with
        one level, one draw and its seed."""
        latents, embeds, pooled, sigma = (
            torch.cat([getattr(request, name) for request in requests])
            for name in ("latents", "prompt_embeds", "pooled_prompt_embeds", "sigma")
        )
        seeds = [seed for request in requests for seed in request.seeds]
        device, scores = self.model.execution_device, []
        for start in range(0, len(latents), self.max_batch_size):
            part = slice(start, start + self.max_batch_size)
            inputs = [values[part].to(device) for values in (latents, embeds, pooled)]
            rewards = self.model.reward(*inputs, sigmas=sigma[None, part], num_draws=1, seed=seeds[part], mode="mean")
            scores.append(rewards.scores.cpu())
        return torch.cat(scores)

    def _compare(self, request: CompareRequest) -> Answer | Exception:
        try:
            images = [read_image(io.BytesIO(data), f"images[{i}]") for i, data in enumerate(request.images)]
        except ValueError as error:
            return error
        ranking = self.scorer.rank(prompt=request.prompt, images=images)
        if not ranking.scores.isfinite().all():
            return ModelFaultError("the score is not finite")
        return ranking.to_dict()
