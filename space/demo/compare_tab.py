"""Compare: which of two pictures, how probably, and how sure that is."""

import gradio as gr

from . import figures, markup
from .accelerator import on_accelerator
from .judging import Judge
from .uploads import opened_image
from .widgets import ask, clear_when_changed, example_buttons, noise_settings, overlaid, pair_inputs


def compare_tab(judge: Judge, examples: list[dict]) -> None:
    """Lays out the tab, inside a `gr.Tab`."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320):
            above = gr.Column()
            prompt, image_a, image_b = pair_inputs(examples[0])
            settings = noise_settings(judge)
            button = gr.Button("Compare", variant="primary", elem_id="compare-button")
        with gr.Column(scale=6, min_width=320):
            verdict = gr.HTML(markup.waiting("The verdict appears here."), elem_id="compare-verdict")
            note = gr.Markdown(examples[0]["note"], elem_classes="dina-example-note")
    with above:
        values = [[example["prompt"], *example["images"]] for example in examples]
        filled = example_buttons(examples, values, [prompt, image_a, image_b], note)
    with gr.Row(equal_height=False):
        with gr.Column(scale=6, min_width=320):
            figure = gr.HTML(elem_id="compare-figure")
        with gr.Column(scale=4, min_width=320):
            slider = gr.ImageSlider(
                visible=False, label="A | B", interactive=False, elem_id="compare-slider", buttons=["fullscreen"]
            )

    compare, read_levels = on_accelerator(judge.compare), on_accelerator(judge.levels)

    def answer(prompt, upload_a, upload_b, sigmas, draws, mode, seed):
        images = [opened_image(upload_a, "image A"), opened_image(upload_b, "image B")]
        comparison = compare(prompt, images, sigmas, draws, mode, seed)
        shown = gr.ImageSlider(overlaid(images), visible=True)
        yield markup.verdict(comparison), gr.skip(), shown
        drawn = figures.reward_figure(read_levels(prompt, images, seed))
        drawn = markup.titled("Score against noise level", figure=drawn)
        yield gr.skip(), drawn, gr.skip()

    inputs, outputs = [prompt, image_a, image_b, *settings], [verdict, figure, slider]
    ask(answer, [button.click, prompt.submit], inputs, outputs, filled)
    clear_when_changed(note, [prompt, image_a, image_b])
