"""Train and measure variants of the method on the same pictures of the small world:
`python -m model_card.studies.method --out DIR`. The same command in another process shares the work."""

import shutil
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import typer
from datasets import Dataset

from model_card.cost_counters import measure_seconds
from model_card.studies.frame import Amount, Study, study_command
from model_card.studies.method import measurement
from model_card.studies.method.measurement import ENSEMBLE_DRAWS, ENSEMBLE_LEVELS, LEVELS, group_pairs
from model_card.studies.method.pixel import pixel_reader, score_pixels, train_pixels, untrained_pixels
from model_card.studies.method.report import write_report
from model_card.studies.method.summary import summarize
from model_card.studies.method.variants import VARIANTS, build_variant, read_arguments, train_variant
from training.costs import count_flops
from training.encode_world import write_rendered_pairs
from training.reward.data import load_pairs
from training.world.groups import Groups
from training.world.latents import rendered_groups, to_pixels
from training.world.models.reward import CONFIG
from training.world.seeds import Seed


class MethodStudy(Study):
    """The method study. In full it takes about three hours on two cores, two of them for training."""

    kind, subject, weights = "method_study", "transformer", ("transformer", "vae", "text_encoder")
    amounts = {  # noqa: RUF012
        "steps": Amount(750, least=2),  # updates of each training
        "train_groups": Amount(4000, least=12),  # captions with four pictures each, to train on
        "test_groups": Amount(400, least=3),  # the same, in each test set
        "rounds": Amount(50),  # timings of each cost
    }
    variants = VARIANTS
    constants = {  # noqa: RUF012
        "ensemble": {"levels": LEVELS[:ENSEMBLE_LEVELS], "draws": ENSEMBLE_DRAWS},
        "training": CONFIG.read_text(),
    }
    write_report = staticmethod(write_report)

    @cached_property
    def train_set(self) -> tuple[Groups, Dataset]:
        """Groups to train on and their pairs with votes. One process draws and encodes them while the others wait."""
        folder, count = self.path / "data" / "train", self.size["train_groups"]
        with self.lock("train"):
            groups = write_rendered_pairs(folder, self.pipeline_dir, groups=count, seed=Seed.STUDY_TRAIN)
        return groups, load_pairs([folder])

    @cached_property
    def test_sets(self) -> dict[str, Groups]:
        """Groups to measure on: "seen", and "held_out" combinations of colour and shape."""
        folder, options = self.path / "data", {"vae": self.pipeline.vae, "groups": self.size["test_groups"]}
        with self.lock("test"):
            seen = rendered_groups(folder / "seen", seed=Seed.STUDY_SEEN, **options)
            held_out = rendered_groups(folder / "held_out", seed=Seed.STUDY_HELD_OUT, held_out=True, **options)
        return {"seen": seen, "held_out": held_out}

    def run(self, name: str, seed: int) -> dict[str, Any]:
        """Train and measure a variant; the seed is that of the fresh weights, the order of the pairs and the noise."""
        start, folder = time.monotonic(), self.path / "training" / f"{name}-{seed}"
        read, sweep = self.train(name, seed, folder), (0.0,) if name == "pixel" else measurement.SWEEP
        measured = measurement.measure_variant(VARIANTS[name].evaluations, read, self.test_sets, sweep)
        if name == "dina":
            seen = self.test_sets["seen"]
            rewards = read(seen, LEVELS, measurement.MOST_DRAWS, "noisy latents")
            measured["ensemble"] = measurement.analyze(rewards, group_pairs(seen))
        shutil.rmtree(folder, ignore_errors=True)
        return {"seconds": time.monotonic() - start, **measured}

    def train(self, name: str, seed: int, folder: Path) -> measurement.Reader:
        """Train a variant in `folder`; returns what computes its rewards."""
        variant, steps, (groups, pairs) = VARIANTS[name], self.size["steps"], self.train_set
        if name == "pixel":
            return pixel_reader(train_pixels(self.pipeline, groups, seed, steps, folder), self.pipeline)
        fields = {"seed": seed, "max_steps": steps}
        model, encode = train_variant(variant, self.pipeline_dir, self.pipeline, pairs, folder, **fields)
        return measurement.latent_reader(model, encode, variant.thurstone)

    @torch.no_grad()
    def measure_costs(self) -> dict[str, dict[str, dict[str, float]]]:
        """FLOPs and seconds of a comparison of two images, from the text on, by `Variant.cost` and evaluation."""
        used = dict.fromkeys((VARIANTS[name].cost, each) for name in self.names for each in VARIANTS[name].evaluations)
        cases = {(name, evaluation): self.comparison(name, evaluation) for name, evaluation in used}
        seconds = measure_seconds(cases, self.pipeline.device.type, self.size["rounds"])
        costs: dict[str, dict[str, dict[str, float]]] = {name: {} for name, _ in cases}
        for (name, evaluation), case in cases.items():
            costs[name][evaluation] = {"flops": count_flops(case), "seconds": seconds[name, evaluation]}
        return costs

    def comparison(self, name: str, evaluation: str) -> Callable[[], object]:
        """A comparison of two images, with untrained weights, which do not change its cost."""
        _, mode, levels, draws, reads = measurement.EVALUATIONS[evaluation]
        pipeline, seen = self.pipeline, self.test_sets["seen"]
        assert seen.latents is not None
        assert seen.pictures is not None
        captions, images = seen.captions[:1], seen.latents[0, :2].float()
        if name == "pixel":
            pixels = untrained_pixels(pipeline).to(pipeline.device)
            images = to_pixels(seen.pictures[0])[:2] if reads == "pictures" else images
            return lambda: score_pixels(pixels, pipeline, captions, images, reads)
        arguments, _ = read_arguments(self.pipeline_dir, VARIANTS[name], output_dir=self.path)
        objective, encode = build_variant(VARIANTS[name], arguments, pipeline)
        model = objective.model.eval().requires_grad_(False).to(pipeline.device)
        images, sigmas = images.to(pipeline.device), LEVELS[:levels] if reads == "noisy latents" else (0.0,)

        def compare() -> object:
            conditioning = encode(captions).take([row for row in range(len(captions)) for _ in range(2)])
            return model.reward(images, *conditioning, sigmas=sigmas, num_draws=draws, mode=mode)

        return compare

    def summarize(self, runs: dict[str, list[dict]], costs: dict[str, Any]) -> dict[str, Any]:
        best = {name: measurement.best_reachable(group_pairs(groups)) for name, groups in self.test_sets.items()}
        return summarize(runs, best, costs)


main = study_command(MethodStudy, "model_card.studies.method")

if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
