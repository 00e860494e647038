"""Requests of `POST /v1/compare`: a prompt and image files, as JSON with base64 or as a multipart form."""

import base64
import binascii
import json
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from modeling_dina.scoring_dina import check_prompt

MAX_IMAGES = 16
MAX_PROMPT_CHARACTERS = 10_000
# Python needs up to sixty bytes of memory per byte of nested JSON. A valid body has few brackets and commas, because
# base64 contains none.
MAX_JSON_MARKS = 2 * MAX_PROMPT_CHARACTERS


@dataclass(frozen=True, eq=False)
class CompareRequest:
    """
    Images to rank for a prompt.

    Attributes:
        prompt: prompt of all images.
        images: 2 to `MAX_IMAGES` encoded image files, which are decoded one request at a time.
    """

    prompt: str
    images: Sequence[bytes]

    @property
    def size(self) -> int:
        """Number of samples that count towards the queue's limit."""
        return len(self.images)

    @property
    def batch_key(self) -> Hashable:
        """Unique per request, so that comparisons are never batched: only decoding shows whether images are valid."""
        return id(self)


def parse_json_comparison(body: bytes) -> CompareRequest:
    """
    Parse {"prompt": text, "images": [base64, …]}.

    Raises:
        ValueError: the body is invalid; the message names the field.
    """
    if sum(body.count(mark) for mark in (b"[", b"{", b",")) > MAX_JSON_MARKS:
        raise ValueError(f"body: expected at most {MAX_JSON_MARKS} brackets and commas, got more")
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"body: expected JSON, got unreadable data: {error}") from error
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
        ValueError: the prompt is blank or too long, or there are too few or too many images.
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
        raise ValueError(f"{name}: expected base64, got unreadable data: {error}") from error
