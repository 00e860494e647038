"""The tab Compare: which of two pictures is preferred, with what probability, and how certain that is."""

import gradio as gr

import figures
import views
from inputs import clear_when_changed, example_buttons, noise_settings, opened_image, pair_inputs, run_on
from judge import Judge, on_accelerator


def compare_tab(judge: Judge, examples: list[dict]) -> None:
    """Fills the current `gr.Tab`."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320):
            above = gr.Column()
            prompt, image_a, image_b = pair_inputs(examples[0])
            settings = noise_settings(judge)
            button = gr.Button("Compare", variant="primary", elem_id="compare-button")
        with gr.Column(scale=6, min_width=320):
            verdict = gr.HTML(views.waiting("The verdict appears here."), elem_id="compare-verdict")
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

    compare = on_accelerator(judge.compare)

    def answer(prompt, upload_a, upload_b, sigmas, draws, mode, seed):
        images = [opened_image(upload_a, "image A"), opened_image(upload_b, "image B")]
        comparison = compare(prompt, images, sigmas, draws, mode, seed)
        figure = views.titled("Score at each noise level", figure=figures.reward_figure(comparison))
        yield views.verdict(comparison), figure, gr.ImageSlider(views.overlaid(images), visible=True)

    inputs, outputs = [prompt, image_a, image_b, *settings], [verdict, figure, slider]
    run_on(answer, [button.click, prompt.submit], inputs, outputs, filled)
    clear_when_changed(note, [prompt, image_a, image_b])
