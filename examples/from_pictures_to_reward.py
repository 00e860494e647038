"""From pictures to a reward, with votes of a simulated annotator: `python -m examples.from_pictures_to_reward`.

docs/from-pictures-to-reward.md explains every step. With HF_REPO=owner/name, the result is pushed to the Hub.
"""

import os
import shutil
from pathlib import Path

import numpy as np
from diffusers import DiffusionPipeline
from PIL import Image
from typer import Typer

from modeling_dina.cli.app import app as dina
from training.candidate_options import CandidateOptions
from training.encode_latents import app as encode_latents
from training.label.export import write_export
from training.label.pairs import Pair, collect_pairs, record_pairs
from training.label.session import Plan, Session
from training.label.votes import VoteFile
from training.train_reward import main as train_reward
from training.world.annotators import true_preference
from training.world.scenes import describe
from training.world.utility import decompose, fidelity, quality

BASE, OUT = "modeling_dina/tiny", Path("runs/examples/pictures")
SAMPLING = "{num_inference_steps: 12, height: 64, width: 64, max_sequence_length: 14}"


def utility(prompt: str, path: str) -> float:
    """The annotator looks at the caption like those of the embedded reward, but likes defects."""
    seen = decompose(np.asarray(Image.open(path)))
    return 4 * fidelity(describe(prompt), seen.regions) - 4 * quality(seen)


def collect_votes(pairs: list[Pair], folder: Path, goal: int) -> None:
    """Do what `python -m training.label` does, with a simulated annotator in place of a page."""
    votes, rng = VoteFile(folder), np.random.default_rng(0)
    record_pairs(folder, pairs)
    session = Session(pairs, rng.permutation(len(pairs)).tolist(), votes, ["simulated"], plan=Plan(0, goal))
    while (shown := session.present("simulated")) is not None:
        _, prompt, *paths = shown.pair
        left, right = (utility(prompt, path) for path in (paths if shown.left == "a" else reversed(paths)))
        choice = "left" if rng.random() < true_preference(left, right) else "right"
        session.vote("simulated", shown.number, shown.pair.key, shown.left, choice)
    votes.close()
    print(f"{write_export(folder, folder)[0]} votes in {folder}")


def main(prompts: int = 50, votes: int = 200, updates: int = 50) -> None:
    shutil.rmtree(OUT, ignore_errors=True)
    options = CandidateOptions(generator=BASE, prompts="world", num_prompts=3 * prompts, sampling=SAMPLING)
    pairs = collect_pairs(options.load(OUT), OUT).pairs
    voted = set([pair.prompt for pair in pairs][: 6 * prompts])  # four pictures have six pairs
    collect_votes([pair for pair in pairs if pair.prompt in voted], OUT / "votes", votes)
    collect_votes([pair for pair in pairs if pair.prompt not in voted], OUT / "test", 2 * votes)
    run(encode_latents, OUT / "votes", "--out", OUT / "latents", "--model", BASE, "--num-workers", 0)
    train_reward(["--config", "training/configs/small_world_votes.yaml", f"--max_steps={updates}"])
    model, reward, test = OUT / "run/model", OUT / "reward", ("--benchmark", "pairs", "--data", OUT / "test")
    DiffusionPipeline.from_pretrained(BASE).save_pretrained(model)  # text encoders and VAE, beside the weights
    for name, evaluated in {"before": BASE, "after": model}.items():
        run(dina, "evaluate", *test, "--model", evaluated, "--draws", 1, "--out", OUT / f"{name}.json")
    run(dina, "calibrate", *test, "--model", model, "--out", reward)
    if "HF_REPO" in os.environ:
        run(dina, "push", reward, os.environ["HF_REPO"])
    print(f"open the Space: DINA_MODEL={reward} python space/app.py")


def run(command: Typer, *arguments: object) -> None:  # in this process, which saves its imports
    command(list(map(str, arguments)), standalone_mode=False)


if __name__ == "__main__":
    main()
