"""The variants of the alignment study: runs of `training.align` that differ in algorithm, reward and gate."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import training
from training.align.arguments import AlignArguments
from training.align.run import load_run

CONFIGS = Path(training.__file__).parent / "configs" / "align"


@dataclass(frozen=True)
class Variant:
    """
    A run of the study.

    Attributes:
        title: in tables and figures.
        color: in figures.
        config: which of the small world's configurations.
        flags: fields of it that differ.
        updates: share of the study's updates that are made; one of a group algorithm takes several times as long.
    """

    title: str
    color: str
    config: str
    flags: dict[str, Any] = field(default_factory=dict)
    updates: float = 1.0

    @property
    def reward(self) -> str:
        """What is optimised, a name of `training.align.arguments.REWARDS`."""
        return self.flags.get("rewards", "dina")


PIXEL = {"rewards": "pixel"}
FEWER = 0.375
# Colours of Okabe and Ito, which any colour vision distinguishes. Variants that optimise the pixel reward are black
# or grey.
VARIANTS = {
    "prfl": Variant("ReFL on noisy states", "#0072B2", "prfl"),
    "prfl_gate": Variant("ReFL on noisy states, gate", "#56B4E9", "prfl", {"gate": "drop"}),
    "refl": Variant("ReFL on clean predictions", "#D55E00", "refl"),
    "draft": Variant("DRaFT-2", "#E69F00", "draft"),
    "nft": Variant("DiffusionNFT", "#009E73", "nft", updates=FEWER),
    "grpo_cps": Variant("Flow-GRPO, CPS steps", "#CC79A7", "grpo_cps", updates=FEWER),
    "grpo_sde": Variant("Flow-GRPO, SDE steps", "#6A3D9A", "grpo_sde", updates=FEWER),
    "dpo": Variant("Diffusion-DPO", "#A6761D", "dpo", updates=FEWER),
    "refl_pixel": Variant("ReFL, pixel reward", "#000000", "refl", PIXEL),
    "grpo_pixel": Variant("Flow-GRPO, pixel reward", "#8C8C8C", "grpo_cps", PIXEL, updates=FEWER),
}
# Those that the study's aim compares, and those that differ in the gate alone.
LATENT, DECODED = "prfl", "refl_pixel"
GATE = {"off": "prfl", "on": "prfl_gate"}


def read_arguments(
    variant: Variant, pipeline_dir: str, pixel_dir: Path, prompts: float = 1.0, **flags
) -> tuple[AlignArguments, Any]:
    """
    Arguments of a variant's run and of its algorithm.

    Args:
        pipeline_dir: the small world's pipeline and reward model.
        pixel_dir: of `training.world.models.pixel_reward`.
        prompts: share of the configuration's prompts that an update takes.
        flags: fields that differ from the configuration's and the variant's.
    """
    places = {"policy": pipeline_dir, "reward_model": pipeline_dir, "pixel_reward": pixel_dir, "report_to": "none"}
    config = CONFIGS / f"small_world_{variant.config}.yaml"
    arguments, algorithm_arguments = load_run(config, **{**places, **variant.flags, **flags})
    # Nothing is watched: all that is measured is measured afterwards, of all variants alike.
    prompts_per_update = max(1, round(prompts * arguments.prompts_per_update))
    return replace(arguments, watched=[], prompts_per_update=prompts_per_update), algorithm_arguments
