"""The tab Generate: pictures for a caption, their rewards during sampling, and the best one."""

import gradio as gr

import figures
import views
from inputs import prompt_box, run_on
from judge import MAX_GUIDANCE, MAX_PICTURES, MAX_SEED, MAX_STEPS, Generator, Judge, on_accelerator


def generate_tab(judge: Judge, generator: Generator, captions: list[str]) -> None:
    """Fills the current `gr.Tab`."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=320):
            above = gr.Column()
            prompt = prompt_box(captions[0], "Caption")
            count = gr.Slider(
                2, MAX_PICTURES, value=6, step=1, label="Pictures", info="The best one is chosen by its reward."
            )
            with gr.Accordion("Sampling", open=False):
                guidance = gr.Slider(1, MAX_GUIDANCE, value=3, step=0.5, label="Guidance", info="1 turns it off.")
                steps = gr.Slider(4, MAX_STEPS, value=28, step=1, label="Steps")
                seed = gr.Number(
                    0, label="Seed of the first picture", precision=0, minimum=0, maximum=MAX_SEED, step=1
                )
            button = gr.Button("Generate and score", variant="primary", elem_id="generate-button")
        with gr.Column(scale=7, min_width=320):
            progress = gr.HTML(views.waiting("Pictures and their rewards appear here."), elem_id="generate-progress")
            pictures = gr.HTML(elem_id="generate-pictures")
            with gr.Row(equal_height=False):
                with gr.Column(scale=3, min_width=320):
                    figure = gr.HTML(elem_id="generate-figure")
                with gr.Column(scale=2, min_width=260):
                    verdict = gr.HTML(elem_id="generate-verdict")
                    slider = gr.ImageSlider(
                        visible=False,
                        label="Picture 1 | best",
                        interactive=False,
                        elem_id="generate-slider",
                        buttons=["fullscreen"],
                    )

    with above:
        values = [[caption] for caption in captions]
        gr.Examples(values, [prompt], label="Captions", api_visibility="private", cache_examples=False)

    sample, rank = on_accelerator(generator.sample), on_accelerator(judge.rank)

    def answer(prompt, count, guidance, num_steps, seed):
        states = []
        for state in sample(prompt, count, guidance, num_steps, seed):
            states.append(state)
            status = views.progress(state.step, state.num_steps, f"Step, noise level {state.sigma:.2f}")
            if state.pictures is None:
                yield status, gr.skip(), gr.skip(), gr.skip(), gr.skip()
                continue
            scored = views.pictures(state.pictures, state.scores.tolist())
            curves = views.titled("Reward during sampling", figure=figures.sampling_figure(states))
            yield status, scored, curves, "", gr.ImageSlider(visible=False)
        result = rank(prompt, state.pictures)
        best = result.order[0]
        yield (
            views.progress(state.num_steps, state.num_steps, "Done"),
            views.pictures(state.pictures, result.scores.tolist()),
            views.titled("Reward during sampling", figure=figures.sampling_figure(states, best)),
            views.titled("Before and after", text=views.best_of(result)),
            gr.ImageSlider(views.overlaid([state.pictures[0], state.pictures[best]]), visible=True),
        )

    outputs = [progress, pictures, figure, verdict, slider]
    run_on(answer, [button.click, prompt.submit], [prompt, count, guidance, steps, seed], outputs)
