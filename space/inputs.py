"""Inputs that the tabs share: uploaded files, widgets, examples, and how events run a function."""

import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from pathlib import Path

import gradio as gr
from gradio.events import Dependency
from gradio.exceptions import InvalidPathError
from gradio_client.utils import is_file_obj_with_meta, is_http_url_like, traverse
from PIL import Image

import judge as limits
import views
from judge import Judge, shortened
from modeling_dina.configuration_dina import ENSEMBLE_MODES
from modeling_dina.images_dina import load_image

logger = logging.getLogger(__name__)

EXAMPLES_FOLDER = Path(__file__).parent / "examples"
LEVELS = [level / 10 for level in range(1, 10)]
# One request at a time: they share one device and the scorer's cache of prompts.
QUEUE = {"concurrency_id": "model", "concurrency_limit": 1}
# How Pillow ends its refusal of too many pixels, although most such files come from a good camera.
PILLOWS_SUSPICION = ", could be decompression bomb DOS attack."


class UploadsOnly(gr.Blocks):
    """Blocks that accept uploaded files only. Gradio itself would also download addresses, of any size."""

    async def preprocess_data(self, block_fn, inputs, *args, **kwargs):
        """Refuses addresses, then calls the inherited method, which refuses paths outside the upload folder."""
        traverse(inputs, _refuse_address, is_file_obj_with_meta)
        try:
            return await super().preprocess_data(block_fn, inputs, *args, **kwargs)
        except InvalidPathError as error:
            # Its message names folders of this host.
            raise _refusal("a path") from error


def _refuse_address(file: dict) -> dict:
    if is_http_url_like(file["path"]):
        raise _refusal(f"an address, {shortened(file['path'])}")
    return file


def _refusal(got: str) -> gr.Error:
    return gr.Error(f"picture: expected an uploaded file, got {got}", print_exception=False)


def limit_decoding() -> None:
    """Makes Pillow refuse pictures of more than `MAX_IMAGE_PIXELS` before decoding, in the whole process."""
    Image.MAX_IMAGE_PIXELS = limits.MAX_IMAGE_PIXELS


def opened_image(upload, name: str) -> Image.Image:
    """Opens an upload, in Gradio's form, as an upright RGB image.

    Raises:
        ValueError: the file is missing, too large, or not a picture. The message has the name of the file but not its
            folder on this host.
    """
    if upload is None:
        raise ValueError(f"{name}: expected a picture, got none")
    # Gradio has checked only the paths of dictionaries that declare themselves files. Another could name any file of
    # the host.
    if not is_file_obj_with_meta(upload):
        raise ValueError(f"{name}: expected an uploaded file, got {shortened(upload)}")
    path = upload["path"]
    try:
        size = os.path.getsize(path)
        if size > limits.MAX_FILE_BYTES:
            raise ValueError(f"{name}: expected at most {_megabytes(limits.MAX_FILE_BYTES)}, got {_megabytes(size)}")
        return load_image(path, name)
    except (ValueError, OSError) as error:
        message = str(error).replace(path, Path(path).name).removesuffix(PILLOWS_SUSPICION)
        raise ValueError(message) from error


def opened_images(uploads: Sequence | None) -> list[Image.Image]:
    """Opens the pictures of a ranking; see `opened_image`."""
    uploads = uploads or []
    if not limits.MIN_RANKED <= len(uploads) <= limits.MAX_RANKED:
        raise ValueError(f"pictures: expected {limits.MIN_RANKED} to {limits.MAX_RANKED}, got {len(uploads)}")
    return [opened_image(upload, f"picture {place}") for place, upload in enumerate(uploads, start=1)]


def _megabytes(count: int) -> str:
    return f"{math.ceil(count / 2**20 * 10) / 10:g} MB"


def read_examples() -> dict:
    """Reads `examples.json`: "pairs" and "groups" with title, note, prompt and image files; "captions" to generate."""
    examples = json.loads((EXAMPLES_FOLDER / "examples.json").read_text())
    for example in examples["pairs"] + examples["groups"]:
        example["images"] = [str(EXAMPLES_FOLDER / name) for name in example["images"]]
    return examples


def prompt_box(value: str, label: str = "Prompt") -> gr.Textbox:
    """A text box for the prompt."""
    return gr.Textbox(
        value,
        label=label,
        info="What the pictures should show.",
        placeholder="a large red circle left of a small blue square",
        max_length=limits.MAX_PROMPT_CHARACTERS,
        lines=1,
        max_lines=4,
    )


