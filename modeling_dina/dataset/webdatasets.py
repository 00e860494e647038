"""WebDataset shards as `datasets` reads them, but with files that are not decoded, so that a bad file is the error of
its row."""

from typing import Any, ClassVar

import datasets
from datasets.packaged_modules.webdataset.webdataset import WebDataset

IMAGES = ("jpg", "jpeg", "png", "webp")


class RawWebDataset(WebDataset):
    """Does not decode files."""

    DECODERS: ClassVar[dict[str, Any]] = {}


def open_builder(source: str, split: str, **options) -> tuple[datasets.DatasetBuilder, bool]:
    """Open the builder of a data set.

    Args:
        source: what `datasets.load_dataset` can load, or a pattern of files that ends in ".tar".
        split: the split of such files.
        options: further arguments of `datasets.load_dataset_builder`.

    Returns:
        The builder, and whether it is one of WebDataset shards: with images as in `IMAGES`, and bytes in the columns
        "txt" and "json".
    """
    if source.endswith(".tar"):
        source, options = "webdataset", {**options, "data_files": {split: source}}
    builder = datasets.load_dataset_builder(source, **options)
    is_tar = isinstance(builder, WebDataset)
    if is_tar:
        builder.__class__ = RawWebDataset
        # Given explicitly, the types of images may differ between samples.
        image, content, text = datasets.Image(decode=False), datasets.Value("binary"), datasets.Value("string")
        builder.info.features = datasets.Features(
            {**dict.fromkeys(IMAGES, image), "txt": content, "json": content, "__key__": text, "__url__": text}
        )
    return builder, is_tar
