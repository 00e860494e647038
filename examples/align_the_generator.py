"""Align the small generator, with pictures before and after: `python -m examples.align_the_generator`.

The configuration's 80 updates take minutes on a CPU; pass their number to make more than a few.
"""

import json
import sys
from pathlib import Path

from diffusers.utils import make_image_grid
from PIL import Image

from training.align.run import load_run, run

CONFIG = Path("training/configs/align/small_world_prfl.yaml")
OUT = Path("runs/examples/align")


def main(updates: int = 4) -> None:
    out = OUT / f"{updates}_updates"
    arguments = load_run(
        CONFIG,
        output_dir=out,
        updates=updates,
        prompts_per_update=8,
        eval_every=updates,
        eval_samples=16,
        save_every=updates,
        report_to="none",
        resume_from_checkpoint="last",
    )
    run(*arguments)
    for line in (out / "metrics.jsonl").read_text().splitlines():
        metrics = json.loads(line)
        if metrics["kind"] == "eval":
            print(f"update {metrics['update']}: reward {metrics['dina']:.2f}, true utility {metrics['utility']:.2f}")

    samples = [out / "samples" / f"{update:06d}.png" for update in (0, updates)]
    images = [Image.open(path).resize((512, 512), Image.Resampling.NEAREST) for path in samples]
    make_image_grid(images, rows=1, cols=2).save(out / "before_and_after.png")
    print(f"before and after: {out / 'before_and_after.png'}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
