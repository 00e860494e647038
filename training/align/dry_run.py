"""The cost of an alignment run, computed without weights, prompts or network."""

import os
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch

from modeling_dina import DinaConfig, DinaRewardModel
from modeling_dina.backbone_dina import backbone_class
from modeling_dina.official_dina import is_official, official_fields
from modeling_dina.pipelines_dina import EncodedPrompts
from training import costs
from training.align.algorithm import AlgorithmArguments
from training.align.arguments import AlignArguments
from training.align.compatibility import check_families
from training.align.generators import GENERATORS
from training.align.run import ALGORITHMS
from training.reward.dry_run import offline_config, offline_fields

LATENT_FACTOR = 8  # image pixels per latent along each side, for the VAE of every family


class Cost:
    """FLOPs and memory of a run in one process, without VAE and text encoders.

    Args:
        arguments, algorithm_arguments: arguments of the run.

    Attributes:
        flops: FLOPs per update for "sampling", "reward" and "update".
        memory: bytes by content, such as "weights".
        parameters, trainable: numbers of all and of trainable parameters of the transformer with its LoRA.
    """

    def __init__(self, arguments: AlignArguments, algorithm_arguments: AlgorithmArguments) -> None:
        config = offline_reward(arguments.reward_model, arguments.reward_backbone, arguments.policy)
        policy = offline_fields(arguments.policy, name="policy")
        family, transformer_config = policy["backbone_type"], policy["transformer_config"]
        dtype, algorithm = getattr(torch, arguments.dtype), ALGORITHMS[arguments.algorithm]
        check_families(algorithm, family, arguments.policy, config.backbone_type, arguments.reward_model)
        if arguments.gradient_checkpointing and backbone_class(family).component == "unet":
            raise ValueError(
                "gradient_checkpointing: expected false for the dry run of a UNet, whose blocks differ in size, so "
                "that its memory with checkpointing is unknown, got true"
            )
        side = arguments.resolution // LATENT_FACTOR if arguments.resolution else None
        with torch.device("meta"):
            transformer = backbone_class(family).transformer_class.from_config(transformer_config)
            transformer.requires_grad_(False)
            for weight in transformer.parameters():
                weight.data = weight.data.to(dtype)
            generator = GENERATORS[family](transformer, policy.get("scheduler_config", config.scheduler_config))
            generator.add_adapter(arguments.lora_rank, arguments.lora_alpha)
            reward = DinaRewardModel(config).requires_grad_(False)
            reward.backbone.to(dtype)
            shapes = costs.input_shapes(generator.dimensions, config.max_sequence_length, side)
            latents, *texts = (torch.empty(1, *shape, dtype=dtype) for shape in shapes.values())
            sigma = torch.empty(1)
        prompt = EncodedPrompts(*texts)
        self.parameters, self.trainable = costs.count_parameters(transformer)
        if generator.embeds_guidance:  # then guidance costs no further evaluations
            algorithm_arguments = replace(cast(Any, algorithm_arguments), guidance_scale=1.0)
        evaluations = algorithm_arguments.evaluations()
        draws = arguments.reward_draws or config.default_num_draws
        levels = 1 if evaluations.noisy else draws * len(arguments.reward_sigmas or config.default_sigmas)

        def velocity() -> torch.Tensor:
            return generator.velocity(latents, sigma, prompt)

        def score(needs_gradient: bool = algorithm.needs_gradient) -> torch.Tensor:
            return reward(latents.detach().requires_grad_(needs_gradient), 0.5, *prompt).scores

        activations = costs.kept_bytes(transformer, velocity)
        if arguments.gradient_checkpointing:
            sizes, blocks = generator.dimensions, backbone_class(family).depth(transformer_config)
            tokens = latents.shape[-1] ** 2 // sizes.patch_size**2 + prompt.prompt_embeds.shape[1]
            activations = costs.recomputed_bytes(activations, blocks, tokens * sizes.token_width * dtype.itemsize)
            transformer.enable_gradient_checkpointing()
        stored = evaluations.stored * activations + levels * algorithm.needs_gradient * costs.kept_bytes(reward, score)
        self.memory = {
            "weights": costs.weight_bytes(transformer),
            "reward": costs.weight_bytes(reward),
            **costs.training_bytes(self.trainable, algorithm.averages),
            "activations": arguments.batch_size * stored,
        }
        prompts = arguments.prompts_per_update
        gate = 0 if arguments.gate == "none" else arguments.gate_draws * len(config.default_sigmas)
        with torch.no_grad():
            sampling, scoring = costs.count_flops(velocity), costs.count_flops(partial(score, False))
        update = costs.count_flops(lambda: velocity().sum().backward())
        rewarded = costs.count_flops(lambda: score().sum().backward()) if algorithm.needs_gradient else scoring
        self.flops = {
            "sampling": prompts * evaluations.sampling * sampling,
            "reward": prompts * evaluations.scored * (levels * rewarded + gate * scoring),
            "update": prompts * evaluations.update * update,
        }


def offline_reward(source: str, backbone: str | None, policy: str) -> DinaConfig:
    """The reward model's configuration, without access to the Hub. For a Hub id, it is the default reward model on
    `backbone`, or on the policy if there is none."""
    if not os.path.isdir(source):
        return offline_config(backbone or policy, {})
    if not is_official(source):
        return DinaConfig.from_pretrained(source)
    fields, named = official_fields(source)
    base = backbone or named
    family = offline_fields(base, name="reward_backbone")["backbone_type"]
    return offline_config(base, {**backbone_class(family).official_fields, **fields})


def print_dry_run(arguments: AlignArguments, algorithm_arguments: AlgorithmArguments) -> None:
    """Print parameters, FLOPs and memory of a run."""
    cost = Cost(arguments, algorithm_arguments)
    parts = {f"FLOPs per update in one process: {name}": flops for name, flops in cost.flops.items()}
    rows = {
        "parameters of the policy": f"{cost.parameters / 1e6:,.1f} M",
        "trainable parameters": f"{cost.trainable / 1e6:,.2f} M",
        **{name: f"{flops / 1e12:,.2f} T" for name, flops in parts.items()},
        **costs.memory_rows(cost.memory, "per process, without VAE and text encoders"),
        "updates": f"{arguments.updates:,}",
    }
    costs.print_rows(f"{arguments.algorithm} of {arguments.policy}", rows)
