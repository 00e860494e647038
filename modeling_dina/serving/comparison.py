"""`POST /v1/compare`, for people without latents: a prompt and images, as JSON with base64 or as a form with files."""

import base64
import binascii
import json
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from modeling_dina.scoring_dina import check_prompt

MAX_IMAGES = 16
MAX_PROMPT_CHARACTERS = 10_000
# Python spends up to sixty bytes on one of JSON. A body that says what it should has few brackets and commas: there
# are none in base64.
MAX_JSON_MARKS = 2 * MAX_PROMPT_CHARACTERS


@dataclass(frozen=True, eq=False)
class CompareRequest:
    """
    Images to rank for a prompt.

    Attributes:
        images: 2 to `MAX_IMAGES` image files, still encoded: they are decoded one request at a time.
    """

    prompt: str
    images: Sequence[bytes]

    @property
    def size(self) -> int:
        """How many samples of a queue it counts for."""
        return len(self.images)

    @property
    def batch_key(self) -> Hashable:
        """None other's: images may be bad in ways that only decoding shows."""
        return id(self)


def parse_json_comparison(body: bytes) -> CompareRequest:
    """
    Reads {"prompt": text, "images": [base64, …]}.

    Raises:
        ValueError: naming what of the body came and what was expected.
    """
    if sum(body.count(mark) for mark in (b"[", b"{", b",")) > MAX_JSON_MARKS:
        raise ValueError(f"body: expected at most {MAX_JSON_MARKS} brackets and commas, got more")
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"body: expected JSON, got what cannot be read: {error}") from error
    if not isinstance(fields, dict) or fields.keys() != {"prompt", "images"}:
        got = sorted(fields) if isinstance(fields, dict) else type(fields).__name__
        raise ValueError(f"body: expected an object of prompt and images, got {got}")
    images = fields["images"]
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise ValueError("images: expected a list of base64 texts, got something else")
    return build_comparison(fields["prompt"], [_from_base64(image, f"images[{i}]") for i, image in enumerate(images)])


def build_comparison(prompt: Any, images: Sequence[bytes]) -> CompareRequest:
    """
    Raises:
        ValueError: the prompt says nothing or too much, or there are too few or too many images.
    """
    if isinstance(prompt, str) and len(prompt) > MAX_PROMPT_CHARACTERS:
        raise ValueError(f"prompt: expected at most {MAX_PROMPT_CHARACTERS} characters, got {len(prompt)}")
    try:
        check_prompt(prompt)
    except TypeError as error:
        raise ValueError(str(error)) from error
    if not 2 <= len(images) <= MAX_IMAGES:
        raise ValueError(f"images: expected 2 to {MAX_IMAGES}, got {len(images)}")
    return CompareRequest(prompt, images)


def _from_base64(text: str, name: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"{name}: expected base64, got what cannot be read: {error}") from error
