"""What several tabs share: the inputs of a pair, how noise is used, how a question is put to the model and refused."""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from pathlib import Path

import gradio as gr
from gradio.events import Dependency
from PIL import Image, ImageOps

from modeling_dina.configuration_dina import ENSEMBLE_MODES

from . import markup
from .judging import Judge
from .limits import MAX_DRAWS, MAX_PROMPT_CHARACTERS, MAX_SEED

logger = logging.getLogger(__name__)

EXAMPLES_FOLDER = Path(__file__).parents[1] / "examples"
LEVELS = [level / 10 for level in range(1, 10)]
# Of pictures laid over each other, in pixels.
OVERLAID_SIDE = 768
# One question at a time: they share one device, and a scorer's memory of prompts.
QUEUE = {"concurrency_id": "model", "concurrency_limit": 1}


def read_examples() -> dict:
    """`examples.json`: "pairs" and "groups" of a title, a note, a prompt and image files; "captions" to generate."""
    examples = json.loads((EXAMPLES_FOLDER / "examples.json").read_text())
    for example in examples["pairs"] + examples["groups"]:
        example["images"] = [str(EXAMPLES_FOLDER / name) for name in example["images"]]
    return examples


def prompt_box(value: str, label: str = "Prompt") -> gr.Textbox:
    """Where the prompt is written; Enter asks the question."""
    return gr.Textbox(
        value,
        label=label,
        info="What the pictures are judged by.",
        placeholder="a large red circle left of a small blue square",
        max_length=MAX_PROMPT_CHARACTERS,
        lines=1,
        max_lines=4,
    )


def pair_inputs(example: dict) -> tuple[gr.Textbox, gr.Image, gr.Image]:
    """A prompt and two pictures, filled with an example."""
    prompt = prompt_box(example["prompt"])
    with gr.Row(elem_classes="dina-pair"):
        images = [
            gr.Image(
                path,
                label=f"Image {name}",
                alt_text=f"Image {name}, to be judged",
                type="filepath",
                image_mode=None,
                format="png",
                sources=["upload", "clipboard"],
                height=240,
                min_width=130,
                buttons=["fullscreen"],
            )
            for name, path in zip("AB", example["images"], strict=True)
        ]
    return prompt, *images


def noise_settings(judge: Judge, with_draws: bool = True) -> list[gr.components.Component]:
    """Noise levels, draws, how levels are combined, and the seed, with the model's defaults: the arguments of the
    judge's methods that follow the images."""
    config = judge.config
    levels = sorted({*LEVELS, *(round(sigma, 3) for sigma in config.default_sigmas)})
    with gr.Accordion("Noise levels and draws", open=False):
        sigmas = gr.CheckboxGroup(
            [(f"{level:g}", level) for level in levels],
            value=[round(sigma, 3) for sigma in config.default_sigmas],
            label="Noise levels",
            info="How noisy the states are that the model reads: 0 is the picture, 1 noise alone.",
        )
        draws = gr.Slider(
            1,
            MAX_DRAWS,
            value=max(config.default_num_draws, 4),
            step=1,
            label="Draws",
            info="Noise draws at each level. More of them settle the score.",
            visible=with_draws,
        )
        mode = gr.Radio(
            list(ENSEMBLE_MODES),
            value=config.ensemble_mode,
            label="Levels are combined by",
            info="features: the head reads all levels at once. mean: of their scores. precision: the sure weigh more.",
        )
        seed = gr.Number(0, label="Seed of the noise", precision=0, minimum=0, maximum=MAX_SEED, step=1)
    return [sigmas, draws, mode, seed] if with_draws else [sigmas, mode, seed]


def ask(
    function: Callable[..., Iterator[Sequence]],
    triggers: Sequence[Callable],
    inputs: Sequence[gr.components.Component],
    outputs: Sequence[gr.components.Component],
    filled: Dependency | None = None,
) -> None:
    """Runs `function` when a trigger fires, and when an example has been `filled` in.

    Args:
        function: a generator of values for all outputs; a text is shown as HTML. It refuses by ValueError or
            TypeError, which is told in place of the first output, the others being hidden. It gets its inputs as they
            were sent: the limits hold for the API too, so they are checked once, in the functions.
    """

    @wraps(function)
    def answer(*values):
        try:
            for parts in function(*values):
                yield [gr.HTML(part, visible=True) if isinstance(part, str) else part for part in parts]
        except (ValueError, TypeError) as error:
            logger.info("refused", exc_info=error)
            yield [gr.HTML(markup.refusal(str(error)), visible=True), *[gr.update(visible=False)] * (len(outputs) - 1)]

    options = {"show_progress_on": outputs[0], "show_progress": "minimal", "preprocess": False, **QUEUE}
    gr.on(triggers, answer, inputs, outputs, api_visibility="private", **options)
    if filled is not None:
        # An example chosen while another is being judged is judged next, rather than not at all.
        filled.success(answer, inputs, outputs, api_visibility="private", trigger_mode="always_last", **options)


def example_buttons(
    examples: Sequence[dict], values: Sequence[list], inputs: Sequence[gr.components.Component], note: gr.Markdown
) -> Dependency:
    """Buttons that fill the inputs, and say in `note` what to look for; what they do can be followed by `ask`."""
    buttons = gr.Examples(
        [[*value, example["note"]] for value, example in zip(values, examples, strict=True)],
        [*inputs, note],
        example_labels=[example["title"] for example in examples],
        label="Examples",
        api_visibility="private",
        cache_examples=False,
    )
    return buttons.load_input_event


def clear_when_changed(note: gr.Markdown, inputs: Sequence[gr.components.Component]) -> None:
    """Takes the note on an example away once what it speaks of is no longer there."""
    gr.on([component.input for component in inputs], None, None, note, js="() => ''", api_visibility="private")


def overlaid(images: list[Image.Image]) -> tuple[Image.Image, ...]:
    """Two pictures at one size, whole, to be laid over each other; small ones are enlarged pixel by pixel."""
    width, height = (max(sides) for sides in zip(*(image.size for image in images), strict=True))
    is_small = max(width, height) <= markup.PIXELATED
    scale = OVERLAID_SIDE // max(width, height) if is_small else min(1, OVERLAID_SIDE / max(width, height))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    resampling = Image.Resampling.NEAREST if is_small else Image.Resampling.LANCZOS
    return tuple(ImageOps.pad(image, size, resampling, color="white") for image in images)
