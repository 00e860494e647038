"""Compare orders of pairs to vote on, with simulated annotators of the small world:
`python -m model_card.studies.orders --out DIR`. The same command in another process shares the work."""

import shutil
import tempfile
import time
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from datasets import Dataset

from model_card.cost_counters import measure_seconds
from model_card.studies.frame import Amount, Study, study_command
from model_card.studies.method.measurement import best_reachable, group_pairs, measure
from model_card.studies.orders.measurement import (
    TASTE,
    TRAINING,
    collect_votes,
    frozen_reader,
    picture_qualities,
    train_head,
    voted_pairs,
    with_taste,
)
from model_card.studies.orders.report import write_report
from model_card.studies.orders.summary import summarize
from model_card.studies.orders.variants import BASELINE, UNCERTAIN, VARIANTS
from modeling_dina import DinaRewardModel
from modeling_dina.pipelines_dina import EncodedPrompts
from modeling_dina.thurstone_dina import PairStatistics
from training.encode_world import write_rendered_pairs
from training.label.order import order_rows
from training.label.votes import VoteFile
from training.reward.data import load_pairs
from training.world.annotators import vote
from training.world.groups import FIRST, SECOND, Groups
from training.world.latents import rendered_groups
from training.world.models.reward import CONFIG
from training.world.models.scores import encode_captions
from training.world.seeds import Seed

DOUBLINGS = 4  # after the first votes, which no reward has ordered
# The ensembles that order the pool and that are measured.
SIGMAS, POOL_DRAWS, TEST_DRAWS = (0.1, 0.2, 0.4), 4, 1


class OrderStudy(Study):
    """The study of orders. In each run, the number of votes doubles, a new head is trained on all votes so far, and
    the pairs without votes are ordered again."""

    kind, subject, weights = "order_study", ".", ("vae", "text_encoder")
    amounts = {  # noqa: RUF012
        "votes": Amount(320, least=2**DOUBLINGS),  # the last number of votes
        "steps": Amount(60, least=2),  # updates of each training
        "pool_groups": Amount(240, least=12),  # captions with four pictures each, whose pairs are voted on
        "test_groups": Amount(200, least=3),  # the same, to measure on
        "rounds": Amount(20),  # timings of the cost
    }
    variants = VARIANTS
    constants = {  # noqa: RUF012
        "doublings": DOUBLINGS,
        "ensembles": {"sigmas": SIGMAS, "pool_draws": POOL_DRAWS, "test_draws": TEST_DRAWS},
        "taste": TASTE,
        "fields": TRAINING,
        "training": CONFIG.read_text(),
    }
    write_report = staticmethod(write_report)

    @cached_property
    def present(self) -> DinaRewardModel:
        """The small world's reward, whose backbone all heads read."""
        return DinaRewardModel.from_pretrained(self.pipeline_dir).eval().to(self.pipeline.device)

    @cached_property
    def pool(self) -> tuple[Groups, Dataset]:
        """Groups to vote on and their pairs, whose targets are not used."""
        folder, count = self.path / "data" / "pool", self.size["pool_groups"]
        with self.lock("pool"):
            groups = write_rendered_pairs(folder, self.pipeline_dir, groups=count, seed=Seed.ORDER_POOL)
        qualities = self.part("data/pool-qualities", lambda: picture_qualities(groups))
        return with_taste(groups, qualities), load_pairs([folder])

    @cached_property
    def test_set(self) -> Groups:
        """Groups to measure on."""
        with self.lock("test"):
            folder, count = self.path / "data" / "test", self.size["test_groups"]
            groups = rendered_groups(folder, self.pipeline.vae, groups=count, seed=Seed.ORDER_TEST)
        return with_taste(groups, self.part("data/test-qualities", lambda: picture_qualities(groups)))

    @cached_property
    def read_pool(self):
        """The rewards of the pool's images by a model."""
        return frozen_reader(self.present, self.encode, self.pool[0], SIGMAS, POOL_DRAWS)

    @cached_property
    def read_test(self):
        """The rewards of the test images by a model."""
        return frozen_reader(self.present, self.encode, self.test_set, SIGMAS, TEST_DRAWS)

    def encode(self, prompts: list[str]) -> EncodedPrompts:
        """Encode captions on the model's device."""
        embeds, pooled = encode_captions(self.pipeline, prompts)
        return EncodedPrompts(embeds.float(), pooled.float()).to(self.present.device)

    def run(self, name: str, seed: int) -> dict[str, Any]:
        """Collect votes in an order, and measure the rewards trained on them: "points" by number of votes. The seed is
        that of the votes, which are the same for all orders, of the random order and of the trainings."""
        start, folder = time.monotonic(), self.path / "training" / f"{name}-{seed}"
        groups, pairs = self.pool
        prompts = pairs.select_columns("prompt").with_format(None)["prompt"][:]
        first, second = (groups.utilities[:, side].ravel() for side in (FIRST, SECOND))
        prefers_a = vote(first, second, 1, np.random.default_rng((Seed.ORDER_VOTES, seed))) == 1
        points: list[dict[str, Any]] = []
        rows: list[int] = []
        statistics: PairStatistics | None = None
        with tempfile.TemporaryDirectory() as votes_folder:
            votes = VoteFile(Path(votes_folder))
            for doubling in range(DOUBLINGS + 1):
                order = BASELINE if name in UNCERTAIN and statistics is None else name
                left = order_rows(order, prompts, seed=seed, statistics=statistics, voted=rows)
                count = self.size["votes"] // 2 ** (DOUBLINGS - doubling)
                collect_votes(votes, prompts, left[: count - len(rows)], prefers_a)
                rows, voted = voted_pairs(votes, pairs)
                shutil.rmtree(folder, ignore_errors=True)
                fields = {"seed": seed, "max_steps": self.size["steps"]}
                model = train_head(self.present, self.pipeline_dir, self.pipeline, voted, folder, **fields)
                measured = measure(self.read_test(model), group_pairs(self.test_set))
                del measured["reliability"]
                points.append({"votes": count, "prompts": len({prompts[row] for row in rows}), **measured})
                if name in UNCERTAIN and doubling < DOUBLINGS:
                    statistics = self.read_pool(model).statistics(group_pairs(groups))
            votes.close()
        shutil.rmtree(folder, ignore_errors=True)
        return {"seconds": time.monotonic() - start, "points": points}

    @torch.no_grad()
    def measure_costs(self) -> dict[str, float]:
        """Seconds to score a pair, which every pair without a vote costs if uncertainty orders them."""
        groups = self.test_set
        assert groups.latents is not None
        images, captions = groups.latents[0, :2].float().to(self.present.device), groups.captions[:1]

        def score() -> object:
            conditioning = self.encode(captions).take([0, 0])
            return self.present.reward(images, *conditioning, sigmas=SIGMAS, num_draws=POOL_DRAWS)

        return {"seconds": measure_seconds({"": score}, self.pipeline.device.type, self.size["rounds"])[""]}

    def summarize(self, runs: dict[str, list[dict]], costs: dict[str, Any]) -> dict[str, Any]:
        pairs = group_pairs(self.test_set)
        bounds = {"present": measure(self.read_test(self.present), pairs), "best": best_reachable(pairs)}
        return summarize(runs, bounds, costs)


main = study_command(OrderStudy, "model_card.studies.orders")

if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
