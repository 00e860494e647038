"""Compare two images, and draw their rewards at every noise level: `python -m examples.compare_two_images`."""

from pathlib import Path

from PIL import Image

from modeling_dina import DinaScorer
from modeling_dina.plotting import plot_comparison

PROMPT = "a red circle and a blue square"
IMAGES = ["space/examples/clear_1.png", "space/examples/clear_2.png"]
OUT = Path("runs/examples/comparison.png")


def main() -> None:
    scorer = DinaScorer.from_pretrained("modeling_dina/tiny")
    result = scorer.compare(prompt=PROMPT, images=IMAGES, num_draws=8, with_levels=True)
    for image, score, spread in zip(IMAGES, result.scores, result.spread, strict=True):
        print(f"{image}: reward {score:.2f}, spread over noise draws {spread:.2f}")
    print(f"the first is preferred with probability {result.win_probability:.2f}")
    print(f"uncertainty {result.entropy:.2f} nats, of which {result.disagreement:.3f} from noise levels and draws")

    OUT.parent.mkdir(parents=True, exist_ok=True)
    plot_comparison(OUT, PROMPT, [Image.open(path).convert("RGB") for path in IMAGES], result)
    print(f"figure: {OUT}")


if __name__ == "__main__":
    main()
