"""The order in which pairs are voted on: at random, the pairs first about which the present reward is most uncertain,
or every prompt before any prompt a second time.

Uncertainty orders are those of one batch: the reward scores all pairs once, and they are sorted. After some votes,
train on all votes so far with `training.train_reward`, and order the pairs without votes by the new reward.
"""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
import typer

from modeling_dina import DinaScorer
from modeling_dina.evaluation.benchmarks.preference_set import Item, PreferenceSet
from modeling_dina.evaluation.evaluate import score_items
from modeling_dina.evaluation.rewards import DinaEvaluator
from modeling_dina.files import Journal
from modeling_dina.images_dina import load_image
from modeling_dina.options import check_model, loading, quieten_libraries, scoring_progress, usable_device
from modeling_dina.thurstone_dina import PairStatistics

# Names of fields of `PairStatistics`: the mean entropy of a single sample, the part of the entropy that comes from
# differences between noise draws and levels, and their sum.
Uncertainty = Literal["likelihood_entropy", "disagreement", "entropy"]
Order = Literal["random", "coverage", Uncertainty]
JOURNAL = "order.jsonl"


def order_rows(
    order: str,
    prompts: Sequence[str],
    *,
    seed: int,
    statistics: PairStatistics | None = None,
    voted: Collection[int] = (),
) -> list[int]:
    """
    The rows of pairs without votes, in the order in which they should be voted on.

    Args:
        order: "random"; "coverage", in which the prompt with the fewest votes comes next; or the name of an
            uncertainty, in which the pair with the largest one comes next.
        prompts: [N], prompt of each pair.
        seed: seed of the random order, which also decides among equal pairs.
        statistics: statistics of all N pairs by the present reward, for an uncertainty. Pairs with NaN come last.
        voted: rows of the pairs that have votes.

    Raises:
        ValueError: `order` is unknown, or needs statistics of N pairs and has none.
    """
    shuffled = np.random.default_rng(seed).permutation(len(prompts))
    rows = shuffled[~np.isin(shuffled, list(voted))]
    if order == "random":
        return rows.tolist()
    if order == "coverage":
        counts = Counter(prompts[row] for row in voted)
        turns = []
        for row in rows:
            turns.append(counts[prompts[row]])
            counts[prompts[row]] += 1
        return rows[np.argsort(turns, kind="stable")].tolist()
    if order not in get_args(Uncertainty):
        raise ValueError(f"order: expected one of {', '.join(orders())}, got {order!r}")
    if statistics is None or len(statistics.entropy) != len(prompts):
        found = "none" if statistics is None else len(statistics.entropy)
        raise ValueError(f"statistics: expected those of {len(prompts)} pairs with the order {order}, got {found}")
    uncertainty = getattr(statistics, order).double().cpu().numpy()
    # NumPy sorts NaN to the end.
    return rows[np.argsort(-uncertainty[rows], kind="stable")].tolist()


def orders() -> tuple[str, ...]:
    """The names of all orders."""
    return ("random", "coverage", *get_args(Uncertainty))


def score_pairs(
    evaluator: DinaEvaluator,
    pairs: Sequence[tuple[str, str, str]],
    folder: Path,
    *,
    batch_size: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[PairStatistics, list[dict[str, str]]]:
    """
    Win probability and uncertainty of pairs of pictures. Every picture is scored once for its prompt.

    Args:
        evaluator: evaluator of the present reward.
        pairs: N prompts, with the paths of both pictures.
        folder: folder for the journal of the scores, from which an interrupted call resumes.
        batch_size: number of pictures scored at a time.
        progress: called with the numbers of finished and of all pictures.

    Returns:
        Statistics [N], with NaN for pairs of which a picture cannot be scored, and {"name", "error"} of these
        pictures.

    Raises:
        ValueError: the journal is from a call with another reward or other pairs.
    """
    preferences = PreferenceSet()
    for prompt, *images in pairs:
        a, b = (Item(prompt, image, partial(load_image, image)) for image in images)
        preferences.add_pair(prompt, a, b, 0.5)  # the label is not used
    folder.mkdir(parents=True, exist_ok=True)
    journal = Journal(folder / JOURNAL, evaluator.settings | {"pairs": preferences.fingerprint()})
    samples, failures = score_items(preferences.items, evaluator, journal, batch_size, progress)
    journal.remove()
    return evaluator.ensemble(samples).statistics(preferences.pairs()), failures


@dataclass
class OrderOptions:
    """Options that choose the order in which pairs are voted on."""

    order: Annotated[
        Order,
        typer.Option(
            help="Order of the pairs: at random, by coverage of the prompts, or by the uncertainty of a reward about "
            "them: its entropy, or the two parts of it, the entropy of the likelihood and the disagreement of draws."
        ),
    ] = "random"
    model: Annotated[
        str | None, typer.Option(help="Reward model that knows how uncertain a pair is: a folder or a Hub id.")
    ] = None

    def check(self) -> None:
        """Raise a ValueError unless there is a model if and only if the order needs one."""
        if (self.order in get_args(Uncertainty)) != (self.model is not None):
            expected = "a reward model" if self.model is None else "none"
            raise ValueError(f"model: expected {expected} with the order {self.order}, got {self.model}")
        if self.model is not None:
            check_model(self.model)

    def rows(
        self,
        pairs: Sequence[tuple[str, str, str]],
        folder: Path,
        *,
        seed: int,
        voted: Collection[int] = (),
        batch_size: int = 16,
        device: str | None = None,
        **loading_options: Any,
    ) -> tuple[list[int], list[dict[str, str]]]:
        """
        The rows of pairs without votes in this order.

        Args:
            pairs: N prompts, with the paths of both pictures.
            folder: folder for the scores of an interrupted call.
            seed, voted: as in `order_rows`.
            batch_size: number of pictures scored at a time.
            device, loading_options: arguments of `DinaScorer.from_pretrained`.

        Returns:
            The rows, and {"name", "error"} of pictures that cannot be scored.

        Raises:
            ValueError: the model cannot be loaded.
        """
        statistics: PairStatistics | None = None
        failures: list[dict[str, str]] = []
        if self.model is not None:
            quieten_libraries()
            with loading("model", self.model):
                scorer = DinaScorer.from_pretrained(
                    self.model, device=usable_device(device), batch_size=batch_size, **loading_options
                )
            evaluator = DinaEvaluator(scorer, self.model)
            with scoring_progress() as advance:
                statistics, failures = score_pairs(evaluator, pairs, folder, batch_size=batch_size, progress=advance)
        prompts = [prompt for prompt, *_ in pairs]
        return order_rows(self.order, prompts, seed=seed, statistics=statistics, voted=voted), failures
