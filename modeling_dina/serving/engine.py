"""One reward model on one device, which processes batches of requests, independent of network and queue."""

import io
import logging
import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch

from modeling_dina import DinaRewardModel
from modeling_dina.images_dina import read_image
from modeling_dina.pipelines_dina import EncodedPrompts

from .comparison import CompareRequest
from .protocol import ENSEMBLE_VERSION, MAX_TOKENS, VERSION, VERSIONS, ScoreRequest

Job = ScoreRequest | CompareRequest
Answer = list[float] | dict
# The fields of `DinaEnsembleOutput` that version 2 of the protocol returns.
ENSEMBLE_FIELDS = ("scores", "samples", "sigmas", "variance", "weights")
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
            self.model.backbone.check_inputs("latents", job.latents, *job.prompts)
        elif self.scorer is None:
            raise ValueError(
                "images: expected latents for /v1/score, because this server was started with latents only"
            )

    def info(self) -> dict[str, Any]:
        """Describe the model and what it accepts, for `GET /v1/info`."""
        config, backbone = self.model.config, self.model.backbone
        sizes = backbone.dimensions
        return {
            # Version 1 needs pooled embeddings.
            "protocol_versions": list(VERSIONS if sizes.pooled_width is not None else [ENSEMBLE_VERSION]),
            "family": config.backbone_type,
            "latent_channels": sizes.latent_channels,
            "patch_size": sizes.patch_size,
            "max_side": None if math.isinf(sizes.max_side) else sizes.max_side,
            "text_width": sizes.text_width,
            "pooled_width": sizes.pooled_width,
            "accepts_mask": backbone.takes_mask,
            "max_tokens": int(min(MAX_TOKENS, sizes.max_text_length)),
            "compares_images": self.scorer is not None,
            "sigmas": list(config.default_sigmas),
            "num_draws": config.default_num_draws,
            "mode": config.ensemble_mode,
        }

    def answer(self, jobs: Sequence[Job]) -> list[Answer | Exception]:
        """
        Process jobs. The answer to each, in their order, is the scores of its samples (in version 2 of the protocol,
        the `ENSEMBLE_FIELDS`), the ranking of its images, a `ModelFaultError`, or a ValueError for invalid images. A
        failing job does not affect the others.

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
        return [_answer(request, output) for request, output in zip(requests, self._score(requests), strict=True)]

    def _score(self, requests: Sequence[ScoreRequest]) -> list[dict[str, torch.Tensor]]:
        """The `ENSEMBLE_FIELDS` of each request, float32 on the CPU, with samples in the last dimension. Each sample's
        equal `DinaRewardModel.reward` of this sample alone, with its levels and its seed."""
        latents = torch.cat([request.latents for request in requests])
        prompts = [sample for request in requests for sample in _widened(request.prompts).split()]
        levels = torch.cat([self._levels(request) for request in requests], dim=1)
        seeds = [seed for request in requests for seed in request.seeds]
        device, parts = self.model.execution_device, defaultdict(list)
        for start in range(0, len(latents), self.max_batch_size):
            part = slice(start, start + self.max_batch_size)
            output = self.model.reward(
                latents[part].to(device),
                *EncodedPrompts.join(prompts[part]).to(device),
                sigmas=levels[:, part],
                num_draws=requests[0].num_draws,
                mode=requests[0].mode,
                seed=seeds[part],
            )
            for name in ENSEMBLE_FIELDS:
                parts[name].append(output[name].float().cpu())
        sizes = [request.size for request in requests]
        fields = {name: torch.cat(values, dim=-1).split(sizes, dim=-1) for name, values in parts.items()}
        return [{name: values[index] for name, values in fields.items()} for index in range(len(requests))]

    def _levels(self, request: ScoreRequest) -> torch.Tensor:
        """The noise levels [K, B] of a request."""
        sigmas = torch.tensor(self.model.config.default_sigmas) if request.sigmas is None else request.sigmas
        return sigmas if sigmas.ndim == 2 else sigmas[:, None].expand(-1, request.size)

    def _compare(self, request: CompareRequest) -> Answer | Exception:
        try:
            images = [read_image(io.BytesIO(data), f"images[{i}]") for i, data in enumerate(request.images)]
        except ValueError as error:
            return error
        ranking = self.scorer.rank(prompt=request.prompt, images=images)
        if not ranking.scores.isfinite().all():
            return ModelFaultError("the score is not finite")
        return ranking.to_dict()


def _answer(request: ScoreRequest, output: dict[str, torch.Tensor]) -> Answer | Exception:
    if not (output["scores"].isfinite().all() and output["samples"].isfinite().all()):
        return ModelFaultError("the score is not finite")
    if request.version == VERSION:
        return output["scores"].tolist()
    return {name: values.tolist() for name, values in output.items()}


def _widened(prompts: EncodedPrompts) -> EncodedPrompts:
    """Embeddings in float32, because padding would convert all samples to the dtype of the first."""
    return prompts._replace(prompt_embeds=prompts.prompt_embeds.float())
