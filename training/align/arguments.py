"""The arguments of one alignment run that do not depend on the algorithm."""

from dataclasses import dataclass, field
from typing import Literal

REWARDS = ("dina", "pixel", "utility")


@dataclass
class AlignArguments:
    """What is aligned to what, for how long, and how it is watched."""

    algorithm: Literal["refl", "flow_grpo", "diffusion_nft", "diffusion_dpo"]
    policy: str = field(metadata={"help": "The generator: a Stable Diffusion 3 pipeline, a folder or a Hub id."})
    reward_model: str = field(metadata={"help": "The DiNa reward model, a folder or a Hub id."})
    output_dir: str = field(metadata={"help": "Checkpoints, metrics and pictures go here."})
    prompts: str = field(metadata={"help": "A text file with a prompt a line, or 'world' for captions of scenes."})
    eval_prompts: str = field(metadata={"help": "The same, for evaluation."})

    policy_revision: str | None = field(default=None, metadata={"help": "Of a Hub id."})
    reward_revision: str | None = field(default=None, metadata={"help": "Of a Hub id."})
    dtype: Literal["float32", "bfloat16"] = field(
        default="bfloat16", metadata={"help": "Of the frozen weights; the LoRA is float32."}
    )
    resolution: int | None = field(default=None, metadata={"help": "Pixels a side; the generator's default if unset."})
    lora_rank: int = 32
    lora_alpha: float = 64.0
    gradient_checkpointing: bool = field(default=False, metadata={"help": "Slower, in less memory."})

    rewards: list[str] = field(
        default_factory=lambda: ["dina"],
        metadata={"help": f"What is optimised, of {', '.join(REWARDS)}.", "choices": REWARDS},
    )
    reward_weights: list[float] = field(default_factory=list, metadata={"help": "One each; all 1 if unset."})
    watched: list[str] = field(
        default_factory=list, metadata={"help": "Rewards that are only measured.", "choices": REWARDS}
    )
    pixel_reward: str | None = field(default=None, metadata={"help": "Folder of training.world.models.pixel_reward."})
    reward_sigmas: list[float] = field(
        default_factory=list,
        metadata={"help": "Noise levels at which clean latents are judged; the model's if unset."},
    )
    reward_draws: int | None = field(default=None, metadata={"help": "Noise draws at each; the model's if unset."})
    gate: Literal["none", "drop", "weigh"] = field(
        default="none", metadata={"help": "What becomes of samples on which the noise ensemble disagrees."}
    )
    gate_quantile: float = field(
        default=0.9, metadata={"help": "Disagreement is what exceeds this quantile over reference samples."}
    )
    gate_draws: int = field(default=4, metadata={"help": "Noise draws of the gate's ensemble."})
    reference_samples: int = field(
        default=64, metadata={"help": "Samples of the generator as it began, for the gate and for a hold."}
    )

    updates: int = 150
    prompts_per_update: int = field(default=32, metadata={"help": "In each process."})
    batch_size: int = field(default=32, metadata={"help": "Items a backward pass."})
    sampling_batch_size: int = field(default=64, metadata={"help": "Samples at a time where no gradient is kept."})
    learning_rate: float = 1e-4
    max_grad_norm: float = 1.0
    ema_decay: float = field(
        default=0.9, metadata={"help": "Of the weights that are evaluated and kept; 0: the last."}
    )
    seed: int = 0

    eval_every: int = field(default=10, metadata={"help": "Updates."})
    eval_samples: int = field(default=64, metadata={"help": "Always of the same prompts and noise."})
    eval_samples_per_prompt: int = field(
        default=1, metadata={"help": "How many of them share a prompt; from 2 on, their diversity is measured."}
    )
    eval_steps: int = 40
    eval_guidance_scale: float = 4.5
    patience: int = field(
        default=0,
        metadata={"help": "Evaluations that the first watched reward may lie below its best before the run stops."},
    )
    save_every: int = field(default=50, metadata={"help": "Updates."})
    save_total_limit: int = 2
    max_nonfinite: int = field(default=64, metadata={"help": "Rewards and gradients that are no numbers; then: stop."})
    report_to: Literal["trackio", "tensorboard", "wandb", "none"] = "trackio"
    resume_from_checkpoint: str | None = field(
        default=None, metadata={"help": "A checkpoint, or 'last' (or true): the newest of output_dir if there is one."}
    )
    dry_run: bool = field(default=False, metadata={"help": "Print what the run would cost, and end."})

    def __post_init__(self):
        for name in (
            *("lora_rank", "lora_alpha", "gate_draws", "reference_samples", "updates", "prompts_per_update"),
            *("batch_size", "sampling_batch_size", "learning_rate", "max_grad_norm"),
            *("eval_every", "eval_samples", "eval_samples_per_prompt", "eval_steps", "save_every", "save_total_limit"),
        ):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)}")
        if self.eval_samples % self.eval_samples_per_prompt:
            raise ValueError(
                f"eval_samples: expected a multiple of eval_samples_per_prompt = {self.eval_samples_per_prompt}, got "
                f"{self.eval_samples}"
            )
        self.reward_weights = self.reward_weights or [1.0] * len(self.rewards)
        if not self.rewards or len(self.reward_weights) != len(self.rewards):
            raise ValueError(f"reward_weights: expected one for each of {self.rewards}, got {self.reward_weights}")
        if self.patience and not self.watched:
            raise ValueError("patience: expected a watched reward to wait for, got none")
        if self.gate != "none" and self.gate_draws < 2:
            raise ValueError(f"gate_draws: expected at least 2, which can disagree, got {self.gate_draws}")
        if not 0 <= self.gate_quantile <= 1:
            raise ValueError(f"gate_quantile: expected a number in [0, 1], got {self.gate_quantile}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay: expected a number in [0, 1), got {self.ema_decay}")
        if "pixel" in (*self.rewards, *self.watched) and self.pixel_reward is None:
            raise ValueError("pixel_reward: expected a folder for the reward 'pixel', got none")
