"""The variants of the alignment study: runs of `training.align` that differ in algorithm, reward and gate."""

from dataclasses import dataclass
from pathlib import Path

import training
from model_card.studies import frame

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
# Colours of Okabe and Ito, which any colour vision distinguishes; black and grey for the pixel reward.
VARIANTS = {
    "prfl": Variant("ReFL on noisy states", "#0072B2", config="prfl"),
    "prfl_gate": Variant("ReFL on noisy states, gate", "#56B4E9", {"gate": "drop"}, config="prfl"),
    "refl": Variant("ReFL on clean predictions", "#D55E00", config="refl"),
    "draft": Variant("DRaFT-2", "#E69F00", config="draft"),
    "nft": Variant("DiffusionNFT", "#009E73", config="nft", updates=FEWER),
    "grpo_cps": Variant("Flow-GRPO, CPS steps", "#CC79A7", config="grpo_cps", updates=FEWER),
    "grpo_sde": Variant("Flow-GRPO, SDE steps", "#6A3D9A", config="grpo_sde", updates=FEWER),
    "dpo": Variant("Diffusion-DPO", "#A6761D", config="dpo", updates=FEWER),
    "refl_pixel": Variant("ReFL, pixel reward", "#000000", PIXEL, config="refl"),
    "grpo_pixel": Variant("Flow-GRPO, pixel reward", "#8C8C8C", PIXEL, config="grpo_cps", updates=FEWER),
}
# The variants whose comparison is the study's aim.
LATENT, DECODED = "prfl", "refl_pixel"
