"""The questions that the page and the API ask of a reward model, within the limits of a request."""

from collections.abc import Iterator, Sequence

from PIL import Image

from modeling_dina import DinaScorer
from modeling_dina.cli import PLOT_DRAWS, PLOT_SIGMAS
from modeling_dina.scoring_dina import Comparison, Ranking

from .limits import checked_ensemble, checked_integer, checked_prompt

SETTLING_DRAWS = (1, 2, 4, 8, 16, 32, 64)


class Judge:
    """
    A scorer that refuses what is out of bounds.

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
        """The prompt, if the model reads all of it."""
        pipeline = self.scorer.pipeline
        return checked_prompt(prompt, pipeline.tokenizer_3 or pipeline.tokenizer, self.config.max_sequence_length)

    def compare(
        self, prompt: str, images: Sequence[Image.Image], sigmas=None, num_draws=None, mode=None, seed=0
    ) -> Comparison:
        """Which of two images is preferred for a prompt."""
        options = checked_ensemble(sigmas, num_draws, mode, seed)
        return self.scorer.compare(prompt=self.checked_prompt(prompt), images=images, **options)

    def rank(self, prompt: str, images: Sequence, sigmas=None, num_draws=None, mode=None, seed=0) -> Ranking:
        """Images of one prompt, paths or PIL images, best first."""
        options = checked_ensemble(sigmas, num_draws, mode, seed)
        return self.scorer.rank(prompt=self.checked_prompt(prompt), images=images, **options)

    def levels(self, prompt: str, images: Sequence[Image.Image], seed=0) -> Comparison:
        """The comparison at every noise level, as `modeling_dina.plotting.draw_rewards` wants it."""
        return self.scorer.compare(
            prompt=prompt, images=images, sigmas=PLOT_SIGMAS, num_draws=PLOT_DRAWS, mode="mean", seed=seed
        )

    def settle(
        self, prompt: str, images: Sequence[Image.Image], most_draws: int, sigmas=None, mode=None, seed=0
    ) -> Iterator[Comparison]:
        """The same comparison with 1, 2, 4, … up to `most_draws` draws. Each begins with the draws of the one before:
        draw n is the same noise however many are asked for."""
        most_draws = checked_integer("draws", most_draws, 2, SETTLING_DRAWS[-1])
        options = checked_ensemble(sigmas, None, mode, seed)
        prompt = self.checked_prompt(prompt)
        for num_draws in SETTLING_DRAWS:
            if num_draws <= most_draws:
                yield self.scorer.compare(prompt=prompt, images=images, **options | {"num_draws": num_draws})
