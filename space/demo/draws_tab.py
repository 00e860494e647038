"""Test-time scaling: how scores and the win probability settle as noise draws are added."""

import gradio as gr

from . import figures, markup, wording
from .accelerator import on_accelerator
from .judging import SETTLING_DRAWS, Judge
from .uploads import opened_image
from .widgets import ask, clear_when_changed, example_buttons, noise_settings, pair_inputs


def draws_tab(judge: Judge, examples: list[dict]) -> None:
    """Lays out the tab, inside a `gr.Tab`."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320):
            above = gr.Column()
            prompt, image_a, image_b = pair_inputs(examples[0])
            most_draws = gr.Radio(SETTLING_DRAWS[3:], value=SETTLING_DRAWS[-2], label="Draws in the end")
            settings = noise_settings(judge, with_draws=False)
            button = gr.Button("Add draws", variant="primary", elem_id="draws-button")
        with gr.Column(scale=6, min_width=320):
            progress = gr.HTML(markup.waiting("Scores settle here, draw by draw."), elem_id="draws-progress")
            figure = gr.HTML(elem_id="draws-figure")
            note = gr.Markdown(examples[0]["note"], elem_classes="dina-example-note")
    with above:
        values = [[example["prompt"], *example["images"]] for example in examples]
        filled = example_buttons(examples, values, [prompt, image_a, image_b], note)

    settle = on_accelerator(judge.settle)

    def answer(prompt, upload_a, upload_b, most_draws, sigmas, mode, seed):
        images = [opened_image(upload_a, "image A"), opened_image(upload_b, "image B")]
        comparisons = []
        for comparison in settle(prompt, images, most_draws, sigmas, mode, seed):
            comparisons.append(comparison)
            status = markup.progress(comparison.samples.shape[1], most_draws, "Draws")
            title, text = wording.headline(comparison.win_probability), wording.difference(comparison)
            settled = markup.titled(title, text=text)
            yield status + settled, figures.settling_figure(comparisons, most_draws)

    inputs = [prompt, image_a, image_b, most_draws, *settings]
    ask(answer, [button.click, prompt.submit], inputs, [progress, figure], filled)
    clear_when_changed(note, [prompt, image_a, image_b])
