"""Compare rewards of the small world that are trained on votes with one that is trained on the labels of a pixel
scorer: `python -m model_card.studies.distillation --out DIR`. The same command in another process shares the work."""

import shutil
import time
from functools import partial
from typing import Any

import torch
import typer
from datasets import Dataset

from model_card.studies.distillation.report import VARIANTS, summarize, write_report
from model_card.studies.frame import Amount, study_command
from model_card.studies.method import variants as method
from model_card.studies.method.__main__ import MethodStudy
from model_card.studies.method.measurement import Reader, best_reachable, group_pairs, latent_reader, measure_variant
from model_card.studies.method.pixel import pixel_reader, train_pixels
from training.label_pairs import LAWS
from training.reward.data import with_targets
from training.reward.pixel_model import PixelRewardModel
from training.world.annotators import IMPRESSION_NOISE
from training.world.groups import FIRST

LAW = "thurstone"


class DistillationStudy(MethodStudy):
    """The distillation study, on the pictures and with the training of the method study. In full it takes about two
    hours on two cores."""

    kind = "distillation_study"
    amounts = {  # noqa: RUF012
        "steps": Amount(750, least=2),  # updates of each training
        "train_groups": Amount(4000, least=12),  # captions with four pictures each
        "voted_groups": Amount(500, least=3),  # the first of them, whose votes the scorer is trained on
        "test_groups": Amount(400, least=3),  # captions in each test set
    }
    variants = VARIANTS
    constants = MethodStudy.constants | {"law": LAW, "temperature": IMPRESSION_NOISE}
    write_report = staticmethod(write_report)

    def run(self, name: str, seed: int) -> dict[str, Any]:
        """Train and measure a variant: besides the "seconds" of all this, the seconds of each part of the training,
        and the numbers of pairs with votes and of pairs that the reward was trained on."""
        start, voted = time.monotonic(), len(FIRST) * self.size["voted_groups"]
        _, pairs = self.train_set
        parts: dict[str, float] = {}
        if name in ("scorer", "distilled"):
            parts["scorer"] = self.part(f"scorers/{seed}", partial(self.train_scorer, seed))["seconds"]
        if name == "scorer":
            read, pairs = pixel_reader(self.scorer(seed), self.pipeline), pairs.select(range(voted))
        elif name == "distilled":
            pairs, parts["labels"] = self.label(seed)
            read, parts["reward"] = self.train_reward(name, seed, pairs)
        else:
            pairs = pairs if name == "votes" else pairs.select(range(voted))
            read, parts["reward"] = self.train_reward(name, seed, pairs)
        measured = measure_variant(VARIANTS[name].evaluations, read, self.test_sets, (0.0,))
        votes = len(pairs) if name == "votes" else voted
        return {"seconds": time.monotonic() - start, "parts": parts, "votes": votes, "pairs": len(pairs), **measured}

    def train_scorer(self, seed: int) -> dict[str, float]:
        """Train the pixel scorer on votes, and save it; returns the "seconds" of the training."""
        start, folder, (groups, _) = time.monotonic(), self.path / "scorers" / str(seed), self.train_set
        train_pixels(self.pipeline, groups.first(self.size["voted_groups"]), seed, self.size["steps"], folder)
        return {"seconds": time.monotonic() - start}

    def scorer(self, seed: int) -> PixelRewardModel:
        """The trained pixel scorer."""
        model = PixelRewardModel.from_pretrained(self.path / "scorers" / str(seed))
        return model.eval().to(self.pipeline.device)

    def label(self, seed: int) -> tuple[Dataset, float]:
        """All pairs with the scorer's targets in place of votes, and the seconds that scoring took."""
        start, (groups, pairs) = time.monotonic(), self.train_set
        scores = pixel_reader(self.scorer(seed), self.pipeline)(groups, (0.0,), 1, "pictures").single.ravel()
        first, second = groups.pairs
        targets = LAWS[LAW](torch.from_numpy((scores[first] - scores[second]) / IMPRESSION_NOISE))
        return with_targets(pairs, targets.tolist()), time.monotonic() - start

    def train_reward(self, name: str, seed: int, pairs: Dataset) -> tuple[Reader, float]:
        """Train DiNa on pairs; returns what computes its rewards, and the seconds of the training."""
        start, folder = time.monotonic(), self.path / "training" / f"{name}-{seed}"
        fields = {"seed": seed, "max_steps": self.size["steps"]}
        variant = method.VARIANTS["dina"]
        model, encode = method.train_variant(variant, self.pipeline_dir, self.pipeline, pairs, folder, **fields)
        shutil.rmtree(folder, ignore_errors=True)
        return latent_reader(model, encode, variant.thurstone), time.monotonic() - start

    def measure_costs(self) -> dict[str, Any]:
        """Nothing: the trained rewards cost the same."""
        return {}

    def summarize(self, runs: dict[str, list[dict]], costs: dict[str, Any]) -> dict[str, Any]:
        best = {name: best_reachable(group_pairs(groups)) for name, groups in self.test_sets.items()}
        return summarize(runs, best)


main = study_command(DistillationStudy, "model_card.studies.distillation")

if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
