"""Align the small world's generator by every algorithm, to the latent reward and to a pixel reward behind the decoder:
`python -m model_card.studies.alignment --out DIR`. The same command in another process shares the work."""

import math
import shutil
import tempfile
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import typer
from accelerate import Accelerator

from model_card.cost_counters import measure_peak_bytes, measure_seconds
from model_card.studies.alignment.costs import RESOLUTION, count_full_size
from model_card.studies.alignment.measurement import best_of_n, measure_run
from model_card.studies.alignment.report import write_report
from model_card.studies.alignment.summary import summarize
from model_card.studies.alignment.variants import CONFIGS, LATENT, VARIANTS
from model_card.studies.frame import Amount, Study, study_command
from modeling_dina import DinaRewardModel
from training.align.arguments import AlignArguments
from training.align.evaluation import Evaluation
from training.align.run import build, load_run, run
from training.costs import count_flops
from training.reward.pixel_model import PixelRewardModel
from training.run_control import TERMINATED
from training.world.groups import pairwise_accuracy
from training.world.models.pixel_reward import measure, test_groups, train_pixel_reward
from training.world.models.scores import group_scores


class AlignmentStudy(Study):
    """The alignment study. In full it takes two to three hours on two cores, as two processes."""

    kind, subject, weights = "alignment_study", ".", ("transformer", "vae")
    amounts = {  # noqa: RUF012
        "updates": Amount(80, least=2),  # updates of a variant, times its fraction
        "prompts": Amount(1.0),  # fraction of the configurations' prompts that an update takes
        "evaluations": Amount(4),  # evaluations of a run after the one before its first update
        "eval_samples": Amount(96, least=4),  # two for each caption
        "rendered": Amount(8192, least=15),  # groups of four pictures that the pixel reward is trained on
        "generated": Amount(1000, least=1),  # the same, of the generator's own pictures
        "test_groups": Amount(250, least=2),  # that both reward models are compared on, of each kind
        "rounds": Amount(5),  # timings of each cost
    }
    variants = VARIANTS
    constants = {  # noqa: RUF012
        "resolution": RESOLUTION,
        "configs": {path.stem: path.read_text() for path in sorted(CONFIGS.glob("small_world_*.yaml"))},
        "flags": {name: variant.overrides for name, variant in VARIANTS.items()},
    }
    write_report = staticmethod(write_report)

    @property
    def pixel_dir(self) -> Path:
        """Folder of the pixel reward."""
        return self.path / "pixel_reward"

    def arguments(self, name: str, output_dir: Path, **fields: Any) -> tuple[AlignArguments, Any]:
        """Arguments of a variant's run and of its algorithm; `fields` differ from its configuration and overrides. No
        reward is watched during a run, because all variants are measured in the same way afterwards."""
        fields |= {"policy": self.pipeline_dir, "reward_model": self.pipeline_dir, "pixel_reward": self.pixel_dir}
        fields |= {"eval_samples": self.size["eval_samples"] // 2 * 2, "eval_samples_per_prompt": 2, "watched": None}
        fields |= VARIANTS[name].overrides | {"output_dir": output_dir, "report_to": "none"}
        arguments, algorithm_arguments = load_run(CONFIGS / f"small_world_{VARIANTS[name].config}.yaml", **fields)
        prompts = max(1, round(self.size["prompts"] * arguments.prompts_per_update))
        return replace(arguments, prompts_per_update=prompts), algorithm_arguments

    @cached_property
    def evaluation(self) -> Evaluation:
        """The evaluation of the initial generator by every reward: "utility" is the truth, "dina" the model's own
        ensemble. One process trains the pixel reward while the others wait."""
        groups = {name: self.size[name] for name in ("rendered", "generated")}
        with self.lock("pixel_reward"):
            train_pixel_reward(self.pipeline_dir, self.pixel_dir, **groups, epochs=4)
        arguments, algorithm_arguments = self.arguments(LATENT, self.path)
        arguments = replace(arguments, watched=["utility", "pixel"])
        return build(arguments, algorithm_arguments, Accelerator()).evaluation

    def run(self, name: str, seed: int) -> dict[str, Any]:
        """Align and measure; the seed is that of the fresh LoRA, the prompts and the noise. A SIGTERM leaves a
        checkpoint to resume from, and raises SystemExit."""
        variant, out, evaluation = VARIANTS[name], self.path / "runs" / f"{name}-{seed}", self.evaluation
        updates = max(2, round(self.size["updates"] * variant.updates))
        fields = {"updates": updates, "eval_every": math.ceil(updates / self.size["evaluations"])}
        fields |= {"save_every": max(1, updates // 5), "seed": seed}
        trainer = run(*self.arguments(name, out, resume_from_checkpoint="last", **fields))
        if trainer.was_terminated:
            raise SystemExit(TERMINATED)
        curve = measure_run(evaluation, out)
        for checkpoint in out.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
        return {"seconds": trainer.seconds, "curve": curve}

    def measure_costs(self) -> dict[str, dict[str, float]]:
        """The median "seconds" of an update, the "peak_bytes" beyond the memory that is always in use, and "flops"."""
        with tempfile.TemporaryDirectory() as folder:
            arguments = {name: self.arguments(name, Path(folder)) for name in self.names}
            cases = {name: build(*each, Accelerator()).make_update for name, each in arguments.items()}
            device = self.evaluation.policy.device.type
            seconds = measure_seconds(cases, device, self.size["rounds"])
            peaks = {name: measure_peak_bytes(case, device) for name, case in cases.items()}
            return {
                name: {"seconds": seconds[name], "peak_bytes": peaks[name], "flops": count_flops(case)}
                for name, case in cases.items()
            }

    def measure_rewards(self) -> dict[str, dict[str, dict[str, float]]]:
        """How often both reward models agree with a fresh annotator, on rendered and on generated pictures."""
        pipeline, model = self.evaluation.policy.pipeline, DinaRewardModel.from_pretrained(self.pipeline_dir).eval()
        pixels = PixelRewardModel.from_pretrained(self.pixel_dir).eval()
        groups = test_groups(self.pixel_dir, pipeline, self.size["test_groups"])
        scores = {name: group_scores(model, pipeline, each) for name, each in groups.items()}
        return {
            "pixel": {name: measure(pixels, pipeline, each) for name, each in groups.items()},
            "dina": {name: pairwise_accuracy(scores[name], each.utilities) for name, each in groups.items()},
        }

    def summarize(self, runs: dict[str, list[dict]], costs: dict[str, Any]) -> dict[str, Any]:
        best = self.part("best_of_n", lambda: best_of_n(self.evaluation))
        curves = {name: [run["curve"] for run in by_seed] for name, by_seed in runs.items()}
        quality, full_size = self.part("reward_models", self.measure_rewards), self.part("full_size", count_full_size)
        return {"reward_models": quality, **summarize(curves, best, costs), "full_size": full_size}


main = study_command(AlignmentStudy, "model_card.studies.alignment")

if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
