"""Sample several pictures and decode only the best, with a stock pipeline: `python -m examples.best_of_n`."""

from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import make_image_grid

from modeling_dina import DinaRewardModel
from modeling_dina.sampling import best_of_n

PROMPT = "two purple stars"
CANDIDATES = 8
OUT = Path("runs/examples/best_of_n.png")


def main() -> None:
    pipe = DiffusionPipeline.from_pretrained("modeling_dina/tiny")
    model = DinaRewardModel.from_pretrained("modeling_dina/tiny").eval()
    found = best_of_n(
        pipe,
        model,
        PROMPT,
        CANDIDATES,
        keep=CANDIDATES,  # all, to see the order
        height=64,
        width=64,
        guidance_scale=3.0,
        num_inference_steps=12,
        generator=[torch.Generator().manual_seed(seed) for seed in range(CANDIDATES)],
    )
    print(f"best {found.scores[0]:.2f}, mean {found.scores.mean():.2f}, worst {found.scores[-1]:.2f}")

    OUT.parent.mkdir(parents=True, exist_ok=True)
    make_image_grid(found.images, rows=2, cols=CANDIDATES // 2).resize((1024, 512)).save(OUT)
    print(f"best first: {OUT}")


if __name__ == "__main__":
    main()