def pair_inputs(example: dict) -> tuple[gr.Textbox, gr.Image, gr.Image]:
    """A prompt and two pictures, filled with an example."""
    prompt = prompt_box(example["prompt"])
    with gr.Row(elem_classes="dina-pair"):
        first, second = (
            gr.Image(
                path,
                label=f"Image {name}",
                alt_text=f"Image {name}, to be scored",
                type="filepath",
                image_mode=None,
                format="png",
                sources=["upload", "clipboard"],
                height=240,
                min_width=130,
                buttons=["fullscreen"],
            )
            for name, path in zip("AB", example["images"], strict=True)
        )
    return prompt, first, second


def noise_settings(judge: Judge, with_draws: bool = True) -> list[gr.components.Component]:
    """Noise levels, draws, mode and seed with the model's defaults, in the order of the arguments of the judge's
    methods that follow the images."""
    config = judge.config
    levels = sorted({*LEVELS, *(round(sigma, 3) for sigma in config.default_sigmas)})
    with gr.Accordion("Noise levels and draws", open=False):
        sigmas = gr.CheckboxGroup(
            [(f"{level:g}", level) for level in levels],
            value=[round(sigma, 3) for sigma in config.default_sigmas],
            label="Noise levels",
            info="Noise that is added before the model scores a picture: 0 is none, 1 is noise alone.",
        )
        draws = gr.Slider(
            1,
            limits.MAX_DRAWS,
            value=max(config.default_num_draws, 4),
            step=1,
            label="Draws",
            info="Noise draws at each level. More draws make the score more stable.",
            visible=with_draws,
        )
        mode = gr.Radio(
            list(ENSEMBLE_MODES),
            value=config.ensemble_mode,
            label="How levels are combined",
            info="features: the head reads all levels together. mean: mean of their scores. precision: mean weighted "
            "by certainty.",
        )
        seed = gr.Number(0, label="Noise seed", precision=0, minimum=0, maximum=limits.MAX_SEED, step=1)
    return [sigmas, draws, mode, seed] if with_draws else [sigmas, mode, seed]


def run_on(
    function: Callable[..., Iterator[Sequence]],
    triggers: Sequence[Callable],
    inputs: Sequence[gr.components.Component],
    outputs: Sequence[gr.components.Component],
    filled: Dependency | None = None,
) -> None:
    """Runs `function` when a trigger fires, and after an example was `filled` in.

    Args:
        function: a generator of values for all outputs; a string is shown as HTML. The message of a ValueError or
            TypeError replaces the first output and hides the others. The function gets the raw inputs and checks
            them itself, because the API has the same limits.
    """

    @wraps(function)
    def run(*values):
        try:
            for parts in function(*values):
                yield [gr.HTML(part, visible=True) if isinstance(part, str) else part for part in parts]
        except (ValueError, TypeError) as error:
            logger.info("refused", exc_info=error)
            yield [gr.HTML(views.refusal(str(error)), visible=True), *[gr.update(visible=False)] * (len(outputs) - 1)]

    options = {"show_progress_on": outputs[0], "show_progress": "minimal", "preprocess": False, **QUEUE}
    gr.on(triggers, run, inputs, outputs, api_visibility="private", **options)
    if filled is not None:
        # An example that is chosen during a run is scored after it.
        filled.success(run, inputs, outputs, api_visibility="private", trigger_mode="always_last", **options)


def example_buttons(
    above: gr.Column, examples: Sequence[dict], inputs: Sequence[gr.Textbox | gr.Image | gr.Gallery], note: gr.Markdown
) -> Dependency:
    """Buttons in the column `above` that fill the inputs, a prompt and its pictures, and show the example's note until
    an input changes. Returns their event, for `run_on`."""
    is_gallery = isinstance(inputs[1], gr.Gallery)
    values = [
        [each["prompt"], *([each["images"]] if is_gallery else each["images"]), each["note"]] for each in examples
    ]
    with above:
        buttons = gr.Examples(
            values,
            [*inputs, note],
            example_labels=[example["title"] for example in examples],
            label="Examples",
            api_visibility="private",
            cache_examples=False,
        )
    changes = [each.upload if isinstance(each, gr.Gallery) else each.input for each in inputs]
    gr.on(changes, None, None, note, js="() => ''", api_visibility="private")
    return buttons.load_input_event
