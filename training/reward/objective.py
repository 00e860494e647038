"""The training objective: the loss of preference pairs on noisy latents, as a module."""

from typing import Any

import torch
from torch import nn

from modeling_dina import DinaRewardModel
from modeling_dina.modeling_dina import DinaEnsembleOutput
from modeling_dina.pipelines_dina import EncodedPrompts
from modeling_dina.thurstone_dina import bradley_terry_loss, fidelity_loss, likelihood_loss, noise_variance

LOSSES = ("fidelity", "log_likelihood", "bradley_terry")


class PreferenceObjective(nn.Module):
    """
    Loss of preference pairs under the noise-calibrated Thurstone model or the Bradley-Terry model.

    Both images of a pair have the same noise and noise level, and are processed in one batch.

    Args:
        model: reward model. Its variance, `config.variance_slope` sigma^2 + `config.variance_floor`, is that of the
            Thurstone model; with a slope of 0 it is constant.
        loss: "fidelity" or "log_likelihood" of the Thurstone model, or "bradley_terry".
        margin: margin that "bradley_terry" requires between the two rewards.
        learn_variance: whether to learn slope and floor together with the weights.

    Raises:
        ValueError: an option is unknown or incompatible with the others.
    """

    def __init__(
        self,
        model: DinaRewardModel,
        loss: str = "log_likelihood",
        *,
        margin: float = 0.0,
        learn_variance: bool = False,
    ) -> None:
        super().__init__()
        if loss not in LOSSES:
            raise ValueError(f"loss: expected one of {LOSSES}, got {loss!r}")
        if margin and loss != "bradley_terry":
            raise ValueError(f"margin: expected 0 with the loss {loss!r}, got {margin}")
        if learn_variance and (loss == "bradley_terry" or model.config.variance_slope == 0):
            raise ValueError(
                "learn_variance: expected a Thurstone loss and a positive variance_slope, "
                f"got {loss!r} and {model.config.variance_slope}"
            )
        self.model = model
        self.loss, self.margin = loss, margin
        law = torch.tensor([model.config.variance_slope, model.config.variance_floor], dtype=torch.float32)
        # With logarithms as parameters, both stay positive.
        self.log_variance = nn.Parameter(law.log()) if learn_variance else None

    def forward(
        self,
        latents: torch.Tensor,
        noise: torch.Tensor,
        sigma: torch.Tensor,
        prompt_embeds: torch.Tensor,
        pooled_prompt_embeds: torch.Tensor | None = None,
        prompt_embeds_mask: torch.Tensor | None = None,
        *,
        target: torch.Tensor,
    ) -> torch.Tensor:
        """
        The loss of each pair, [B].

        Args:
            latents: clean latents of images a and b, [2, B, C, H, W].
            noise: [B, C, H, W].
            sigma: [B].
            prompt_embeds, pooled_prompt_embeds, prompt_embeds_mask: text conditioning of the pairs, as in
                `DinaRewardModel.forward`.
            target: [B], probability that a is preferred.
        """
        noisy_latents = self.model.noise_path.add_noise(
            latents.flatten(0, 1), noise.repeat(2, 1, 1, 1), sigma.repeat(2)
        )
        conditioning = EncodedPrompts(prompt_embeds, pooled_prompt_embeds, prompt_embeds_mask).repeat(2)
        scores_a, scores_b = self.model(noisy_latents, sigma.repeat(2), *conditioning).scores.chunk(2)
        if self.loss == "bradley_terry":
            a_wins = bradley_terry_loss(scores_a, scores_b, self.margin)
            return target * a_wins + (1 - target) * bradley_terry_loss(scores_b, scores_a, self.margin)
        if self.log_variance is None:
            variance = self.model.variance(sigma)
        else:
            variance = noise_variance(sigma, *self.log_variance.exp())
        law = {"fidelity": fidelity_loss, "log_likelihood": likelihood_loss}[self.loss]
        return law(scores_a, scores_b, variance, variance, target)

    def reward(self, *args: Any, **kwargs: Any) -> DinaEnsembleOutput:
        """`DinaRewardModel.reward`, as a method of the module whose weights FSDP gathers."""
        return self.model.reward(*args, **kwargs)

    def write_variance(self, log_variance: torch.Tensor | None) -> None:
        """Write the learnt slope and floor, given by their logarithms, to the model's config. None does nothing."""
        if log_variance is not None:
            config = self.model.config
            config.variance_slope, config.variance_floor = log_variance.detach().exp().tolist()

    def gradient_checkpointing_enable(self, **options: Any) -> None:
        """Enable gradient checkpointing of the backbone's blocks. Called by the Trainer."""
        self.model.gradient_checkpointing_enable(options.get("gradient_checkpointing_kwargs"))

    def activation_checkpointing_enable(self, **options: Any) -> None:
        """Like `gradient_checkpointing_enable`, under its name in later versions of transformers."""
        self.model.gradient_checkpointing_enable(options.get("activation_checkpointing_kwargs"))
