"""Measure a finished build of the small world, and write the JSON and the two figures for its model card."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from diffusers import StableDiffusion3Pipeline

from modeling_dina import DinaRewardModel
from modeling_dina.identity import weights_hash
from training.world.groups import Groups, pairwise_accuracy
from training.world.latents import decode
from training.world.models.fidelity import measure_generator
from training.world.models.generated import sample_latents
from training.world.models.scores import group_scores
from training.world.models.settings import Settings

LEVELS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
CAPTIONS = (
    "a large red circle",
    "a small cyan square",
    "two purple stars",
    "three green triangles",
    "a large blue square left of a red star",
    "a yellow circle above a purple triangle",
    "a red square and a cyan circle",
    "a green star, a yellow triangle and a red circle",
)
INK, ACCENT, SOFT = "#1f2937", "#2563eb", "#9ca3af"


def write_report(
    directory: Path,
    pipeline: StableDiffusion3Pipeline,
    model: DinaRewardModel,
    tests: dict[str, Groups],
    settings: Settings,
) -> None:
    """Write `report.json` and its figures to `model/`.

    Args:
        directory: folder of the build.
        pipeline: generator.
        model: reward model in evaluation mode.
        tests: groups of the test sets "seen", "held_out" and "generated".
        settings: amounts of the build.
    """
    folder = directory / "model"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
    # DIR stands for the local path, because the folder is published.
    head = {
        "kind": "world_build",
        "command": f"python -m training.world.models.build --out DIR {settings.flags}",
        "revision": weights_hash(folder),
        "settings": {**asdict(settings), "device": device, "torch": torch.__version__},
    }
    report = {name: measure(model, pipeline, groups) for name, groups in tests.items()}
    report["generator"] = measure_generator(pipeline, captions=max(4, settings.test // 2))
    curve = [json.loads(line) for line in (directory / "learning_curve.jsonl").read_text().splitlines()]
    (folder / "report.json").write_text(json.dumps({**head, **report, "learning_curve": curve}, indent=2) + "\n")
    draw_pictures(pipeline, folder / "pictures.webp")
    draw_accuracy(report["seen"], curve, folder / "accuracy.png")


def measure(model: DinaRewardModel, pipeline: StableDiffusion3Pipeline, groups: Groups) -> dict:
    """Pairwise accuracy on one test set: by ensemble, by single noise level, and with captions of other groups."""

    def accuracy(groups: Groups, **ensemble) -> dict[str, float]:
        return pairwise_accuracy(group_scores(model, pipeline, groups, **ensemble), groups.utilities)

    ensembles = {
        f"{mode}, {draws} draw{'s' * (draws > 1)}": accuracy(groups, mode=mode, num_draws=draws)
        for mode in ("features", "mean", "precision")
        for draws in (1, 4)
    }
    return {
        "groups": len(groups),
        "ensembles": ensembles,
        "levels": {level: accuracy(groups, sigmas=[level], num_draws=1) for level in LEVELS},
        "wrong_caption": accuracy(replace(groups, captions=groups.captions[1:] + groups.captions[:1])),
    }


def draw_pictures(pipeline: StableDiffusion3Pipeline, path: Path, attempts: int = 2) -> None:
    """Draw a figure of generated pictures: eight captions with two samples each."""
    latents = sample_latents(pipeline, list(CAPTIONS) * attempts, guidance_scale=3.0, seed=0, steps=28)
    pictures = decode(pipeline, latents)
    figure, axes = plt.subplots(attempts * 2, 4, figsize=(9, 2.6 * attempts * 2), layout="constrained")
    for index, picture in enumerate(pictures):
        attempt, caption = divmod(index, len(CAPTIONS))
        axis = axes[attempt + attempts * (caption // 4), caption % 4]
        axis.imshow(picture, interpolation="nearest")
        axis.set_axis_off()
        if attempt == 0:
            axis.set_title(
                CAPTIONS[caption].replace(" and ", "\nand ").replace(" of ", " of\n"), fontsize=9, color=INK
            )
    figure.savefig(path, dpi=100)
    plt.close(figure)


def draw_accuracy(measured: dict, curve: list[dict], path: Path) -> None:
    """Plot the accuracy against the noise level, and the learning curve, with the best possible accuracy."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained", sharey=True)
    levels = {float(level): values["accuracy"] for level, values in measured["levels"].items()}
    ensemble = measured["ensembles"]["features, 4 draws"]
    left.plot(levels.keys(), levels.values(), "o-", color=ACCENT, label="one level, one draw")
    left.axhline(ensemble["accuracy"], color=ACCENT, linestyle="--", label="ensemble, 3 levels x 4 draws")
    left.set_xlabel("noise level (sigma)")
    left.set_ylabel("pairwise accuracy")
    right.plot(
        [p["step"] for p in curve],
        [p["accuracy"] for p in curve],
        "o-",
        color=ACCENT,
        label=f"ensemble at {curve[0]['sigmas']}",
    )
    right.axhline(curve[-1]["best"], color=SOFT)
    right.set_xlabel("training step")
    left.axhline(ensemble["best"], color=SOFT, label="best reachable")
    for axis in (left, right):
        axis.legend(frameon=False, fontsize=8, loc="lower left" if axis is left else "lower right")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.2)
    figure.savefig(path, dpi=110)
    plt.close(figure)
