"""Arguments of an alignment run that are common to all algorithms."""

from dataclasses import dataclass
from typing import Literal

from transformers.hf_argparser import HfArg

REWARDS = ("dina", "pixel", "utility")


@dataclass
class AlignArguments:
    """The policy, the rewards, the training loop and the evaluation of an alignment run."""

    algorithm: Literal["refl", "flow_grpo", "diffusion_nft", "diffusion_dpo"] = HfArg(
        help="Alignment algorithm, which also determines the other options that are available."
    )
    policy: str = HfArg(
        help="Generator to align: a diffusers pipeline of the reward model's family, a folder or a Hub id."
    )
    reward_model: str = HfArg(help="DiNa reward model, as a folder or a Hub id.")
    output_dir: str = HfArg(help="Folder for checkpoints, metrics and sample images.")
    prompts: str = HfArg(
        help="Training prompts: a text file with one prompt per line, or 'world' for random captions."
    )
    eval_prompts: str = HfArg(help="Prompts of the evaluation, in the same form as prompts.")

    policy_revision: str | None = HfArg(
        default=None, help="Git revision of policy on the Hub; the main branch if unset."
    )
    reward_revision: str | None = HfArg(
        default=None, help="Git revision of reward_model on the Hub; the main branch if unset."
    )
    reward_backbone: str | None = HfArg(
        default=None,
        help="Diffusion model that reward_model is based on, as a folder or a Hub id; the one that it names if unset.",
    )
    dtype: Literal["float32", "bfloat16"] = HfArg(
        default="bfloat16", help="Floating-point type of the frozen weights; the LoRA weights are float32."
    )
    resolution: int | None = HfArg(
        default=None, help="Side of the generated images in pixels; the generator's default if unset."
    )
    lora_rank: int = HfArg(default=32, help="Rank of the policy's LoRA matrices.")
    lora_alpha: float = HfArg(
        default=64.0, help="LoRA scale: the low-rank update is multiplied by lora_alpha / lora_rank."
    )
    gradient_checkpointing: bool = HfArg(
        default=False, help="Recompute activations in the backward pass: less memory, more time."
    )

    rewards: list[str] = HfArg(
        default_factory=lambda: ["dina"],
        help=f"Rewards to optimise, one or more of {', '.join(REWARDS)}.",
        metadata={"choices": REWARDS},
    )
    reward_weights: list[float] = HfArg(
        default_factory=list, help="Weights of the rewards in their sum, one each; all 1 if unset."
    )
    watched: list[str] = HfArg(
        default_factory=list,
        help="Further rewards that are evaluated but not optimised.",
        metadata={"choices": REWARDS},
    )
    pixel_reward: str | None = HfArg(
        default=None, help="Folder written by training.world.models.pixel_reward; required for the reward pixel."
    )
    reward_sigmas: list[float] = HfArg(
        default_factory=list,
        help="Noise levels in [0, 1] at which clean latents are scored; the model's levels if unset.",
    )
    reward_draws: int | None = HfArg(
        default=None, help="Number of noise draws at each noise level; the model's number if unset."
    )
    gate: Literal["none", "drop", "weigh"] = HfArg(
        default="none",
        help="Whether to drop, or to give less weight to, samples whose rewards vary between noise draws.",
    )
    gate_quantile: float = HfArg(
        default=0.9, help="Quantile, in [0, 1], of the reference samples' standard deviations that scales the gate."
    )
    gate_draws: int = HfArg(default=4, help="Number of noise draws at each noise level for the gate; at least 2.")
    reference_samples: int = HfArg(
        default=64, help="Number of samples of the initial generator, for the gate and for hold_weight of refl."
    )

    updates: int = HfArg(default=150, help="Number of updates of the run.")
    prompts_per_update: int = HfArg(default=32, help="Number of prompts per update in each process.")
    batch_size: int = HfArg(default=32, help="Number of samples per backward pass.")
    sampling_batch_size: int = HfArg(default=64, help="Number of samples per forward pass without gradients.")
    learning_rate: float = HfArg(default=1e-4, help="Constant learning rate of AdamW.")
    max_grad_norm: float = HfArg(
        default=1.0, help="Largest L2 norm of the gradient; larger gradients are scaled down to it."
    )
    ema_decay: float = HfArg(
        default=0.9, help="Decay of the averaged weights that are evaluated and saved; 0 uses the latest weights."
    )
    seed: int = HfArg(default=0, help="Seed of the initial LoRA, the prompts and the noise.")

    eval_every: int = HfArg(default=10, help="Number of updates between two evaluations.")
    eval_samples: int = HfArg(
        default=64, help="Number of samples per evaluation; prompts and noise are always the same."
    )
    eval_samples_per_prompt: int = HfArg(
        default=1, help="Number of evaluation samples per prompt; from 2 on, their diversity is measured."
    )
    eval_steps: int = HfArg(default=40, help="Number of sampler steps in the evaluation and for reference samples.")
    eval_guidance_scale: float = HfArg(
        default=4.5, help="Guidance scale in the evaluation and for reference samples; 1 is no guidance."
    )
    patience: int = HfArg(
        default=0,
        help="Stop after this many successive evaluations in which the first watched reward is significantly "
        "below its best; 0 never stops early.",
    )
    save_every: int = HfArg(default=50, help="Number of updates between two checkpoints.")
    save_total_limit: int = HfArg(default=2, help="Number of checkpoints to keep; older ones are deleted.")
    max_nonfinite: int = HfArg(
        default=64, help="Stop the run after more than this many rewards or gradients are NaN or infinite."
    )
    report_to: Literal["trackio", "tensorboard", "wandb", "none"] = HfArg(
        default="trackio", help="Experiment tracker that metrics are logged to."
    )
    resume_from_checkpoint: str | None = HfArg(
        default=None,
        help="Checkpoint to resume from: a folder, or 'last' (or true) for the newest in output_dir, if any.",
    )
    dry_run: bool = HfArg(default=False, help="Print what the run would cost, without weights or network, and exit.")

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
