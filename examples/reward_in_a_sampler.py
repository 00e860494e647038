"""Score a sampler's own noisy latents after every step, as curves: `python -m examples.reward_in_a_sampler`."""

from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from matplotlib.figure import Figure

from modeling_dina import DinaRewardModel
from modeling_dina.sampling import RecordRewards

PROMPT = "a red circle and a blue square"
SAMPLES, SIDE = 4, 64
OUT = Path("runs/examples/reward_in_a_sampler.png")


def main() -> None:
    pipe = DiffusionPipeline.from_pretrained("modeling_dina/tiny")
    model = DinaRewardModel.from_pretrained("modeling_dina/tiny").eval()
    record = RecordRewards(model, [PROMPT], height=SIDE, width=SIDE)
    pipe(
        PROMPT,
        height=SIDE,
        width=SIDE,
        num_images_per_prompt=SAMPLES,
        num_inference_steps=16,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(0),
        max_sequence_length=model.config.max_sequence_length,
        callback_on_step_end=record,
    )
    curves = torch.stack(record.rewards)  # [steps, samples]
    print(f"rewards of the clean latents: {[round(value, 2) for value in curves[-1].tolist()]}")

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(record.sigmas, curves)
    axes.set(xlabel="noise level", ylabel="reward of the noisy latents", title=f"“{PROMPT}”", xlim=(1, 0))
    OUT.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(OUT)
    print(f"curves: {OUT}")


if __name__ == "__main__":
    main()
