"""What a comparison of images must say."""

import base64
import json

import pytest

from modeling_dina.serving.comparison import MAX_JSON_MARKS, build_comparison, parse_json_comparison

IMAGE = base64.b64encode(b"bytes").decode()


def test_images_are_decoded_from_base64():
    request = parse_json_comparison(json.dumps({"prompt": "a cat", "images": [IMAGE, IMAGE, ""]}).encode())
    assert (request.prompt, request.images, request.size) == ("a cat", [b"bytes", b"bytes", b""], 3)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"prompt": "a cat"}, "expected an object of prompt and images"),
        ({"prompt": "a cat", "images": [IMAGE] * 2, "seed": 3}, "expected an object of prompt and images"),
        ([IMAGE], "expected an object of prompt and images, got list"),
        ({"prompt": "a cat", "images": [IMAGE]}, "images: expected 2 to 16, got 1"),
        ({"prompt": "a cat", "images": [IMAGE] * 17}, "images: expected 2 to 16, got 17"),
        ({"prompt": "a cat", "images": IMAGE}, "images: expected a list of base64 texts"),
        ({"prompt": "a cat", "images": [IMAGE, 7]}, "images: expected a list of base64 texts"),
        ({"prompt": "a cat", "images": [IMAGE, "?!"]}, r"images\[1\]: expected base64"),
        ({"prompt": "a cat", "images": [IMAGE, "caf\u00e9"]}, r"images\[1\]: expected base64"),
        ({"prompt": " ", "images": [IMAGE] * 2}, "prompt: expected a text"),
        ({"prompt": 7, "images": [IMAGE] * 2}, "prompt: expected a text, got int"),
        ({"prompt": "\ud800", "images": [IMAGE] * 2}, "prompt: expected Unicode text"),
        ({"prompt": "a" * 10_001, "images": [IMAGE] * 2}, "prompt: expected at most 10000 characters, got 10001"),
    ],
)
def test_refusal_says_what_was_expected(fields, reason):
    with pytest.raises(ValueError, match=reason):
        parse_json_comparison(json.dumps(fields).encode())


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 5000, b"NaN", b"9" * 5000])
def test_what_is_no_json_is_refused(body):
    with pytest.raises(ValueError, match=r"^body: expected "):
        parse_json_comparison(body)


def test_json_of_many_small_things_is_not_parsed():
    with pytest.raises(ValueError, match="brackets and commas"):
        parse_json_comparison(b"[" + b"[]," * MAX_JSON_MARKS)


def test_no_two_comparisons_share_a_batch():
    first, second = (build_comparison("a cat", [b"", b""]) for _ in range(2))
    assert first.batch_key != second.batch_key
