"""The variants of the alignment study: runs of `training.align` that differ in algorithm, reward and gate."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import training
from model_card.studies import frame
from training.align.arguments import AlignArguments
from training.align.run import load_run

CONFIGS = Path(training.__file__).parent / "configs" / "align"


@dataclass(frozen=True, kw_only=True)
class Variant(frame.Variant):
    """A run of the study. Its overrides are fields of the run's configuration that differ."""

    config: str  # which of the small world's configurations
    updates: float = 1.0  # fraction of the study's updates; one of a group algorithm takes several times as long

    @property
    def reward(self) -> str:
        """The reward that is optimised, a name of `training.align.arguments.REWARDS`."""
        return self.overrides.get("rewards", "dina")


PIXEL, FEWER = {"rewards": "pixel"}, 0.375
# Colours of Okabe and Ito, which any colour vision distinguishes. Variants that optimise the pixel reward are black
# or grey.
VARIANTS = {
    "prfl": Variant(title="ReFL on noisy states", color="#0072B2", config="prfl"),
    "prfl_gate": Variant(
        title="ReFL on noisy states, gate", color="#56B4E9", config="prfl", overrides={"gate": "drop"}
    ),
    "refl": Variant(title="ReFL on clean predictions", color="#D55E00", config="refl"),
    "draft": Variant(title="DRaFT-2", color="#E69F00", config="draft"),
    "nft": Variant(title="DiffusionNFT", color="#009E73", config="nft", updates=FEWER),
    "grpo_cps": Variant(title="Flow-GRPO, CPS steps", color="#CC79A7", config="grpo_cps", updates=FEWER),
    "grpo_sde": Variant(title="Flow-GRPO, SDE steps", color="#6A3D9A", config="grpo_sde", updates=FEWER),
    "dpo": Variant(title="Diffusion-DPO", color="#A6761D", config="dpo", updates=FEWER),
    "refl_pixel": Variant(title="ReFL, pixel reward", color="#000000", config="refl", overrides=PIXEL),
    "grpo_pixel": Variant(
        title="Flow-GRPO, pixel reward", color="#8C8C8C", config="grpo_cps", overrides=PIXEL, updates=FEWER
    ),
}
# The variants whose comparison is the study's aim.
LATENT, DECODED = "prfl", "refl_pixel"


def read_arguments(
    variant: Variant, pipeline_dir: str, pixel_dir: Path, prompts: float = 1.0, **fields: Any
) -> tuple[AlignArguments, Any]:
    """Arguments of a variant's run and of its algorithm. An update takes the fraction `prompts` of the configuration's
    prompts; `fields` differ from the configuration's and the variant's."""
    places = {"policy": pipeline_dir, "reward_model": pipeline_dir, "pixel_reward": pixel_dir, "report_to": "none"}
    # No reward is watched during the run, because all variants are measured in the same way afterwards.
    values = {"watched": None, **places, **variant.overrides, **fields}
    arguments, algorithm_arguments = load_run(CONFIGS / f"small_world_{variant.config}.yaml", **values)
    prompts_per_update = max(1, round(prompts * arguments.prompts_per_update))
    return replace(arguments, prompts_per_update=prompts_per_update), algorithm_arguments
