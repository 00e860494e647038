"""What an alignment run would cost, told without weights, prompts or network: counted on the meta device."""

import os
from collections.abc import Callable
from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from peft import LoraConfig
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from modeling_dina import DinaConfig, DinaRewardModel
from modeling_dina.backbone_dina import read_transformer_config
from modeling_dina.configuration_dina import SD35_MEDIUM_TRANSFORMER
from training.align.arguments import AlignArguments
from training.align.policy import ATTENTION
from training.reward.dry_run import ADAM_BYTES, CLIP_TOKENS, KNOWN_BASE, saved_bytes

LATENT_FACTOR = 8  # pixels a latent, of every Stable Diffusion 3 VAE


class Cost:
    """FLOPs and bytes of a run's parts, for one sample.

    Args:
        arguments, algorithm_arguments: of the run.

    Attributes:
        flops: by part of an update: "sampling", "reward" and "update".
        memory: bytes in one process, by what they hold; without VAE and text encoders.
        parameters, trainable: of the transformer with its LoRA.
    """

    def __init__(self, arguments: AlignArguments, algorithm_arguments: Any) -> None:
        config, transformer_config = offline_reward(arguments.reward_model), offline_policy(arguments.policy)
        dtype = getattr(torch, arguments.dtype)
        with torch.device("meta"):
            transformer = SD3Transformer2DModel.from_config(transformer_config).requires_grad_(False)
            for weight in transformer.parameters():
                weight.data = weight.data.to(dtype)
            lora = LoraConfig(r=arguments.lora_rank, lora_alpha=arguments.lora_alpha, target_modules=list(ATTENTION))
            transformer.add_adapter(lora)
            reward = DinaRewardModel(config).requires_grad_(False)
            reward.backbone.to(dtype)
            inputs = sample_inputs(arguments, transformer_config, config.max_sequence_length, dtype)
        self.parameters = sum(weight.numel() for weight in transformer.parameters())
        self.trainable = sum(weight.numel() for weight in transformer.parameters() if weight.requires_grad)
        needs_gradient = arguments.algorithm == "refl"
        evaluations = algorithm_arguments.evaluations()
        draws = arguments.reward_draws or config.default_num_draws
        levels = 1 if evaluations.noisy else draws * len(arguments.reward_sigmas or config.default_sigmas)

        def velocity() -> torch.Tensor:
            latents, embeds, pooled = inputs
            return transformer(latents, embeds, pooled, torch.empty(1, device="meta")).sample

        def judge() -> torch.Tensor:
            latents, embeds, pooled = inputs
            return reward(latents.detach().requires_grad_(needs_gradient), 0.5, embeds, pooled).scores

        weights = {"weights": bytes_of(transformer), "reward": bytes_of(reward)}
        activations = saved_bytes(transformer, velocity)
        if arguments.gradient_checkpointing:
            # Blocks keep their inputs, and what lies within one of them at a time.
            blocks = transformer_config["num_layers"]
            tokens = inputs[0].shape[-1] ** 2 // transformer_config["patch_size"] ** 2 + inputs[1].shape[1]
            width = transformer_config["num_attention_heads"] * transformer_config["attention_head_dim"]
            activations = activations // blocks + blocks * tokens * width * dtype.itemsize
            transformer.enable_gradient_checkpointing()
        steps = getattr(algorithm_arguments, "gradient_steps", 1)
        kept = steps * activations + (levels * saved_bytes(reward, judge) if needs_gradient else 0)
        averages = 2 if arguments.algorithm == "diffusion_nft" else 1
        self.memory = weights | {
            "gradients": 4 * self.trainable,
            "optimizer": ADAM_BYTES * self.trainable,
            "averaged weights": 4 * self.trainable * averages,
            "activations": arguments.batch_size * kept,
        }
        prompts = arguments.prompts_per_update
        gate = 0 if arguments.gate == "none" else arguments.gate_draws * len(config.default_sigmas)
        with torch.no_grad():
            sampling, judged = count(velocity), count(judge)
        rewarded = evaluations.judged * (levels * count(judge, needs_gradient) + gate * judged)
        self.flops = {
            "sampling": prompts * evaluations.sampling * sampling,
            "reward": prompts * rewarded,
            "update": prompts * evaluations.update * count(velocity, True),
        }


def count(run: Callable[[], torch.Tensor], backward: bool = False) -> int:
    """Floating-point operations of a run, with its backward pass if asked for; a multiplication and an addition are
    two."""
    with FlopCounterMode(display=False) as counter:
        result = run()
        if backward:
            result.sum().backward()
    return counter.get_total_flops()


def bytes_of(module: torch.nn.Module) -> int:
    """Bytes of a module's weights."""
    return sum(weight.nbytes for weight in module.parameters())


def sample_inputs(arguments: AlignArguments, transformer: dict, max_sequence_length: int, dtype: torch.dtype) -> tuple:
    """Latents, prompt_embeds and pooled_prompt_embeds of one sample, on the device of the context."""
    side = arguments.resolution // LATENT_FACTOR if arguments.resolution else transformer["sample_size"]
    tokens = min(CLIP_TOKENS, max_sequence_length) + max_sequence_length
    return (
        torch.empty(1, transformer["in_channels"], side, side, dtype=dtype),
        torch.empty(1, tokens, transformer["joint_attention_dim"], dtype=dtype),
        torch.empty(1, transformer["pooled_projection_dim"], dtype=dtype),
    )


def offline_policy(source: str) -> dict:
    """The transformer's configuration, without asking the Hub; ValueError where it is not known."""
    if os.path.isdir(source):
        return read_transformer_config("sd3", source)[0]
    if source != KNOWN_BASE:
        raise ValueError(f"policy: expected a folder or {KNOWN_BASE} for a dry run, got {source}")
    return SD35_MEDIUM_TRANSFORMER


def offline_reward(source: str) -> DinaConfig:
    """The reward model's configuration, without asking the Hub; of a Hub id, that of DiNa-LRM on SD3.5 Medium."""
    return DinaConfig.from_pretrained(source) if os.path.isdir(source) else DinaConfig()


def print_dry_run(arguments: AlignArguments, algorithm_arguments: Any) -> None:
    """Print parameters, FLOPs and memory of a run."""
    cost = Cost(arguments, algorithm_arguments)
    table = Table("", "", title=f"{arguments.algorithm} of {arguments.policy}")
    table.add_row("parameters of the policy", f"{cost.parameters / 1e6:,.1f} M")
    table.add_row("trainable parameters", f"{cost.trainable / 1e6:,.2f} M")
    for name, flops in cost.flops.items():
        table.add_row(f"FLOPs an update in one process: {name}", f"{flops / 1e12:,.2f} T")
    for name, size in cost.memory.items():
        table.add_row(f"memory: {name}", f"{size / 1e9:,.2f} GB")
    table.add_row("memory a process, without VAE and text encoders", f"{sum(cost.memory.values()) / 1e9:,.2f} GB")
    table.add_row("updates", f"{arguments.updates:,}")
    Console().print(table)
