"""Work in batches in which an item that fails takes no other item with it."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from PIL import Image

# What any model can score: to find out whether it still can.
PROBE_PROMPT = "a grey square"

Item = TypeVar("Item")
Result = TypeVar("Result")


def isolate_failures(
    function: Callable[[Sequence[Item]], Sequence[Result]],
    items: Sequence[Item],
    probe: Callable[[], object],
    fatal: tuple[type[Exception], ...] = (),
) -> tuple[list[tuple[Item, Result]], list[tuple[Item, str]]]:
    """
    The results of a function of a batch. Where the batch raises an exception, its halves are tried, and so on down to
    single items. An item is to blame only if the function still works without it: a lost device or a broken model
    would fail every further item in the same way.

    Args:
        function: one result for each item of a batch.
        items: the batch.
        probe: runs the function on an input that it is known to handle; called once if an item failed.
        fatal: exceptions that no item is to blame for. They are raised at once.

    Returns:
        (item, result) of the items that have one, and (item, error) of the others, each in the order of `items`.

    Raises:
        ValueError: `probe` failed as well.
    """
    results, failures = _split_failures(function, items, fatal)
    if failures:
        try:
            probe()
        except Exception as error:
            raise ValueError(
                f"model: expected results for a plain grey picture at least, got {error_text(error)}; "
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
    # Here the exception is gone, and with it the tensors that its traceback keeps in memory.
    half = len(items) // 2
    parts = [_split_failures(function, part, fatal) for part in (items[:half], items[half:])]
    return [each for part in parts for each in part[0]], [each for part in parts for each in part[1]]


def probe_image() -> Image.Image:
    """A small grey picture."""
    return Image.new("RGB", (64, 64), (128, 128, 128))


def error_text(error: Exception) -> str:
    """What an exception says, or the name of its class where it says nothing."""
    return str(error) or type(error).__name__
