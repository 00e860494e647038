"""The tabs of the page. Each function fills the current `gr.Tab`."""

import gradio as gr

import figures
import judge as limits
import views
from inputs import example_buttons, noise_settings, opened_image, opened_images, pair_inputs, prompt_box, run_on
from judge import SETTLING_DRAWS, Generator, Judge, on_accelerator


def compare_tab(judge: Judge, examples: list[dict]) -> None:
    """Which of two pictures is preferred, with what probability, and how certain that is."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320):
            above = gr.Column()
            pair = pair_inputs(examples[0])
            settings = noise_settings(judge)
            button = gr.Button("Compare", variant="primary", elem_id="compare-button")
        with gr.Column(scale=6, min_width=320):
            verdict = gr.HTML(views.waiting("The verdict appears here."), elem_id="compare-verdict")
            note = gr.Markdown(examples[0]["note"], elem_classes="dina-example-note")
    filled = example_buttons(above, examples, pair, note)
    with gr.Row(equal_height=False):
        with gr.Column(scale=6, min_width=320):
            figure = gr.HTML(elem_id="compare-figure")
        with gr.Column(scale=4, min_width=320):
            slider = _slider("A | B", "compare-slider")

    compare = on_accelerator(judge.compare)

    def answer(prompt, upload_a, upload_b, sigmas, draws, mode, seed):
        images = opened_image(upload_a, "image A"), opened_image(upload_b, "image B")
        comparison = compare(prompt, images, sigmas, draws, mode, seed)
        figure = views.titled("Score at each noise level", figure=figures.reward_figure(comparison))
        yield views.verdict(comparison), figure, gr.ImageSlider(views.overlaid(images), visible=True)

    triggers = [button.click, pair[0].submit]
    run_on(answer, triggers, [*pair, *settings], [verdict, figure, slider], filled)


def rank_tab(judge: Judge, examples: list[dict]) -> None:
    """Pictures for one prompt, best first."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320):
            above = gr.Column()
            prompt = prompt_box(examples[0]["prompt"])
            gallery = gr.Gallery(
                examples[0]["images"],
                label=f"Pictures, {limits.MIN_RANKED} to {limits.MAX_RANKED}",
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
    filled = example_buttons(above, examples, [prompt, gallery], note)

    rank = on_accelerator(judge.rank)

    def answer(prompt, uploads, *settings):
        images = opened_images([item.get("image") or item.get("video") for item in uploads or []])
        names = [f"Picture {place}" for place in range(1, len(images) + 1)]
        result = rank(prompt, images, *settings)
        yield views.ranking(result, images, names), views.matrix(result)

    run_on(answer, [button.click, prompt.submit], [prompt, gallery, *settings], [ranking, matrix], filled)


def generate_tab(judge: Judge, generator: Generator, captions: list[str]) -> None:
    """Pictures for a caption, their rewards during sampling, and the best one."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=320):
            above = gr.Column()
            prompt = prompt_box(captions[0], "Caption")
            count = gr.Slider(
                2, limits.MAX_PICTURES, value=6, step=1, label="Pictures", info="The best one is chosen by its reward."
            )
            with gr.Accordion("Sampling", open=False):
                guidance = gr.Slider(
                    1, limits.MAX_GUIDANCE, value=3, step=0.5, label="Guidance", info="1 turns it off."
                )
                steps = gr.Slider(4, limits.MAX_STEPS, value=28, step=1, label="Steps")
                seed = gr.Number(
                    0, label="Seed of the first picture", precision=0, minimum=0, maximum=limits.MAX_SEED, step=1
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
                    slider = _slider("Picture 1 | best", "generate-slider")
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
            gr.ImageSlider(views.overlaid((state.pictures[0], state.pictures[best])), visible=True),
        )

    outputs = [progress, pictures, figure, verdict, slider]
    run_on(answer, [button.click, prompt.submit], [prompt, count, guidance, steps, seed], outputs)


def draws_tab(judge: Judge, examples: list[dict]) -> None:
    """Test-time scaling: scores and win probability against the number of noise draws."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320):
            above = gr.Column()
            pair = pair_inputs(examples[0])
            most_draws = gr.Radio(SETTLING_DRAWS[3:], value=SETTLING_DRAWS[-2], label="Number of draws")
            settings = noise_settings(judge, with_draws=False)
            button = gr.Button("Add draws", variant="primary", elem_id="draws-button")
        with gr.Column(scale=6, min_width=320):
            progress = gr.HTML(views.waiting("Scores appear here, draw by draw."), elem_id="draws-progress")
            figure = gr.HTML(elem_id="draws-figure")
            note = gr.Markdown(examples[0]["note"], elem_classes="dina-example-note")
    filled = example_buttons(above, examples, pair, note)

    settle = on_accelerator(judge.settle)

    def answer(prompt, upload_a, upload_b, most_draws, sigmas, mode, seed):
        images = [opened_image(upload_a, "image A"), opened_image(upload_b, "image B")]
        comparisons = []
        for comparison in settle(prompt, images, most_draws, sigmas, mode, seed):
            comparisons.append(comparison)
            status = views.progress(comparison.samples.shape[1], most_draws, "Draws")
            result = views.titled(views.headline(comparison.win_probability), text=views.difference(comparison))
            yield status + result, figures.settling_figure(comparisons, most_draws)

    triggers = [button.click, pair[0].submit]
    run_on(answer, triggers, [*pair, most_draws, *settings], [progress, figure], filled)


def _slider(label: str, elem_id: str) -> gr.ImageSlider:
    return gr.ImageSlider(visible=False, label=label, interactive=False, elem_id=elem_id, buttons=["fullscreen"])
