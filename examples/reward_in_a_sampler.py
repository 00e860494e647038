"""Score a sampler's own noisy latents after every step, as curves: `python -m examples.reward_in_a_sampler`."""

from pathlib import Path

import torch
from diffusers import StableDiffusion3Pipeline
from matplotlib.figure import Figure

from modeling_dina import DinaRewardModel

PROMPT = "a red circle and a blue square"
SAMPLES = 4
OUT = Path("runs/examples/reward_in_a_sampler.png")


def main() -> None:
    pipe = StableDiffusion3Pipeline.from_pretrained("modeling_dina/tiny")
    model = DinaRewardModel.from_pretrained("modeling_dina/tiny").eval()
    sigmas, rewards = [], []

    @torch.no_grad()
    def record(pipe, step, timestep, tensors):
        sigma = pipe.scheduler.sigmas[step + 1].item()  # the state after a step has the next noise level
        # With guidance, the embeddings of the negative prompt come before those of the prompt.
        embeds, pooled = (tensors[name][-SAMPLES:] for name in ("prompt_embeds", "pooled_prompt_embeds"))
        sigmas.append(sigma)
        rewards.append(model(tensors["latents"], sigma, embeds, pooled).scores)
        return {}

    pipe(
        PROMPT,
        num_images_per_prompt=SAMPLES,
        num_inference_steps=16,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(0),
        max_sequence_length=model.config.max_sequence_length,
        callback_on_step_end=record,
        callback_on_step_end_tensor_inputs=["latents", "prompt_embeds", "pooled_prompt_embeds"],
    )
    curves = torch.stack(rewards)  # [steps, samples]
    print(f"rewards of the clean latents: {[round(value, 2) for value in curves[-1].tolist()]}")

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(sigmas, curves)
    axes.set(xlabel="noise level", ylabel="reward of the noisy latents", title=f"“{PROMPT}”", xlim=(1, 0))
    OUT.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(OUT)
    print(f"curves: {OUT}")


if __name__ == "__main__":
    main()
