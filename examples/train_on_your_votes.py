"""Train a reward on votes in a CSV file: `python -m examples.train_on_your_votes`.

The file has the columns prompt, image_a, image_b and target, the share of votes for image_a. Here it has 40 pairs of
the small world, which are enough to see how it works, and too few for a good reward. Replace them by your own, and use
other pairs for the validation.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import Dataset
from PIL import Image

from modeling_dina import DinaRewardModel
from training.train_reward import main as train_reward
from training.world.annotators import ANNOTATORS, vote
from training.world.groups import draw_group
from training.world.seeds import Seed
from training.world.utility import true_utility

PAIRS, BASE = 40, "modeling_dina/tiny"
OUT = Path("runs/examples/votes")


def write_votes(path: Path) -> None:
    """Write pictures, and the CSV file with the votes of simulated annotators."""
    rng, rows = np.random.default_rng(0), []
    for index in range(PAIRS):
        description, pictures = draw_group(Seed.EXAMPLES, index)
        files = [path.parent / f"{index:02d}_{side}.png" for side in "ab"]
        for file, picture in zip(files, pictures, strict=False):
            Image.fromarray(picture).save(file)
        share = vote(*(true_utility(description, picture) for picture in pictures[:2]), ANNOTATORS, rng)
        rows.append((description.caption, *map(str, files), float(share)))
    pd.DataFrame(rows, columns=["prompt", "image_a", "image_b", "target"]).to_csv(path, index=False)


def main(steps: int = 20) -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    votes, pairs, latents = OUT / "votes.csv", OUT / "pairs", OUT / "latents"
    write_votes(votes)
    Dataset.from_pandas(pd.read_csv(votes).assign(weight=1.0, source="mine")).save_to_disk(pairs)
    encode = [sys.executable, "-m", "training.encode_latents", pairs, "--out", latents, "--model", BASE]
    subprocess.run([*map(str, encode), "--num-workers", "0"], check=True)
    flags = {"train_data": latents, "validation_data": latents, "output_dir": OUT / "run", "report_to": "none"}
    flags |= {"max_steps": steps, "eval_steps": steps, "per_device_train_batch_size": 8, "warmup_steps": 2}
    train_reward(["--config", "training/configs/small_world.yaml", *(f"--{name}={flags[name]}" for name in flags)])
    model = DinaRewardModel.from_pretrained(OUT / "run" / "model")
    print(f"{OUT / 'run' / 'model'}: a reward with {sum(each.numel() for each in model.parameters()):,} weights")


if __name__ == "__main__":
    main()
