"""Train a reward model on preference pairs: `accelerate launch -m training.train_reward --config FILE`.

The file gives defaults, flags have the last word: fields of `ModelArguments`, `DataArguments` and
`RewardTrainingArguments`. An interrupted run goes on with `--resume_from_checkpoint last`.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from diffusers import StableDiffusion3Pipeline
from transformers import set_seed

from modeling_dina import DinaRewardModel
from modeling_dina.scoring_dina import encode_prompts
from training.arguments import parse
from training.checkpoints import TERMINATED, checkpoint_to_resume
from training.hub import CheckpointPusher
from training.reward.data import load_pairs
from training.reward.dry_run import offline_config, print_dry_run
from training.reward.noise_levels import DENSITIES, NoiseLevels
from training.reward.objective import LOSSES, PreferenceObjective
from training.reward.trainer import RewardTrainer, RewardTrainingArguments
from training.world.pairs import write_rendered_pairs

# The attention projections of a joint block: four of the image stream, four of the text stream.
LORA_TARGETS = [
    "attn.to_q",
    "attn.to_k",
    "attn.to_v",
    "attn.to_out.0",
    "attn.add_q_proj",
    "attn.add_k_proj",
    "attn.add_v_proj",
    "attn.to_add_out",
]
BACKBONE_TRAINING = ("lora", "frozen", "full")
LAST_SECONDS = 20.0  # a scheduler that ends a job by SIGTERM gives it about 30


@dataclass
class ModelArguments:
    """What is trained, and how it learns from a pair."""

    base_model: str = field(
        metadata={"help": "Diffusers pipeline, a folder or a Hub id, whose first blocks are read."}
    )
    base_revision: str | None = field(default=None, metadata={"help": "Of a Hub id."})
    reward_config: str = field(default="{}", metadata={"help": "Fields of DinaConfig, as JSON or YAML mapping."})
    backbone: str = field(default="lora", metadata={"help": "What of it is trained.", "choices": BACKBONE_TRAINING})
    backbone_dtype: str = field(
        default="bfloat16", metadata={"help": "Of its frozen weights.", "choices": ("float32", "bfloat16")}
    )
    lora_rank: int = 64
    lora_alpha: float = 128.0
    loss: str = field(default="fidelity", metadata={"help": "Of a pair.", "choices": LOSSES})
    margin: float = field(default=0.0, metadata={"help": "Of the loss bradley_terry."})
    learn_variance: bool = field(default=False, metadata={"help": "Fit the slope and floor of the likelihood too."})
    sigma_density: str = field(default="uniform", metadata={"help": "Of noise levels.", "choices": tuple(DENSITIES)})
    sigma_parameters: list[float] = field(default_factory=list, metadata={"help": "See training.reward.noise_levels."})

    def __post_init__(self):
        try:
            self.reward_fields = dict(json.loads(self.reward_config))
        except (ValueError, TypeError) as error:
            raise ValueError(f"reward_config: expected a mapping in JSON, got {self.reward_config!r}") from error
        self.noise_levels = NoiseLevels(self.sigma_density, self.sigma_parameters)

    @property
    def frozen_dtype(self) -> torch.dtype:
        """Precision of weights that are not trained."""
        return getattr(torch, self.backbone_dtype)

    def config_fields(self) -> dict[str, Any]:
        """Fields of the `DinaConfig` to train."""
        fields: dict[str, Any] = dict(self.reward_fields)
        if self.backbone == "lora":
            fields["lora"] = {"rank": self.lora_rank, "alpha": self.lora_alpha, "targets": LORA_TARGETS}
        return fields


@dataclass
class DataArguments:
    """Where pairs come from."""

    train_data: list[str] = field(
        metadata={"help": "Folders of training.encode_latents, or world:GROUPS:SEED, rendered on first use."}
    )
    validation_data: list[str] = field(default_factory=list, metadata={"help": "The same; measured every eval_steps."})


def build_objective(arguments: ModelArguments) -> PreferenceObjective:
    """
    The pretrained backbone with a fresh head, in the precision it is trained in.

    Raises:
        TypeError, ValueError, OSError: `base_model` or `reward_config` do not make a reward model.
    """
    model = DinaRewardModel.from_backbone(
        arguments.base_model, revision=arguments.base_revision, **arguments.config_fields()
    )
    return make_trainable(model, arguments)


def make_trainable(model: DinaRewardModel, arguments: ModelArguments) -> PreferenceObjective:
    """Freeze what is not to be trained, and keep in float32 what is: updates are smaller than bfloat16 resolves."""
    if arguments.backbone == "frozen":
        model.backbone.requires_grad_(False)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.float32 if parameter.requires_grad else arguments.frozen_dtype)
    return PreferenceObjective(model, arguments.loss, margin=arguments.margin, learn_variance=arguments.learn_variance)


def load_data(sources: Sequence[str], base_model: str, args: RewardTrainingArguments) -> Dataset:
    """The pairs of `train_data` or `validation_data`; those of the small world are drawn into the output folder."""
    folders = []
    for source in sources:
        kind, *numbers = source.split(":")
        if kind != "world":
            folders.append(Path(source))
            continue
        if len(numbers) != 2 or not all(number.isdecimal() for number in numbers):
            raise ValueError(f"train_data, validation_data: expected world:GROUPS:SEED, got {source!r}")
        folders.append(Path(args.output_dir) / "pairs" / "-".join(numbers))
        with args.main_process_first(desc="drawing pairs"):
            write_rendered_pairs(folders[-1], base_model, groups=int(numbers[0]), seed=int(numbers[1]))
    with args.main_process_first(desc="reading pairs"):
        return load_pairs(folders)


def train(
    model_arguments: ModelArguments, data_arguments: DataArguments, args: RewardTrainingArguments
) -> Path | None:
    """
    Train to the end, or to a SIGTERM.

    Returns:
        The folder of the finished model; None after a SIGTERM.
    """
    checkpoint = checkpoint_to_resume(Path(args.output_dir), args.resume_from_checkpoint, "trainer_state.json")
    set_seed(args.seed)  # of the fresh head, in every process
    objective = build_objective(model_arguments)
    pairs = load_data(data_arguments.train_data, model_arguments.base_model, args)
    if data_arguments.validation_data:
        validation_pairs = load_data(data_arguments.validation_data, model_arguments.base_model, args)
    else:
        validation_pairs, args.eval_strategy = None, "no"
    pipeline = StableDiffusion3Pipeline.from_pretrained(
        model_arguments.base_model,
        revision=model_arguments.base_revision,
        transformer=None,
        dtype=objective.model.compute_dtype,
    ).to(args.device)
    with pushing(args) as pusher:
        trainer = RewardTrainer(
            objective,
            args,
            # Not a scorer's, which remembers prompts: rounding would depend on which ones came before.
            encode_prompts=lambda prompts: encode_prompts(
                pipeline, prompts, objective.model.config.max_sequence_length
            ),
            noise_levels=model_arguments.noise_levels,
            pairs=pairs,
            validation_pairs=validation_pairs,
            pusher=pusher,
            card_settings=card_settings(model_arguments, data_arguments, args),
        )
        trainer.train(None if checkpoint is None else str(checkpoint))
        if trainer.was_terminated:
            return None
        folder = Path(args.output_dir) / "model"
        trainer.finish(folder)
        if pusher is not None:
            print(pusher.finish(args.hub_tag), file=sys.stderr)
    return folder


@contextmanager
def pushing(args: RewardTrainingArguments) -> Iterator[CheckpointPusher | None]:
    """What takes checkpoints to the Hub, in the main process and where it is asked for. A run that ends early waits
    for it only as long as a scheduler gives it to end."""
    # The Trainer's own way of pushing leaves the model's code behind, and stops training when the Hub is away.
    asked, args.push_to_hub = args.push_to_hub, False
    if not asked or args.process_index != 0:
        yield None
        return
    pusher = CheckpointPusher(args.hub_model_id, args.output_dir, private=args.hub_private_repo is not False)
    try:
        yield pusher
    finally:
        if not pusher.is_finished:
            print(pusher.finish(timeout=LAST_SECONDS), file=sys.stderr)


def card_settings(
    model_arguments: ModelArguments, data_arguments: DataArguments, args: RewardTrainingArguments
) -> dict[str, Any]:
    """How the model was trained, for its card."""
    return {
        "pairs": ", ".join(Path(source).name for source in data_arguments.train_data),
        "trained weights": {
            "lora": f"head, and LoRA of rank {model_arguments.lora_rank} on the backbone",
            "frozen": "head",
            "full": "all",
        }[model_arguments.backbone],
        "loss": model_arguments.loss,
        "noise levels": f"{model_arguments.sigma_density} {model_arguments.noise_levels.parameters or ''}".strip(),
        "pairs a step": args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size,
        "optimizer": f"{args.optim}, learning rate {args.learning_rate:g}, {args.lr_scheduler_type} schedule",
        "decay of averaged weights": args.ema_decay or "none",
        "precision": "bfloat16 autocast" if args.bf16 else "float32",
        "seed": args.seed,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments of one run and make it, or tell what it would cost."""
    model_arguments, data_arguments, args = parse(ModelArguments, DataArguments, RewardTrainingArguments, argv=argv)
    if args.dry_run:
        print_dry_run(
            f"DiNa-LRM on {model_arguments.base_model}",
            offline_config(model_arguments.base_model, model_arguments.config_fields()),
            lambda model: make_trainable(model, model_arguments),
            data_arguments.train_data,
            args,
            ema=bool(args.ema_decay),
        )
    elif train(model_arguments, data_arguments, args) is None:
        sys.exit(TERMINATED)


if __name__ == "__main__":
    main()
