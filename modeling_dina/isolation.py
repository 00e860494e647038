"""Batch processing in which a failing item does not affect the other items."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from PIL import Image

from .scoring_dina import check_prompt

# A prompt that every model can score, to check whether it still works.
PROBE_PROMPT = "a grey square"

Item = TypeVar("Item")
Result = TypeVar("Result")


def isolate_failures(
    function: Callable[[Sequence[Item]], Sequence[Result]],
    items: Sequence[Item],
    probe: Callable[[], object],
    fatal: tuple[type[Exception], ...] = (),
) -> tuple[list[tuple[Item, Result]], list[tuple[Item, str]]]:
    """Apply a function to a batch. If it raises an exception, both halves are tried, and so on down to single items.
    Failures are attributed to items only if `probe` still works, because with a lost device or a broken model every
    item would fail.

    Args:
        function: maps a batch to one result per item.
        items: the batch.
        probe: applies the function to an input that is known to work; called once if an item failed.
        fatal: exceptions that no item causes; they are raised at once.

    Returns:
        (item, result) of the items that succeeded, and (item, error) of the others, each in the order of `items`.

    Raises:
        ValueError: `probe` failed too.
    """
    results, failures = _split_failures(function, items, fatal)
    if failures:
        try:
            probe()
        except Exception as error:
            raise ValueError(
                f"model: expected a score for a plain grey image, got {error_text(error)}; "
                f"before that: {failures[0][1]}"
            ) from error
    return results, failures


def _split_failures(function, items, fatal):
    try:
        return list(zip(items, function(items), strict=True)), []
    except fatal:
        raise
    except Exception as error:
        if len(items) == 1:
            return [], [(items[0], error_text(error))]
    # Outside the except clause, the exception no longer keeps the tensors of its traceback in memory.
    half = len(items) // 2
    parts = [_split_failures(function, part, fatal) for part in (items[:half], items[half:])]
    return [each for part in parts for each in part[0]], [each for part in parts for each in part[1]]


def score_images(
    score: Callable[[list[str], list[Image.Image]], Sequence[Result]],
    inputs: Mapping[int, tuple[Any, Callable[[], Image.Image]]],
    fatal: tuple[type[Exception], ...] = (),
) -> tuple[dict[int, Result], dict[int, str]]:
    """Score a batch of images. A bad prompt or image does not affect the other images.

    Args:
        score: maps prompts and images to one result per image.
        inputs: for each image, by its number, the prompt and a function that opens it.
        fatal: as in `isolate_failures`.

    Returns:
        The results and the errors, by number.

    Raises:
        ValueError: a plain grey image cannot be scored either.
    """
    images: dict[int, Image.Image] = {}
    errors: dict[int, str] = {}
    for number, (prompt, open_image) in inputs.items():
        try:
            check_prompt(prompt)
            images[number] = open_image()
        except Exception as error:
            errors[number] = error_text(error)

    def score_numbers(numbers: Sequence[int]) -> Sequence[Result]:
        return score([inputs[number][0] for number in numbers], [images[number] for number in numbers])

    def probe() -> None:
        score([PROBE_PROMPT], [Image.new("RGB", (64, 64), (128, 128, 128))])

    if not images:
        return {}, errors
    results, failures = isolate_failures(score_numbers, list(images), probe, fatal)
    return dict(results), errors | dict(failures)


def error_text(error: Exception) -> str:
    """The message of an exception, or the name of its class if the message is empty."""
    return str(error) or type(error).__name__
