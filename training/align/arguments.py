"""Arguments of an alignment run that are common to all algorithms."""

from dataclasses import dataclass, field
from typing import Literal

REWARDS = ("dina", "pixel", "utility")


@dataclass
class AlignArguments:
    """The policy, the rewards, the training loop and the evaluation of an alignment run."""

    algorithm: Literal["refl", "flow_grpo", "diffusion_nft", "diffusion_dpo"] = field(
        metadata={"help": "Alignment algorithm, which also determines the other options that are available."}
    )
    policy: str = field(
        metadata={"help": "Generator to align: a Stable Diffusion 3 pipeline, as a folder or a Hub id."}
    )
    reward_model: str = field(metadata={"help": "DiNa reward model, as a folder or a Hub id."})
    output_dir: str = field(metadata={"help": "Folder for checkpoints, metrics and sample images."})
    prompts: str = field(
        metadata={"help": "Training prompts: a text file with one prompt per line, or 'world' for random captions."}
    )
    eval_prompts: str = field(metadata={"help": "Prompts of the evaluation, in the same form as prompts."})

    policy_revision: str | None = field(
        default=None, metadata={"help": "Git revision of policy on the Hub; the main branch if unset."}
    )
    reward_revision: str | None = field(
        default=None, metadata={"help": "Git revision of reward_model on the Hub; the main branch if unset."}
    )
    reward_backbone: str | None = field(
        default=None,
        metadata={
            "help": "Diffusion model that reward_model is based on, as a folder or a Hub id; the one that it names if "
            "unset."
        },
    )
    dtype: Literal["float32", "bfloat16"] = field(
        default="bfloat16",
        metadata={"help": "Floating-point type of the frozen weights; the LoRA weights are float32."},
    )
    resolution: int | None = field(
        default=None, metadata={"help": "Side of the generated images in pixels; the generator's default if unset."}
    )
    lora_rank: int = field(default=32, metadata={"help": "Rank of the policy's LoRA matrices."})
    lora_alpha: float = field(
        default=64.0, metadata={"help": "LoRA scale: the low-rank update is multiplied by lora_alpha / lora_rank."}
    )
    gradient_checkpointing: bool = field(
        default=False, metadata={"help": "Recompute activations in the backward pass: less memory, more time."}
    )

    rewards: list[str] = field(
        default_factory=lambda: ["dina"],
        metadata={"help": f"Rewards to optimise, one or more of {', '.join(REWARDS)}.", "choices": REWARDS},
    )
    reward_weights: list[float] = field(
        default_factory=list, metadata={"help": "Weights of the rewards in their sum, one each; all 1 if unset."}
    )
    watched: list[str] = field(
        default_factory=list,
        metadata={"help": "Further rewards that are evaluated but not optimised.", "choices": REWARDS},
    )
    pixel_reward: str | None = field(
        default=None,
        metadata={"help": "Folder written by training.world.models.pixel_reward; required for the reward pixel."},
    )
    reward_sigmas: list[float] = field(
        default_factory=list,
        metadata={"help": "Noise levels in [0, 1] at which clean latents are scored; the model's levels if unset."},
    )
    reward_draws: int | None = field(
        default=None, metadata={"help": "Number of noise draws at each noise level; the model's number if unset."}
    )
    gate: Literal["none", "drop", "weigh"] = field(
        default="none",
        metadata={
            "help": "Whether to drop, or to give less weight to, samples whose rewards vary between noise draws."
        },
    )
    gate_quantile: float = field(
        default=0.9,
        metadata={"help": "Quantile, in [0, 1], of the reference samples' standard deviations that scales the gate."},
    )
    gate_draws: int = field(
        default=4, metadata={"help": "Number of noise draws at each noise level for the gate; at least 2."}
    )
    reference_samples: int = field(
        default=64,
        metadata={"help": "Number of samples of the initial generator, for the gate and for hold_weight of refl."},
    )

    updates: int = field(default=150, metadata={"help": "Number of updates of the run."})
    prompts_per_update: int = field(default=32, metadata={"help": "Number of prompts per update in each process."})
    batch_size: int = field(default=32, metadata={"help": "Number of samples per backward pass."})
    sampling_batch_size: int = field(
        default=64, metadata={"help": "Number of samples per forward pass without gradients."}
    )
    learning_rate: float = field(default=1e-4, metadata={"help": "Constant learning rate of AdamW."})
    max_grad_norm: float = field(
        default=1.0, metadata={"help": "Largest L2 norm of the gradient; larger gradients are scaled down to it."}
    )
    ema_decay: float = field(
        default=0.9,
        metadata={"help": "Decay of the averaged weights that are evaluated and saved; 0 uses the latest weights."},
    )
    seed: int = field(default=0, metadata={"help": "Seed of the initial LoRA, the prompts and the noise."})

    eval_every: int = field(default=10, metadata={"help": "Number of updates between two evaluations."})
    eval_samples: int = field(
        default=64, metadata={"help": "Number of samples per evaluation; prompts and noise are always the same."}
    )
    eval_samples_per_prompt: int = field(
        default=1,
        metadata={"help": "Number of evaluation samples per prompt; from 2 on, their diversity is measured."},
    )
    eval_steps: int = field(
        default=40, metadata={"help": "Number of sampler steps in the evaluation and for reference samples."}
    )
    eval_guidance_scale: float = field(
        default=4.5, metadata={"help": "Guidance scale in the evaluation and for reference samples; 1 is no guidance."}
    )
    patience: int = field(
        default=0,
        metadata={
            "help": "Stop after this many successive evaluations in which the first watched reward is significantly "
            "below its best; 0 never stops early."
        },
    )
    save_every: int = field(default=50, metadata={"help": "Number of updates between two checkpoints."})
    save_total_limit: int = field(
        default=2, metadata={"help": "Number of checkpoints to keep; older ones are deleted."}
    )
    max_nonfinite: int = field(
        default=64,
        metadata={"help": "Stop the run after more than this many rewards or gradients are NaN or infinite."},
    )
    report_to: Literal["trackio", "tensorboard", "wandb", "none"] = field(
        default="trackio", metadata={"help": "Experiment tracker that metrics are logged to."}
    )
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={
            "help": "Checkpoint to resume from: a folder, or 'last' (or true) for the newest in output_dir, if any."
        },
    )
    dry_run: bool = field(
        default=False, metadata={"help": "Print what the run would cost, without weights or network, and exit."}
    )

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
            raise ValueError("patience: expected at least one watched reward, got none")
        if self.gate != "none" and self.gate_draws < 2:
            raise ValueError(f"gate_draws: expected at least 2, got {self.gate_draws}")
        if not 0 <= self.gate_quantile <= 1:
            raise ValueError(f"gate_quantile: expected a number in [0, 1], got {self.gate_quantile}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay: expected a number in [0, 1), got {self.ema_decay}")
        if "pixel" in (*self.rewards, *self.watched) and self.pixel_reward is None:
            raise ValueError("pixel_reward: expected a folder for the reward 'pixel', got none")
