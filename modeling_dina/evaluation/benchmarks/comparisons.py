"""Benchmarks whose rows are pairs of images."""

from pathlib import Path

from modeling_dina.evaluation.benchmarks.annotations import Annotations
from modeling_dina.evaluation.benchmarks.image_files import ImageFiles
from modeling_dina.evaluation.benchmarks.preference_set import PreferenceSet

GENAI_VOTES = {"leftvote": 1.0, "rightvote": 0.0, "tievote": 0.5, "bothbad_vote": 0.5}


def read_hpdv3(folder: Path, limit: int | None = None) -> PreferenceSet:
    """The test set of HPDv3: `test.json` with rows `prompt, path1, path2`; `path1` is always the preferred image."""
    files = ImageFiles(folder, archives=("*.tar*", "*.zip"))
    preferences = PreferenceSet()
    for name, row in Annotations(files, ("test.json", "**/test.json"), limit=limit):
        with preferences.row(name):
            prompt = row["prompt"]
            preferences.add_pair(prompt, files.item(prompt, row["path1"]), files.item(prompt, row["path2"]), 1.0)
    files.unpack()
    return preferences


def read_pick_a_pic(folder: Path, limit: int | None = None) -> PreferenceSet:
    """
    The labelled pairs of Pick-a-Pic v1 or v2 with one pair a prompt, splits `test_unique` and `validation_unique`:
    Parquet columns `caption, jpg_0, jpg_1, label_0, has_label`.
    """
    files = ImageFiles(folder)
    preferences = PreferenceSet()
    for split in ("test", "validation"):
        rows = Annotations(files, (f"**/*{split}_unique*.parquet",), ("jpg_0", "jpg_1"), limit)
        for name, row in rows:
            with preferences.row(name):
                if not row["has_label"]:
                    continue
                if row["label_0"] not in (0, 0.5, 1):
                    raise ValueError(f"label_0: expected 0, 0.5 or 1, got {row['label_0']}")
                prompt = row["caption"]
                items = row.image(prompt, "jpg_0"), row.image(prompt, "jpg_1")
                preferences.add_pair(prompt, *items, row["label_0"], split=split)
    return preferences


def read_genai_bench(folder: Path, limit: int | None = None) -> PreferenceSet:
    """
    The image generation part of GenAI-Bench: Parquet columns `prompt, left_image, right_image, vote_type`. Ties and
    pairs of which both are bad have the label 0.5; the vote is their category.
    """
    files = ImageFiles(folder)
    patterns = ("**/image_generation/test_v1*.parquet", "**/image_generation*.parquet", "*.parquet")
    preferences = PreferenceSet()
    for name, row in Annotations(files, patterns, ("left_image", "right_image"), limit):
        with preferences.row(name):
            prompt, vote = row["prompt"], row["vote_type"]
            if vote not in GENAI_VOTES:
                raise ValueError(f"vote_type: expected one of {', '.join(GENAI_VOTES)}, got {vote}")
            items = row.image(prompt, "left_image"), row.image(prompt, "right_image")
            preferences.add_pair(prompt, *items, GENAI_VOTES[vote], category=vote)
    return preferences


def read_mj_bench(folder: Path, limit: int | None = None) -> PreferenceSet:
    """MJ-Bench: Parquet columns `caption, image0, image1, label, category`; label 0 prefers `image0`."""
    preferences = PreferenceSet()
    for name, row in Annotations(ImageFiles(folder), ("data/*.parquet", "**/*.parquet"), ("image0", "image1"), limit):
        with preferences.row(name):
            if row["label"] not in (0, 1):
                raise ValueError(f"label: expected 0 or 1, got {row['label']}")
            prompt = row["caption"]
            items = row.image(prompt, "image0"), row.image(prompt, "image1")
            preferences.add_pair(prompt, *items, 1.0 - row["label"], category=row.get("category") or "")
    return preferences


def read_mmrb2(folder: Path, limit: int | None = None) -> PreferenceSet:
    """
    The text-to-image part of Multimodal RewardBench 2: `prompt_text, response_a_images, response_b_images, chosen`
    ("A" or "B"), one image a response.
    """
    columns = "response_a_images", "response_b_images"
    patterns = ("**/*t2i*.parquet", "**/t2i/*.parquet", "**/*t2i*.json", "*.parquet")
    files = ImageFiles(folder, archives=("*.zip", "*.tar*"))
    preferences = PreferenceSet()
    for name, row in Annotations(files, patterns, columns, limit):
        with preferences.row(name):
            if row["chosen"] not in ("A", "B"):
                raise ValueError(f"chosen: expected 'A' or 'B', got {row['chosen']!r}")
            prompt = row["prompt_text"]
            items = [row.image(prompt, column) for column in columns]
            preferences.add_pair(prompt, *items, float(row["chosen"] == "A"))
    files.unpack()
    return preferences
