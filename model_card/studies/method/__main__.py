"""The method's claims, where the truth is known: `python -m model_card.studies.method --out DIR`.

Every variant is trained and measured on the same pictures of the small world, with several seeds, one after another;
an interrupted study resumes, and the same command in another process shares the work. The results are `results.json`,
`tables.md` and its figures.
"""

import shutil
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import torch
import typer

from model_card.cost_counters import measure_seconds
from model_card.studies.frame import Amount, Study, study_command
from model_card.studies.method.material import Material
from model_card.studies.method.measurement import (
    ENSEMBLE_DRAWS,
    ENSEMBLE_LEVELS,
    EVALUATIONS,
    LEVELS,
    MOST_DRAWS,
    SWEEP,
    Reader,
    analyze,
    best_reachable,
    group_pairs,
    measure_variant,
    read_rewards,
)
from model_card.studies.method.pixel import pixel_reader, train_pixels
from model_card.studies.method.summary import summarize
from model_card.studies.method.tables import write_report
from model_card.studies.method.variants import VARIANTS, build_variant, read_arguments, train_variant
from modeling_dina.latents_dina import decode_latents
from training.costs import count_flops
from training.world.latents import to_pixels
from training.world.models.pixel_reward import fresh_pixel_reward
from training.world.models.reward import CONFIG
from training.world.models.scores import encode_captions


class MethodStudy(Study):
    """
    The method study. In full it should take about three hours on two cores: a step with 64 pairs takes 0.4 seconds
    there (half of it with a frozen backbone), which for 750 steps of eight variants and three seeds is two hours;
    measuring a seed's variants on 400 captions takes a quarter of an hour, and drawing all pictures five minutes.
    """

    kind, subject, weights = "method_study", "transformer", ("transformer", "vae", "text_encoder")
    amounts = {  # noqa: RUF012
        "steps": Amount(750, least=2),  # of each training
        "train_groups": Amount(4000, least=12),  # captions with four pictures each, to train on
        "test_groups": Amount(400, least=6),  # the same, in each test set
        "rounds": Amount(50),  # of the measurement of seconds
    }
    variants = VARIANTS
    settings = {  # noqa: RUF012
        "ensemble": {"levels": LEVELS[:ENSEMBLE_LEVELS], "draws": ENSEMBLE_DRAWS},
        "training": CONFIG.read_text(),
    }
    write_report = staticmethod(write_report)

    @cached_property
    def material(self) -> Material:
        """Drawn by one process while the others wait."""
        with self.folder.lock("data"):
            groups = self.size["train_groups"], self.size["test_groups"]
            return Material(self.folder.path / "data", self.pipeline_dir, *groups)

    def measure(self) -> dict:
        measured = self.run_variants("variants", self.run_variant)
        parts = dict.fromkeys(VARIANTS[name].cost for name in self.names)
        cost = self.folder.load_or_compute(f"cost-{'-'.join(parts)}", self.measure_costs)
        best = {name: best_reachable(group_pairs(groups)) for name, groups in self.material.sets.items()}
        seconds = {name: sum(sum(each["seconds"].values()) for each in runs) for name, runs in measured.items()}
        return {"seconds": seconds, **summarize(measured, best, cost)}

    def run_variant(self, name: str, seed: int) -> dict:
        """
        Train and measure a variant.

        Args:
            name: of `VARIANTS`.
            seed: of the fresh weights, the order of the pairs and the noise.
        """
        material, start = self.material, time.monotonic()
        folder = self.folder.path / "training" / f"{name}-{seed}"
        evaluations = VARIANTS[name].evaluations
        if name == "pixel":
            read: Reader = pixel_reader(train_pixels(material, seed, self.size["steps"], folder), material)
            sweep: tuple[float, ...] = (0.0,)
        else:
            read, sweep = self.train_latent(name, seed, folder), SWEEP
        trained = time.monotonic()
        measured = measure_variant(evaluations, read, material.sets, sweep)
        if name == "dina":
            pairs = group_pairs(material.sets["seen"])
            measured["ensemble"] = analyze(read("seen", LEVELS, MOST_DRAWS, "noisy latents"), pairs)
        shutil.rmtree(folder, ignore_errors=True)
        return {"seconds": {"training": trained - start, "measurement": time.monotonic() - trained}, **measured}

    def train_latent(self, name: str, seed: int, folder: Path) -> Reader:
        """Train a variant that reads latents."""
        material, variant = self.material, VARIANTS[name]
        model, encode = train_variant(
            variant,
            self.pipeline_dir,
            material.pipeline,
            material.pairs,
            folder,
            seed=seed,
            max_steps=self.size["steps"],
        )

        def read(set_name: str, sigmas, draws: int, of: str):
            return read_rewards(model, encode, material.sets[set_name], sigmas, draws, variant.thurstone)

        return read

    @torch.no_grad()
    def measure_costs(self) -> dict[str, dict[str, dict]]:
        """FLOPs and seconds of a comparison of two images, from the text on, by variant and evaluation."""
        kinds = dict.fromkeys(
            (VARIANTS[name].cost, each) for name in self.names for each in VARIANTS[name].evaluations
        )
        cases = {kind: self.comparison(*kind) for kind in kinds}
        seconds = measure_seconds(cases, self.material.pipeline.device.type, self.size["rounds"])
        costs: dict[str, dict[str, dict]] = {}
        for (name, evaluation), case in cases.items():
            found = {"flops": count_flops(case), "seconds": seconds[name, evaluation]}
            costs.setdefault(name, {})[evaluation] = found
        return costs

    def comparison(self, name: str, evaluation: str) -> Callable[[], object]:
        """A comparison of two images, with untrained weights: they do not change its cost."""
        material, setting = self.material, EVALUATIONS[evaluation]
        pipeline, seen = material.pipeline, material.sets["seen"]
        images = (to_pixels(seen.pictures[0]) if setting.of == "pictures" else seen.latents[0])[:2]
        images = images.float().to(pipeline.device)
        if name == "pixel":
            width = encode_captions(pipeline, seen.captions[:1])[0].shape[-1]
            network = fresh_pixel_reward(pipeline.vae, width).eval().to(images.device)

            def compare_pictures():
                embeds = encode_captions(pipeline, seen.captions[:1])[0].float().to(images.device)
                is_latent = setting.of == "latents"
                pictures = decode_latents(pipeline.vae, images).clamp(-1, 1) if is_latent else images
                return network(pictures, embeds.expand(2, -1, -1))

            return compare_pictures
        arguments, _ = read_arguments(self.pipeline_dir, VARIANTS[name], output_dir=self.folder.path)
        objective, encode = build_variant(VARIANTS[name], arguments, pipeline)
        model = objective.model.eval().requires_grad_(False).to(images.device)
        sigmas = LEVELS[: setting.levels] if setting.of == "noisy latents" else [0.0]

        def compare():
            conditioning = [each.repeat_interleave(2, dim=0) for each in encode(seen.captions[:1])]
            return model.reward(images, *conditioning, sigmas=sigmas, num_draws=setting.draws, mode=setting.mode)

        return compare


main = study_command(MethodStudy, "model_card.studies.method")

if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
