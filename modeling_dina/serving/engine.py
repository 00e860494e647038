"""One reward model on one device, and how it answers a batch of requests. It knows of no network and no queue."""

import logging
from collections.abc import Sequence

import torch

from modeling_dina import DinaRewardModel
from modeling_dina.data.images import open_image

from .comparison import CompareRequest
from .protocol import ScoreRequest

Job = ScoreRequest | CompareRequest
Answer = list[float] | dict
logger = logging.getLogger(__name__)


class ModelFaultError(RuntimeError):
    """A good request that the model did not answer with finite scores."""


class RewardEngine:
    """
    Args:
        model: in evaluation mode.
        scorer: a `DinaScorer` of the model; None answers latents only.
        max_batch_size: samples that the model is given at a time. It bounds memory and changes no score beyond
            rounding.
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
            dtype: None keeps that of the weights.
            latents_only: spare the memory of the VAE and the text encoders.
            options: further arguments of `DinaRewardModel.from_pretrained`, such as `revision` or `cache_dir`.

        Raises:
            ValueError, OSError: what was found is no reward model, lacks weights, or cannot be reached.
        """
        model = DinaRewardModel.from_pretrained(source, dtype=dtype or "auto", **options).to(device)
        return cls(model, None if latents_only else model.scorer(), max_batch_size=max_batch_size)

    def check(self, job: Job) -> None:
        """Raises a ValueError that names the argument unless the model can take the job. One that passes is
        fit for a batch with others."""
        if isinstance(job, ScoreRequest):
            self.model.backbone.check_inputs("latents", job.latents, job.prompt_embeds, job.pooled_prompt_embeds)
        elif self.scorer is None:
            raise ValueError("images: expected latents for /v1/score, as this server was started with latents only")

    def answer(self, jobs: Sequence[Job]) -> list[Answer | Exception]:
        """
        What each job gets, in their order: the scores of its samples or the ranking of its images, a
        `ModelFaultError`, or a ValueError for images that cannot be used. One that fails takes no other with it.

        Args:
            jobs: of one `batch_key`.
        """
        try:
            return self._try(jobs)
        except Exception as error:
            if len(jobs) == 1:
                logger.exception("the model failed on a request")
                return [ModelFaultError(f"{type(error).__name__} in the model")]
            # A batch fails for what one of them is, or for being too large for the device.
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
            answers.append(scores.tolist() if finite else ModelFaultError("a score that is not finite"))
        return answers

    def _score(self, requests: Sequence[ScoreRequest]) -> torch.Tensor:
        """Scores of all samples, float32 on the CPU: each is what `DinaRewardModel.reward` makes of it alone with its
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
            images = [
                open_image({"bytes": data, "path": None}, f"images[{index}]")
                for index, data in enumerate(request.images)
            ]
        except ValueError as error:
            return error
        ranking = self.scorer.rank(prompt=request.prompt, images=images)
        if not ranking.scores.isfinite().all():
            return ModelFaultError("a score that is not finite")
        return ranking.to_dict()
