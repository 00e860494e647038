"""What is measured of samples: every reward, whichever was optimised, and how much they differ."""

from pathlib import Path

import torch
from diffusers import StableDiffusion3Pipeline
from safetensors.torch import load_file

from modeling_dina import DinaRewardModel
from training.align.arguments import AlignArguments
from training.align.policy import Conditioning, Policy
from training.align.prompts import Prompts
from training.align.rewards import DinaReward, PixelReward, Reward
from training.align.trainer import diversity
from training.align.utility_reward import UtilityReward
from training.reward.pixel_model import PixelRewardModel
from training.world.seeds import Seed

BATCH_SIZE = 64
CANDIDATES = (4, 16)


class Evaluator:
    """
    The rewards that score samples of all variants, and the generator as it began.

    Args:
        pipeline_dir: the small world's pipeline and reward model.
        pixel_dir: of `training.world.models.pixel_reward`.
        arguments: of a run, whose evaluations are to be measured.

    Attributes:
        rewards: "utility", the truth; "dina" with the model's own ensemble; "pixel".
        conditioning: of the samples of an evaluation.
    """

    def __init__(self, pipeline_dir: str, pixel_dir: Path, arguments: AlignArguments) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        pipeline = StableDiffusion3Pipeline.from_pretrained(pipeline_dir, dtype=torch.float32).to(device)
        model = DinaRewardModel.from_pretrained(pipeline_dir, dtype=torch.float32).to(device)
        self.policy = Policy(pipeline, rank=1, alpha=1, max_sequence_length=model.config.max_sequence_length)
        self.arguments = arguments
        self.rewards: dict[str, Reward] = {
            "utility": UtilityReward(pipeline),
            "dina": DinaReward(model),
            "pixel": PixelReward(self.policy.decode, PixelRewardModel.from_pretrained(pixel_dir).to(device)),
        }
        each = arguments.eval_samples_per_prompt
        prompts = Prompts(arguments.eval_prompts, Seed.ALIGNMENT_EVALUATION)
        self.conditioning = self.policy.encode(prompts.batch(0, arguments.eval_samples // each, each))

    @torch.no_grad()
    def score(self, name: str, latents: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        """Scores [B] by one of the rewards."""
        rows = torch.arange(len(latents), device=self.policy.device).split(BATCH_SIZE)
        return torch.cat([self.rewards[name](latents[part], conditioning.select(part)).scores for part in rows])

    def measure(self, latents: torch.Tensor) -> dict[str, list[float]]:
        """Means over the samples of each prompt, by reward, and their "diversity", of an evaluation's latents."""
        latents, each = latents.to(self.policy.device), self.arguments.eval_samples_per_prompt
        scores = {name: self.score(name, latents, self.conditioning) for name in self.rewards}
        by_prompt = {name: values.view(-1, each).mean(dim=1) for name, values in scores.items()}
        by_prompt["diversity"] = diversity(latents, each)
        return {name: [round(value, 4) for value in values.tolist()] for name, values in by_prompt.items()}

    @torch.no_grad()
    def best_of_n(self) -> dict[str, dict[int, torch.Tensor]]:
        """Latents of an evaluation of the generator as it began, each the best of N by "dina" or "pixel", by N."""
        arguments, policy, most = self.arguments, self.policy, max(CANDIDATES)
        repeated = torch.arange(len(self.conditioning), device=policy.device).repeat_interleave(most)
        conditioning = self.conditioning.select(repeated)
        candidates = policy.sample(
            conditioning,
            policy.noise(len(conditioning), torch.Generator().manual_seed(1)),
            policy.sigmas(arguments.eval_steps),
            batch_size=BATCH_SIZE,
            guidance_scale=arguments.eval_guidance_scale,
        ).states[-1]
        scores = {name: self.score(name, candidates, conditioning).view(-1, most) for name in ("dina", "pixel")}
        first = most * torch.arange(len(self.conditioning), device=policy.device)
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
