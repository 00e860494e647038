"""An alignment run: parsing its arguments, building its trainer, and running it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, set_seed

from modeling_dina import DinaRewardModel
from modeling_dina.backbone_dina import read_backbone_type, share_base_weights
from modeling_dina.options import check_model, loading
from modeling_dina.pipelines_dina import PIPELINES
from training.align.algorithm import Algorithm, AlgorithmArguments, Samples
from training.align.arguments import AlignArguments
from training.align.compatibility import check_compatible, check_families, read_reward_family
from training.align.dpo import DiffusionDPO
from training.align.evaluation import Evaluation
from training.align.grpo import FlowGRPO
from training.align.nft import DiffusionNFT
from training.align.policy import Policy
from training.align.prompts import Prompts
from training.align.refl import ReFL
from training.align.rewards import DinaReward, Gate, PixelReward, Reward, UtilityReward, WeightedReward
from training.align.trainer import STATE, AlignmentTrainer
from training.arguments import load_config, parse, peek, read_config
from training.reward.pixel_model import PixelRewardModel
from training.run_control import checkpoint_to_resume
from training.world.seeds import Seed

ALGORITHMS: dict[str, type[Algorithm]] = {
    "refl": ReFL,
    "flow_grpo": FlowGRPO,
    "diffusion_nft": DiffusionNFT,
    "diffusion_dpo": DiffusionDPO,
}
PROJECT = "dina-align"
# Index of the first prompt of the reference samples, beyond those of all updates.
REFERENCE_PROMPTS = 10**9


def parse_run(argv: Sequence[str] | None = None) -> tuple[AlignArguments, Any]:
    """Parse the arguments of a run and of its algorithm from `--config FILE` and flags; None reads the command line.

    Raises:
        ValueError: a field is unknown or has a wrong value, or the algorithm is missing.
    """
    return parse(AlignArguments, _arguments_of(peek("algorithm", argv)), argv=argv)


def load_run(path: Path, **overrides: Any) -> tuple[AlignArguments, Any]:
    """Load the arguments of a run and of its algorithm; see `training.arguments.load_config`."""
    algorithm = overrides.get("algorithm") or read_config(path).get("algorithm")
    return load_config(path, AlignArguments, _arguments_of(algorithm), **overrides)


def _arguments_of(algorithm: Any) -> type:
    if algorithm not in ALGORITHMS:
        raise ValueError(f"algorithm: expected one of {sorted(ALGORITHMS)}, got {algorithm!r}")
    return ALGORITHMS[algorithm].Arguments


def run(arguments: AlignArguments, algorithm_arguments: AlgorithmArguments) -> AlignmentTrainer:
    """Run `prepare` and `complete`."""
    return complete(prepare(arguments, algorithm_arguments))


def prepare(arguments: AlignArguments, algorithm_arguments: AlgorithmArguments) -> AlignmentTrainer:
    """
    Build a trainer, load its checkpoint if the run is resumed, and start its trackers.

    Raises:
        ValueError: as in `build`, or the run cannot be resumed or cannot start in `output_dir`.
    """
    output_dir = Path(arguments.output_dir)
    checkpoint = checkpoint_to_resume(output_dir, arguments.resume_from_checkpoint, STATE)
    accelerator = Accelerator(
        log_with=None if arguments.report_to == "none" else arguments.report_to,
        project_config=ProjectConfiguration(str(output_dir)),
    )
    output_dir.mkdir(parents=True, exist_ok=True)
    trainer = build(arguments, algorithm_arguments, accelerator)
    if checkpoint is not None:
        trainer.resume(checkpoint)
    options = {"name": output_dir.name, "resume": "allow", "embed": False}
    accelerator.init_trackers(PROJECT, init_kwargs={"trackio": options, "wandb": {"name": output_dir.name}})
    return trainer


def complete(trainer: AlignmentTrainer) -> AlignmentTrainer:
    """Train until the end or a SIGTERM, and return the trainer."""
    trainer.train()
    trainer.accelerator.end_training()
    return trainer


def build(
    arguments: AlignArguments, algorithm_arguments: AlgorithmArguments, accelerator: Accelerator
) -> AlignmentTrainer:
    """Create the trainer of a run and load all weights.

    Raises:
        ValueError: the policy does not match the reward model, or an argument is invalid.
    """
    set_seed(arguments.seed)  # for the initial LoRA, the same in every process
    policy, model = load_models(arguments, accelerator.device)
    prompts = Prompts(arguments.prompts, (Seed.ALIGNMENT_PROMPTS, arguments.seed))
    rewards = {name: build_reward(name, arguments, policy, model) for name in (*arguments.rewards, *arguments.watched)}
    gate, samples = None, None
    if arguments.gate != "none" or algorithm_arguments.needs_reference_samples:
        samples = sample_reference(policy, prompts, arguments)
    if arguments.gate != "none":
        ensemble = DinaReward(model, arguments.reward_sigmas or None, arguments.gate_draws)
        assert samples is not None
        gate = Gate.calibrated(ensemble, arguments.gate, *samples, arguments.gate_quantile)
    algorithm = ALGORITHMS[arguments.algorithm](
        policy,
        WeightedReward([rewards[name] for name in arguments.rewards], arguments.reward_weights),
        algorithm_arguments,
        gate=gate,
        reference_samples=samples,
        batch_size=arguments.sampling_batch_size,
        gather=accelerator.gather,
    )
    return AlignmentTrainer(arguments, accelerator, algorithm, prompts, Evaluation(arguments, policy, rewards))


def load_models(arguments: AlignArguments, device: torch.device) -> tuple[Policy, DinaRewardModel]:
    """Load the policy with a new LoRA, and the reward model. Raises a ValueError if they do not match."""

    for name in ("policy", "reward_model"):
        check_model(getattr(arguments, name), name)
    with loading("policy", arguments.policy):
        family = read_backbone_type(arguments.policy, arguments.policy_revision)
    with loading("reward_model", arguments.reward_model):
        reward = read_reward_family(arguments.reward_model, arguments.reward_revision, arguments.reward_backbone)
    check_families(ALGORITHMS[arguments.algorithm], family, arguments.policy, reward, arguments.reward_model)

    def load(name: str, kind: Any, revision: str | None, **options) -> Any:
        source = getattr(arguments, name)
        with loading(name, source):
            dtype = getattr(torch, arguments.dtype)
            return kind.from_pretrained(source, revision=revision, dtype=dtype, **options).to(device)

    pipeline = load("policy", PIPELINES[family].pipeline_class, arguments.policy_revision)
    model = load("reward_model", DinaRewardModel, arguments.reward_revision, backbone=arguments.reward_backbone)
    check_compatible(pipeline, arguments.policy, model, arguments.reward_model)
    policy = Policy(
        pipeline,
        rank=arguments.lora_rank,
        alpha=arguments.lora_alpha,
        max_sequence_length=model.config.max_sequence_length,
        resolution=arguments.resolution,
    )
    share_base_weights(model.backbone, policy.transformer)  # no weight that they have in common is trained
    if arguments.gradient_checkpointing:
        policy.transformer.enable_gradient_checkpointing()
    return policy, model


def build_reward(name: str, arguments: AlignArguments, policy: Policy, model: DinaRewardModel) -> Reward:
    """Create the reward `name`, one of `REWARDS`."""
    if name == "utility":
        return UtilityReward(policy.pipeline)
    if name == "pixel":
        with loading("pixel_reward", arguments.pixel_reward):
            network = PixelRewardModel.from_pretrained(str(arguments.pixel_reward))
        return PixelReward(policy.decode, network.to(policy.device))
    return DinaReward(model, arguments.reward_sigmas or None, arguments.reward_draws)


@torch.no_grad()
def sample_reference(policy: Policy, prompts: Prompts, arguments: AlignArguments) -> Samples:
    """Clean samples of the initial generator, determined by the run's seed."""
    conditioning = policy.encode(prompts.batch(REFERENCE_PROMPTS, arguments.reference_samples))
    with policy.reference():
        path = policy.sample(
            conditioning,
            policy.noise(len(conditioning), torch.Generator().manual_seed(arguments.seed)),
            policy.sigmas(arguments.eval_steps),
            batch_size=arguments.sampling_batch_size,
            guidance_scale=arguments.eval_guidance_scale,
        )
    return Samples(path.states[-1], conditioning)
