"""The tab Draws: test-time scaling, scores and win probability against the number of noise draws."""

import gradio as gr

import figures
import views
from inputs import clear_when_changed, example_buttons, noise_settings, opened_image, pair_inputs, run_on
from judge import SETTLING_DRAWS, Judge, on_accelerator


def draws_tab(judge: Judge, examples: list[dict]) -> None:
    """Fills the current `gr.Tab`."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320):
            above = gr.Column()
            prompt, image_a, image_b = pair_inputs(examples[0])
            most_draws = gr.Radio(SETTLING_DRAWS[3:], value=SETTLING_DRAWS[-2], label="Number of draws")
            settings = noise_settings(judge, with_draws=False)
            button = gr.Button("Add draws", variant="primary", elem_id="draws-button")
        with gr.Column(scale=6, min_width=320):
            progress = gr.HTML(views.waiting("Scores appear here, draw by draw."), elem_id="draws-progress")
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
            status = views.progress(comparison.samples.shape[1], most_draws, "Draws")
            result = views.titled(views.headline(comparison.win_probability), text=views.difference(comparison))
            yield status + result, figures.settling_figure(comparisons, most_draws)

    inputs = [prompt, image_a, image_b, most_draws, *settings]
    run_on(answer, [button.click, prompt.submit], inputs, [progress, figure], filled)
    clear_when_changed(note, [prompt, image_a, image_b])
