"""The rows of the alignment study: runs of `training.align` that differ in algorithm, reward and gate."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import training
from training.align.arguments import AlignArguments
from training.align.run import load_run

CONFIGS = Path(training.__file__).parent / "configs" / "align"


@dataclass(frozen=True)
class Row:
    """
    A run of the study.

    Attributes:
        title: in tables and figures.
        config: which of the small world's configurations.
        flags: fields of it that differ.
        updates: share of the study's updates that are made; one of a group algorithm takes several times as long.
    """

    title: str
    config: str
    flags: dict[str, Any] = field(default_factory=dict)
    updates: float = 1.0

    @property
    def reward(self) -> str:
        """What is optimised, a name of `training.align.arguments.REWARDS`."""
        return self.flags.get("rewards", "dina")


PIXEL = {"rewards": "pixel"}
ROWS = {
    "prfl": Row("ReFL on noisy states", "prfl"),
    "prfl_gate": Row("ReFL on noisy states, gate", "prfl", {"gate": "drop"}),
    "refl": Row("ReFL on clean predictions", "refl"),
    "draft": Row("DRaFT-2", "draft"),
    "nft": Row("DiffusionNFT", "nft", updates=0.375),
    "grpo_cps": Row("Flow-GRPO, CPS steps", "grpo_cps", updates=0.375),
    "grpo_sde": Row("Flow-GRPO, SDE steps", "grpo_sde", updates=0.375),
    "dpo": Row("Diffusion-DPO", "dpo", updates=0.375),
    "refl_pixel": Row("ReFL, pixel reward", "refl", PIXEL),
    "grpo_pixel": Row("Flow-GRPO, pixel reward", "grpo_cps", PIXEL, updates=0.375),
}
# Those that the study's aim compares, and those that differ in the gate alone.
LATENT, DECODED = "prfl", "refl_pixel"
GATE = {"off": "prfl", "on": "prfl_gate"}


def read_arguments(
    row: Row, pipeline_dir: str, pixel_dir: Path, prompts: float = 1.0, **flags
) -> tuple[AlignArguments, Any]:
    """
    Arguments of a row's run and of its algorithm.

    Args:
        pipeline_dir: the small world's pipeline and reward model.
        pixel_dir: of `training.world.models.pixel_reward`.
        prompts: share of the configuration's prompts that an update takes.
        flags: fields that differ from the configuration's and the row's.
    """
    places = {"policy": pipeline_dir, "reward_model": pipeline_dir, "pixel_reward": pixel_dir, "report_to": "none"}
    config = CONFIGS / f"small_world_{row.config}.yaml"
    arguments, algorithm_arguments = load_run(config, **{**places, **row.flags, **flags})
    # Nothing is watched: all that is measured is measured afterwards, of all rows alike.
    prompts_per_update = max(1, round(prompts * arguments.prompts_per_update))
    return replace(arguments, watched=[], prompts_per_update=prompts_per_update), algorithm_arguments
