"""Readers of public preference data sets in their published formats, for training and for evaluation.

The arguments of a reader are the rows of the published files, the split, and a function of a row's name that returns a
context manager for the row's errors: `tables.naming_row` raises them, and `PreferenceSet.row` records them and
continues with the next row.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import wraps
from itertools import combinations

import numpy as np

from modeling_dina.data.tables import Cell, Row

# Training omits HPDv3 rows with a lower confidence, as HPSv3 did.
MIN_CONFIDENCE = 0.95
GENAI_VOTES = {"leftvote": 1.0, "rightvote": 0.0, "tievote": 0.5, "bothbad_vote": 0.5}


@dataclass(frozen=True)
class Annotation:
    """
    Images of one prompt, with the annotators' preferences in all pairs of images.

    Attributes:
        prompt: prompt of the images.
        images: n paths as in the annotations, or cells with images.
        labels: labels for the accuracy, for all pairs in the order of `itertools.combinations`: 1 if the first image
            is preferred, 0 if the second is, 0.5 for a tie.
        targets: for the same pairs, the share of votes for the first image if votes are known, otherwise the label.
        category: category in the data set, or "".
        cluster: name that statistically dependent pairs share; "" uses the prompt.

    Raises:
        ValueError: an image is neither a path nor a cell.
    """

    prompt: str
    images: Sequence[str | Cell]
    labels: Sequence[float]
    targets: Sequence[float]
    category: str = ""
    cluster: str = ""

    def __post_init__(self):
        for image in self.images:
            if not image or not isinstance(image, str | Cell):
                raise ValueError(f"expected the path of an image, got {image!r}")

    def pairs(self) -> Iterator[tuple[tuple[str | Cell, str | Cell], float, float]]:
        """Iterate over all pairs of images with label and target."""
        return zip(combinations(self.images, 2), self.labels, self.targets, strict=True)


Guard = Callable[[str], AbstractContextManager[None]]
Reader = Callable[[Iterable[Row], str, Guard], Iterator[Annotation]]


def _row_by_row(parse: Callable[[Row, str], Annotation | None]) -> Reader:
    """Create a reader from a function of a row and the split, which returns None for rows to omit."""

    @wraps(parse)
    def read(rows: Iterable[Row], split: str, guard: Guard) -> Iterator[Annotation]:
        for row in rows:
            with guard(row.name):
                annotation = parse(row, split)
                if annotation is not None:
                    yield annotation

    return read


@_row_by_row
def hpdv3(row: Row, split: str) -> Annotation | None:
    """
    HPDv3 (MizzenAI/HPDv3): `{prompt, choice_dist, confidence, path1, path2, model1, model2}`; `path1` is preferred.

    The votes, `choice_dist`, have no fixed order: the larger number belongs to `path1`. The split "train" omits rows
    with a confidence below `MIN_CONFIDENCE`, but not rows without confidence. Its targets are the shares of votes, or
    1 without votes (Midjourney, HPDv2). In the split "test", all targets are 1.
    """
    prompt, images = row.read("prompt", str), [row.read("path1", str), row.read("path2", str)]
    if split == "test":
        return Annotation(prompt, images, [1.0], [1.0])
    confidence, votes = row.get("confidence"), row.get("choice_dist")
    if confidence is not None and confidence < MIN_CONFIDENCE:
        return None
    if votes is not None and (len(votes) != 2 or min(votes) < 0 or sum(votes) == 0):
        raise ValueError(f"choice_dist: expected votes for two images, got {votes}")
    return Annotation(prompt, images, [1.0], [1.0 if votes is None else max(votes) / sum(votes)])


@_row_by_row
def hpdv2(row: Row, split: str) -> Annotation:
    """
    HPDv2 (ymhao/HPDv2, zhwang/HPDv2).

    `train.json` has one choice per pair: `{prompt, file_path [2], human_preference [2]}`, with 1 for the preferred
    image. `test.json` has rankings of several annotators, in which the lowest rank is best, and a joint ranking:
    `{prompt, image_path [n], rank [n], raw_annotations [{rank [n], user_hash}]}`. An equal rank counts as half a vote.
    The labels of the split "test" come from the joint ranking; training uses only the shares of votes.
    """
    # The field is file_path in the data card, but image_path in published files.
    paths = row.read("file_path" if row.get("image_path") is None else "image_path", list)
    if row.get("human_preference") is not None:
        # Converted to a ranking, in which the preferred image, marked with 1, is first.
        votes = [[-preference for preference in row.read("human_preference", list)]]
        rankings = votes
    else:
        votes = [vote["rank"] for vote in row.get("raw_annotations") or row.get("raw_annotation") or []]
        rankings = [row.read("rank", list)] if split == "test" else votes
    return _ranked(row.name, row.read("prompt", str), paths, rankings, votes)


def image_reward(rows: Iterable[Row], split: str, guard: Guard) -> Iterator[Annotation]:
    """
    ImageRewardDB (THUDM/ImageRewardDB).

    `metadata-*.parquet` and the JSON files of the parts have one row per image: `{image_path, prompt_id, prompt, rank,
    …}`. The repository's `test.json` has one row per prompt: `{id, prompt, generations [n], ranking [n]}`. Lower ranks
    are better; equal ranks are ties.
    """
    prompts: dict[str, tuple[str, list[str], list[float]]] = {}
    for row in rows:
        with guard(row.name):
            prompt = row.read("prompt", str)
            if row.get("generations") is not None:
                prompts[row.name] = prompt, row.read("generations", list), row.read("ranking", list)
            else:
                name, path, rank = f"prompt {row['prompt_id']}", row.read("image_path", str), row["rank"]
                _, paths, ranks = prompts.setdefault(name, (prompt, [], []))
                paths.append(path)
                ranks.append(rank)
    for name, (prompt, paths, ranks) in prompts.items():
        with guard(name):
            yield _ranked(name, prompt, paths, [ranks])


@_row_by_row
def pick_a_pic(row: Row, split: str) -> Annotation | None:
    """
    Pick-a-Pic v1 or v2 (yuvalkirstain/pickapic_v2): `{caption, jpg_0, jpg_1 (bytes), label_0 in {0, 0.5, 1},
    has_label, are_different, …}`. Rows without a label are omitted, and in the split "train" also equal images.
    """
    if not row["has_label"] or (split == "train" and not row["are_different"]):
        return None
    label = row["label_0"]
    if label not in (0, 0.5, 1):
        raise ValueError(f"label_0: expected 0, 0.5 or 1, got {label}")
    return Annotation(row.read("caption", str), [row.image("jpg_0"), row.image("jpg_1")], [label], [label])


@_row_by_row
def genai_bench(row: Row, split: str) -> Annotation:
    """
    The image generation part of GenAI-Bench: `{prompt, left_image, right_image, vote_type}`. The label of a tie and of
    the vote "both bad" is 0.5. The category is the vote.
    """
    vote = row["vote_type"]
    if vote not in GENAI_VOTES:
        raise ValueError(f"vote_type: expected one of {', '.join(GENAI_VOTES)}, got {vote}")
    label, images = [GENAI_VOTES[vote]], [row.image("left_image"), row.image("right_image")]
    return Annotation(row.read("prompt", str), images, label, label, category=vote)


@_row_by_row
def mj_bench(row: Row, split: str) -> Annotation:
    """MJ-Bench: `{caption, image0, image1, label, category}`; label 0 prefers `image0`."""
    if row["label"] not in (0, 1):
        raise ValueError(f"label: expected 0 or 1, got {row['label']}")
    label, images = [1.0 - row["label"]], [row.image("image0"), row.image("image1")]
    return Annotation(row.read("caption", str), images, label, label, category=row.get("category") or "")


@_row_by_row
def mmrb2(row: Row, split: str) -> Annotation:
    """
    The text-to-image part of Multimodal RewardBench 2: `{prompt_text, response_a_images, response_b_images, chosen}`,
    where `chosen` is "A" or "B" and a response has one image.
    """
    if row["chosen"] not in ("A", "B"):
        raise ValueError(f"chosen: expected 'A' or 'B', got {row['chosen']!r}")
    label, images = [float(row["chosen"] == "A")], [row.image("response_a_images"), row.image("response_b_images")]
    return Annotation(row.read("prompt_text", str), images, label, label)


@_row_by_row
def labelled_pairs(row: Row, split: str) -> Annotation:
    """Pairs in the schema of training, which the commands of `training` write: `{prompt, image_a, image_b, target}`.
    Label and target are both the share of votes for `image_a`, and the weight is not used."""
    target = row.read("target", float)
    if not 0 <= target <= 1:  # in this form, NaN also fails
        raise ValueError(f"target: expected a number within [0, 1], got {target}")
    images = [row.image("image_a"), row.image("image_b")]
    return Annotation(row.read("prompt", str), images, [target], [target])


def _ranked(
    name: str, prompt: str, paths: list[str], rankings: list[list[float]], votes: Sequence[list[float]] = ()
) -> Annotation:
    """
    Create the annotation of n ranked images. Lower ranks are better, and equal ranks are ties.

    Args:
        name: name of the row.
        prompt, paths: prompt and paths of the images.
        rankings: rankings of the images for the labels.
        votes: rankings by single annotators for the targets; if empty, `rankings` are used.
    """
    labels = _shares(rankings, len(paths))
    return Annotation(prompt, paths, labels, _shares(votes, len(paths)) if votes else labels, cluster=name)


def _shares(rankings: Sequence[list[float]], count: int) -> list[float]:
    """For all pairs of `count` images, the share of rankings that prefer the first; equal ranks count as one half."""
    lengths = [len(ranking) for ranking in rankings]
    if not lengths or set(lengths) != {count}:
        raise ValueError(f"expected rankings of {count} images, got rankings of {lengths}")
    ranks = np.array(rankings, dtype=float)
    if not np.isfinite(ranks).all():
        raise ValueError(f"expected finite numbers as ranks, got {rankings}")
    return [
        float((1 + np.sign(ranks[:, second] - ranks[:, first])).mean() / 2)
        for first, second in combinations(range(count), 2)
    ]
