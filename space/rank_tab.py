"""The tab Rank: pictures for one prompt, best first."""

import gradio as gr

import views
from inputs import clear_when_changed, example_buttons, noise_settings, opened_images, prompt_box, run_on
from judge import MAX_RANKED, MIN_RANKED, Judge, on_accelerator


def rank_tab(judge: Judge, examples: list[dict]) -> None:
    """Fills the current `gr.Tab`."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320):
            above = gr.Column()
            prompt = prompt_box(examples[0]["prompt"])
            gallery = gr.Gallery(
                examples[0]["images"],
                label=f"Pictures, {MIN_RANKED} to {MAX_RANKED}",
                type="filepath",
                format="png",
                file_types=["image"],
                sources=["upload", "clipboard"],
                interactive=True,
                columns=4,
                object_fit="contain",
                elem_id="rank-gallery",
            )
            settings = noise_settings(judge)
            button = gr.Button("Rank", variant="primary", elem_id="rank-button")
        with gr.Column(scale=6, min_width=320):
            ranking = gr.HTML(views.waiting("The ranking appears here."), elem_id="rank-result")
            note = gr.Markdown(examples[0]["note"], elem_classes="dina-example-note")
            matrix = gr.HTML(elem_id="rank-matrix")
    with above:
        values = [[example["prompt"], example["images"]] for example in examples]
        filled = example_buttons(examples, values, [prompt, gallery], note)

    rank = on_accelerator(judge.rank)

    def answer(prompt, uploads, *settings):
        images = opened_images([item.get("image") or item.get("video") for item in uploads or []])
        names = [f"Picture {place}" for place in range(1, len(images) + 1)]
        result = rank(prompt, images, *settings)
        yield views.ranking(result, images, names), views.matrix(result)

    run_on(answer, [button.click, prompt.submit], [prompt, gallery, *settings], [ranking, matrix], filled)
    clear_when_changed(note, [prompt])
    gallery.upload(None, None, note, js="() => ''", api_visibility="private")
