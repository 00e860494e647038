"""What one request may ask for. The page and the API are held to the same limits, here and not in the widgets: what a
widget offers is no bound on what a program sends."""

from collections.abc import Sequence

from modeling_dina.configuration_dina import ENSEMBLE_MODES
from modeling_dina.scoring_dina import check_prompt

MAX_PROMPT_CHARACTERS = 1000
MAX_FILE_BYTES = 8 * 2**20
MAX_IMAGE_PIXELS = 4096 * 4096
MIN_RANKED, MAX_RANKED = 2, 16
# A request holds no more than all the files of a ranking.
MAX_REQUEST_BYTES = MAX_RANKED * MAX_FILE_BYTES + 2**20
MAX_LEVELS = 10
MAX_DRAWS = 32
MAX_SEED = 2**31 - 1
MAX_PICTURES = 8
MAX_STEPS = 50
MAX_GUIDANCE = 10.0


def checked_prompt(prompt, tokenizer, max_tokens: int) -> str:
    """The prompt, if the model reads all of it.

    Args:
        prompt: what came.
        tokenizer: of the text encoder that reads the longest prompts.
        max_tokens: how many tokens the model keeps, its end-of-text token included.
    """
    check_prompt(prompt)
    if len(prompt) > MAX_PROMPT_CHARACTERS:
        raise ValueError(f"prompt: expected at most {MAX_PROMPT_CHARACTERS} characters, got {len(prompt)}")
    tokens = len(tokenizer(prompt, verbose=False).input_ids)
    if tokens > max_tokens:
        raise ValueError(f"prompt: expected at most {max_tokens} tokens, which is what the model reads, got {tokens}")
    return prompt


def checked_ensemble(sigmas, num_draws, mode, seed) -> dict:
    """The keyword arguments of `DinaScorer.score` that say how noise is used; None leaves it to the model."""
    if sigmas is not None:
        if not isinstance(sigmas, Sequence) or isinstance(sigmas, str) or not 1 <= len(sigmas) <= MAX_LEVELS:
            raise ValueError(f"noise levels: expected 1 to {MAX_LEVELS} numbers in [0, 1], got {shortened(sigmas)}")
        sigmas = [checked_number("noise levels", sigma, 0, 1) for sigma in sigmas]
    if num_draws is not None:
        num_draws = checked_integer("draws", num_draws, 1, MAX_DRAWS)
    if mode is not None and mode not in ENSEMBLE_MODES:
        raise ValueError(f"mode: expected one of {', '.join(ENSEMBLE_MODES)}, got {shortened(mode)}")
    return {"sigmas": sigmas, "num_draws": num_draws, "mode": mode, "seed": checked_integer("seed", seed, 0, MAX_SEED)}


def checked_number(name: str, value, low: float, high: float) -> float:
    """A finite number in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"{name}: expected a number from {low} to {high}, got {shortened(value)}")
    return float(value)


def checked_integer(name: str, value, low: int, high: int) -> int:
    """A whole number in [low, high]; JSON and sliders may write it as 4.0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high or value % 1:
        raise ValueError(f"{name}: expected a whole number from {low} to {high}, got {shortened(value)}")
    return int(value)


def shortened(value) -> str:
    """What came, short enough for a message."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
