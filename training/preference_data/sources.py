"""Where preference pairs come from: the names of the formats, and one call that reads any of them."""

import os
from enum import Enum
from pathlib import Path

from datasets import Dataset, load_dataset, load_from_disk

from modeling_dina.options import loading
from training.preference_data import converters
from training.preference_data.schema import as_pairs


class Format(str, Enum):
    """The package's own schema (pairs), or a data set as it is published."""

    pairs = "pairs"
    hpdv3 = "hpdv3"
    hpdv2 = "hpdv2"
    image_reward = "image_reward"
    pick_a_pic = "pick_a_pic"
    reference_cache = "reference_cache"


def load_pairs(source: str, source_format: Format = Format.pairs, image_root: Path | None = None) -> Dataset:
    """
    Preference pairs in the package's schema; those of the reference's cache hold latents in place of images.

    Args:
        source: annotations or a folder, as the converter of the format takes it; for `Format.pairs`, a folder that
            `Dataset.save_to_disk` wrote, or what `datasets.load_dataset` reads, a Hub id for one: its split "train".
        source_format: what it is.
        image_root: for annotations, where their paths start.

    Raises:
        ValueError: there are no pairs, or they are not as their format says.
    """
    match source_format:
        case Format.pairs if os.path.isfile(os.path.join(source, "state.json")):
            with loading("source", source):
                dataset = load_from_disk(source)
            pairs = as_pairs(dataset)
        case Format.pairs:
            with loading("source", source):
                dataset = load_dataset(source, split="train")
            pairs = as_pairs(dataset)
        case Format.pick_a_pic:
            pairs = converters.pick_a_pic(Path(source))
        case Format.reference_cache:
            pairs = converters.reference_cache(Path(source))
        case Format.hpdv3:
            pairs = converters.hpdv3(Path(source), image_root)
        case Format.hpdv2:
            pairs = converters.hpdv2(Path(source), image_root)
        case Format.image_reward:
            pairs = converters.image_reward(Path(source), image_root)
    if len(pairs) == 0:
        raise ValueError(f"source: expected preference pairs, got none in {source}")
    return pairs
