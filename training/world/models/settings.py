"""Sizes of a build of the small world."""

from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Settings:
    """
    Amounts of a build, and how it is computed.

    Attributes:
        preset: name of these settings.
        autoencoder_pictures, generator_pictures: distinct training pictures.
        autoencoder_updates, generator_updates, reward_updates: training steps.
        autoencoder_batch, generator_batch: pictures per update.
        reward_batch: pairs per update.
        rendered, generated: groups of four pictures that the reward is trained on.
        test: rendered groups in each test set; generated ones are a quarter of that.
        bf16: whether generator and reward are trained with bfloat16 matrix products.
        compiled: whether the generator's blocks are compiled.
        scale: factor by which the amounts differ from those of the preset.
    """

    preset: str
    autoencoder_pictures: int
    autoencoder_updates: int
    autoencoder_batch: int
    generator_pictures: int
    generator_updates: int
    generator_batch: int
    rendered: int
    generated: int
    test: int
    reward_updates: int
    reward_batch: int
    bf16: bool
    compiled: bool
    scale: float = 1.0

    def scaled(self, factor: float) -> "Settings":
        """The same settings with all amounts times `factor`, for a trial. A batch is at most as large as its set."""
        amounts: dict[str, Any] = {
            name: max(4, round(factor * value))
            for name, value in asdict(self).items()
            if type(value) is int and not name.endswith("_batch")
        }
        sets = {"autoencoder": "autoencoder_pictures", "generator": "generator_pictures", "reward": "rendered"}
        batches: dict[str, Any] = {
            f"{part}_batch": min(getattr(self, f"{part}_batch"), amounts[of]) for part, of in sets.items()
        }
        return replace(self, **amounts, **batches, scale=factor)

    @property
    def flags(self) -> str:
        """The flags of the command that builds with these settings."""
        return f"--preset {self.preset} --scale {self.scale:g}"

    @property
    def few_groups(self) -> int:
        """Groups of the smaller sets, for validation and of generated pictures for the test."""
        return max(4, self.test // 4)

    @property
    def few_pictures(self) -> int:
        """Pictures that determine the scale of the latents."""
        return max(4, self.autoencoder_pictures // 32)


PRESETS = {
    "cpu": Settings(
        preset="cpu",
        autoencoder_pictures=32_000,
        autoencoder_updates=2_000,
        autoencoder_batch=32,
        generator_pictures=100_000,
        generator_updates=8_000,
        generator_batch=128,
        rendered=24_000,
        generated=2_000,
        test=1_000,
        reward_updates=4_800,
        reward_batch=64,
        bf16=False,
        compiled=False,
    ),
    "gpu": Settings(
        preset="gpu",
        autoencoder_pictures=64_000,
        autoencoder_updates=2_000,
        autoencoder_batch=256,
        generator_pictures=400_000,
        generator_updates=9_000,
        generator_batch=256,
        rendered=36_000,
        generated=4_000,
        test=1_000,
        reward_updates=1_400,
        reward_batch=256,
        bf16=True,
        compiled=True,
    ),
}
