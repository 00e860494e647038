"""Preference optimisation, where the truth is known: `python -m model_card.studies.alignment --out DIR`.

The small world's generator is aligned by every algorithm, to the latent reward and to a pixel reward behind the
decoder, with several seeds. An interrupted study resumes, and the same command in another process shares the work.
The results are `results.json`, `tables.md` and its figures.
"""

import math
import shutil
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
import typer
from safetensors.torch import load_file, save_file

from model_card.studies.alignment.costs import RESOLUTION, count_full_size, measure_updates
from model_card.studies.alignment.figures import CANDIDATES, draw_pictures
from model_card.studies.alignment.measurement import Evaluator
from model_card.studies.alignment.summary import summarize
from model_card.studies.alignment.tables import write_report
from model_card.studies.alignment.variants import CONFIGS, VARIANTS, read_arguments
from model_card.studies.frame import Amount, Study, study_command
from model_card.studies.report import save
from training.align.run import run
from training.run_control import TERMINATED
from training.world.groups import pairwise_accuracy
from training.world.models.pixel_reward import measure, test_groups, train_pixel_reward
from training.world.models.scores import group_scores

SHOWN = 8  # prompts in the figure of pictures


class AlignmentStudy(Study):
    """The alignment study. In full it takes two to three hours on two cores, as two processes."""

    kind, subject, weights = "alignment_study", ".", ("transformer", "vae")
    amounts = {  # noqa: RUF012
        "updates": Amount(80, least=4),  # of a variant, times its share
        "prompts": Amount(1.0),  # share of the configurations' prompts that an update takes
        "evaluations": Amount(4),  # of a variant, beside that before its first update
        "eval_samples": Amount(96, least=16),  # two for each caption
        "rendered": Amount(8192, least=16),  # groups of four pictures that the pixel reward is trained on
        "generated": Amount(1000, least=4),  # the same, of the generator's own pictures
        "test_groups": Amount(250, least=4),  # that both reward models are compared on, of each kind
        "rounds": Amount(5),  # of the measurement of seconds
    }
    variants = VARIANTS
    settings = {  # noqa: RUF012
        "resolution": RESOLUTION,
        "configs": {path.stem: path.read_text() for path in sorted(CONFIGS.glob("small_world_*.yaml"))},
        "flags": {name: variant.flags for name, variant in VARIANTS.items()},
    }
    write_report = staticmethod(write_report)

    @property
    def out(self) -> Path:
        return self.folder.path

    @property
    def pixel_dir(self) -> Path:
        """Folder of the pixel reward."""
        return self.out / "pixel_reward"

    @property
    def evaluation(self) -> dict[str, int]:
        """Arguments of a run's evaluations, the same for all variants."""
        return {"eval_samples": self.size["eval_samples"] // 2 * 2, "eval_samples_per_prompt": 2}

    @cached_property
    def evaluator(self) -> Evaluator:
        """It needs the pixel reward."""
        variant = next(iter(VARIANTS.values()))
        arguments, _ = read_arguments(
            variant, self.pipeline_dir, self.pixel_dir, **self.evaluation, output_dir=self.out
        )
        return Evaluator(self.pipeline_dir, self.pixel_dir, arguments)

    def measure(self) -> dict:
        self.pixel_reward(wait=False)  # Latent rewards need not wait for it.
        trained = self.run_variants("runs", self.run_variant)
        quality = self.pixel_reward()
        best_of_n, full_size = self.folder.load_or_compute_all(
            {"best_of_n": self.choose_best, "full_size": count_full_size}
        )
        curves = self.run_variants("curves", lambda name, seed: self.evaluator.curve(self.run_dir(name, seed)))
        size = self.size
        cost = self.folder.load_or_compute(
            f"cost-{'-'.join(self.names)}",
            partial(measure_updates, self.names, self.pipeline_dir, self.pixel_dir, size["prompts"], size["rounds"]),
        )
        results = {
            "seconds": {name: sum(each["seconds"] for each in runs) for name, runs in trained.items()},
            "reward_models": quality,
            **summarize(curves, best_of_n, cost),
            "full_size": full_size,
        }
        prompts = self.evaluator.evaluation.conditioning.prompts[: 2 * SHOWN : 2]
        save(draw_pictures(self.pictures(results), list(prompts)), self.out / "pictures.png")
        return results

    def run_dir(self, name: str, seed: int) -> Path:
        """Folder of a variant's run."""
        return self.out / "runs" / f"{name}-{seed}"

    def pixel_reward(self, wait: bool = True) -> dict | None:
        """Train the pixel reward once; how often it and the latent reward agree with a fresh annotator."""
        return self.folder.load_or_compute("pixel_reward/quality", self.train_pixels, wait)

    def train_pixels(self) -> dict:
        size = self.size
        train_pixel_reward(
            self.pipeline_dir, self.pixel_dir, rendered=size["rendered"], generated=size["generated"], epochs=4
        )
        pipeline, rewards = self.evaluator.policy.pipeline, self.evaluator.evaluation.rewards
        quality: dict = {"pixel": {}, "dina": {}}
        for name, groups in test_groups(self.pixel_dir, pipeline, size["test_groups"]).items():
            quality["pixel"][name] = measure(rewards["pixel"].network, pipeline, groups)
            scores = group_scores(rewards["dina"].model, pipeline, groups)
            quality["dina"][name] = pairwise_accuracy(scores, groups.utilities)
        return quality

    def run_variant(self, name: str, seed: int) -> dict:
        """
        Align.

        Args:
            name: of `VARIANTS`.
            seed: of the fresh LoRA, the prompts and the noise.

        Returns:
            The "seconds" of its updates.

        Raises:
            SystemExit: a SIGTERM came; there is a checkpoint to resume from.
        """
        variant, out = VARIANTS[name], self.run_dir(name, seed)
        if variant.reward == "pixel":
            self.pixel_reward()
        updates = max(2, round(self.size["updates"] * variant.updates))
        trainer = run(
            *read_arguments(
                variant,
                self.pipeline_dir,
                self.pixel_dir,
                self.size["prompts"],
                **self.evaluation,
                eval_every=math.ceil(updates / self.size["evaluations"]),
                output_dir=out,
                updates=updates,
                save_every=max(1, updates // 5),
                seed=seed,
                resume_from_checkpoint="last",
            )
        )
        if trainer.was_terminated:
            raise SystemExit(TERMINATED)
        for checkpoint in out.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
        return {"seconds": trainer.seconds}

    @property
    def best_path(self) -> Path:
        """File of the latents that the best of N are."""
        return self.out / "best_of_n.safetensors"

    def choose_best(self) -> dict[str, dict[int, dict]]:
        """The best of N by reward and N, measured."""
        chosen = self.evaluator.best_of_n()
        save_file(
            {f"{reward}-{count}": each for reward, by_count in chosen.items() for count, each in by_count.items()},
            self.best_path,
        )
        return {
            reward: {count: self.evaluator.measure(each) for count, each in by_count.items()}
            for reward, by_count in chosen.items()
        }

    def pictures(self, results: dict) -> dict[str, np.ndarray]:
        """Pictures of the first prompts [P, H, W, 3] in [0, 1]: before, the best of several, and with the weights that
        each variant's first seed keeps."""
        latents = {
            "unaligned": self.load_evaluation(self.names[0], 0),
            f"best of {CANDIDATES} by DiNa": load_file(self.best_path)[f"dina-{CANDIDATES}"],
        }
        for each in results["variants"]:
            name = each["variant"]
            latents[VARIANTS[name].title] = self.load_evaluation(name, each["kept"]["updates"][0])
        policy = self.evaluator.policy
        shown = torch.cat([each[: 2 * SHOWN : 2] for each in latents.values()]).to(policy.device)
        with torch.no_grad():
            images = policy.decode(shown).add(1).div(2).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
        return dict(zip(latents, np.split(images, len(latents)), strict=True))

    def load_evaluation(self, name: str, update: int) -> torch.Tensor:
        """Latents of an evaluation of a variant's first seed."""
        return load_file(self.run_dir(name, 0) / "evaluations" / f"{update:06d}.safetensors")["latents"]


main = study_command(AlignmentStudy, "model_card.studies.alignment")

if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
