"""What is measured of samples: every reward, whichever was optimised, and how much they differ."""

from pathlib import Path

import torch
from diffusers import StableDiffusion3Pipeline
from safetensors.torch import load_file

from modeling_dina import DinaRewardModel
from training.align.arguments import AlignArguments
from training.align.evaluation import Evaluation, diversity
from training.align.policy import Policy
from training.align.rewards import DinaReward, PixelReward, Reward, UtilityReward
from training.reward.pixel_model import PixelRewardModel

CANDIDATES = (4, 16)


class Evaluator:
    """
    The rewards that score samples of all variants, and the generator as it began.

    Args:
        pipeline_dir: the small world's pipeline and reward model.
        pixel_dir: of `training.world.models.pixel_reward`.
        arguments: of a run, whose evaluations are to be measured.

    Attributes:
        evaluation: its rewards are "utility", the truth; "dina" with the model's own ensemble; "pixel".
    """

    def __init__(self, pipeline_dir: str, pixel_dir: Path, arguments: AlignArguments) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        pipeline = StableDiffusion3Pipeline.from_pretrained(pipeline_dir, dtype=torch.float32).to(device)
        model = DinaRewardModel.from_pretrained(pipeline_dir, dtype=torch.float32).to(device)
        self.policy = Policy(pipeline, rank=1, alpha=1, max_sequence_length=model.config.max_sequence_length)
        self.arguments = arguments
        rewards: dict[str, Reward] = {
            "utility": UtilityReward(pipeline),
            "dina": DinaReward(model),
            "pixel": PixelReward(self.policy.decode, PixelRewardModel.from_pretrained(pixel_dir).to(device)),
        }
        self.evaluation = Evaluation(arguments, self.policy, rewards)

    def measure(self, latents: torch.Tensor) -> dict[str, list[float]]:
        """Means over the samples of each prompt, by reward, and their "diversity", of an evaluation's latents."""
        latents, each = latents.to(self.policy.device), self.arguments.eval_samples_per_prompt
        scores = {
            name: self.evaluation.score(name, latents, self.evaluation.conditioning)
            for name in self.evaluation.rewards
        }
        by_prompt = {name: values.view(-1, each).mean(dim=1) for name, values in scores.items()}
        by_prompt["diversity"] = diversity(latents, each)
        return {name: [round(value, 4) for value in values.tolist()] for name, values in by_prompt.items()}

    @torch.no_grad()
    def best_of_n(self) -> dict[str, dict[int, torch.Tensor]]:
        """Latents of an evaluation of the generator as it began, each the best of N by "dina" or "pixel", by N."""
        arguments, policy, most = self.arguments, self.policy, max(CANDIDATES)
        first = most * torch.arange(len(self.evaluation.conditioning), device=policy.device)
        conditioning = self.evaluation.conditioning.select((first // most).repeat_interleave(most))
        candidates = policy.sample(
            conditioning,
            policy.noise(len(conditioning), torch.Generator().manual_seed(1)),
            policy.sigmas(arguments.eval_steps),
            batch_size=arguments.sampling_batch_size,
            guidance_scale=arguments.eval_guidance_scale,
        ).states[-1]
        scores = {
            name: self.evaluation.score(name, candidates, conditioning).view(-1, most) for name in ("dina", "pixel")
        }
        return {
            name: {count: candidates[first + values[:, :count].argmax(dim=1)] for count in CANDIDATES}
            for name, values in scores.items()
        }

    def curve(self, folder: Path) -> list[dict]:
        """What `measure` returns of every evaluation of the run in `folder`, by "update"."""
        return [
            {"update": int(path.stem), **self.measure(load_file(path)["latents"])}
            for path in sorted((folder / "evaluations").glob("*.safetensors"))
        ]
