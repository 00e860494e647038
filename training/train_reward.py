"""Train a reward model on preference pairs: `accelerate launch -m training.train_reward --config FILE`.

The file contains defaults, which flags override. Its keys are the fields of `ModelArguments`, `DataArguments` and
`RewardTrainingArguments`. An interrupted run resumes with `--resume_from_checkpoint last`.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from huggingface_hub.errors import StrictDataclassError
from transformers import set_seed
from transformers.hf_argparser import HfArg

from modeling_dina import DinaConfig, DinaRewardModel
from modeling_dina.backbone_dina import backbone_class, is_adapter_key, read_backbone_type
from modeling_dina.conditioning_dina import encode_prompts
from modeling_dina.hub.background import CheckpointPusher
from modeling_dina.options import check_model, exit_on_bad_input, loading
from modeling_dina.pipelines_dina import PIPELINES
from training.arguments import parse, read_mapping
from training.encode_world import write_rendered_pairs
from training.reward.data import load_pairs
from training.reward.dry_run import offline_config, offline_fields, print_dry_run
from training.reward.noise_levels import DENSITIES, NoiseLevels
from training.reward.objective import LOSSES, PreferenceObjective
from training.reward.trainer import RewardTrainer, RewardTrainingArguments
from training.run_control import TERMINATED, checkpoint_to_resume

BACKBONE_TRAINING = ("lora", "frozen", "full")
# Fields of `DinaConfig` that a training takes over from the reward model that it goes on from.
INHERITED_FIELDS = (
    *("num_layers", "visual_layers", "text_layers", "head_width", "num_queries", "num_attention_heads"),
    *("head_dropout", "project_in", "logistic", "timestep_scale", "max_sequence_length"),
    *("variance_slope", "variance_floor", "temperature", "score_mean", "score_std"),
    *("default_sigmas", "default_num_draws", "ensemble_mode"),
)
LAST_SECONDS = 20.0  # a scheduler that ends a job by SIGTERM gives it about 30


@dataclass
class ModelArguments:
    """The reward model to train, its loss and its noise levels."""

    base_model: str = HfArg(help="Diffusers pipeline, a folder or a Hub id, whose first blocks become the backbone.")
    base_revision: str | None = HfArg(
        default=None, help="Git revision of base_model on the Hub; the main branch if unset."
    )
    start_from: str | None = HfArg(
        default=None,
        help="Reward model, a folder or a Hub id, from which the training goes on: its backbone and head replace the "
        "blocks of base_model and the new head, and its configuration the defaults of reward_config.",
    )
    reward_config: str = HfArg(
        default="{}", help="Fields of DinaConfig that differ from its defaults, as a JSON or YAML mapping."
    )
    backbone: str = HfArg(
        default="lora",
        help="Backbone weights to train in addition to the head: LoRA adapters, none (frozen) or all (full).",
        metadata={"choices": BACKBONE_TRAINING},
    )
    backbone_dtype: str = HfArg(
        default="bfloat16",
        help="Floating-point type of the frozen weights; trained weights are float32.",
        metadata={"choices": ("float32", "bfloat16")},
    )
    lora_rank: int = HfArg(default=64, help="Rank of the LoRA matrices; used with backbone lora.")
    lora_alpha: float = HfArg(
        default=128.0, help="LoRA scale: the low-rank update is multiplied by lora_alpha / lora_rank."
    )
    loss: str = HfArg(
        default="fidelity",
        help="Loss per preference pair: Thurstone (fidelity, log_likelihood) or bradley_terry.",
        metadata={"choices": LOSSES},
    )
    margin: float = HfArg(
        default=0.0, help="Reward margin that bradley_terry requires between the two images; 0 for the other losses."
    )
    learn_variance: bool = HfArg(
        default=False, help="Learn the slope and floor of the Thurstone variance together with the weights."
    )
    sigma_density: str = HfArg(
        default="uniform",
        help="Density from which training noise levels are drawn.",
        metadata={"choices": tuple(DENSITIES)},
    )
    sigma_parameters: list[float] = HfArg(
        default_factory=list,
        help="Parameters of sigma_density, in the order of DENSITIES in training.reward.noise_levels; missing "
        "ones take the values given there.",
    )

    def __post_init__(self):
        self.reward_fields = read_mapping("reward_config", self.reward_config, repr(self.reward_config))
        if unknown := set(self.reward_fields) - {each.name for each in fields(DinaConfig)}:
            raise ValueError(f"reward_config: expected fields of DinaConfig, got {', '.join(sorted(unknown))}")
        with names_reward_config():
            default = DinaConfig()
            for name, value in self.reward_fields.items():
                # This checks only the type of each field: valid combinations depend on the base model.
                super(DinaConfig, default).__setattr__(name, value)
        self.noise_levels = NoiseLevels(self.sigma_density, self.sigma_parameters)

    def config_fields(self, family: str) -> dict[str, Any]:
        """Fields of the `DinaConfig` of the model to train, on a base model of a family."""
        fields: dict[str, Any] = {**self.reward_fields, "backbone_type": family}
        if self.backbone == "lora":
            # In Stable Diffusion 3.5 Medium, these are only the joint attention. The second attention within the
            # image stream (attn2) keeps its pretrained weights; the LoRA of an aligned policy also adapts it.
            targets = list(backbone_class(family).lora_targets)
            chosen = {"rank": self.lora_rank, "alpha": self.lora_alpha, "targets": targets}
            fields["lora"] = {**chosen, **(self.reward_fields.get("lora") or {})}
        return fields


@dataclass
class DataArguments:
    """The preference pairs to train and to evaluate on."""

    train_data: list[str] = HfArg(
        help="Training pairs: folders written by training.encode_latents, or world:GROUPS:SEED for pairs of "
        "the small world, which are rendered on first use."
    )
    validation_data: list[str] = HfArg(
        default_factory=list,
        help="Validation pairs, in the same form as train_data, evaluated every eval_steps updates; none if unset.",
    )


@contextmanager
def names_reward_config() -> Iterator[None]:
    """Add the argument `reward_config` to the validation errors of `DinaConfig`."""
    try:
        yield
    except StrictDataclassError as error:
        raise ValueError(f"reward_config: {error.__cause__ or error}") from error


def build_objective(arguments: ModelArguments) -> PreferenceObjective:
    """
    Build the objective from the pretrained backbone and a randomly initialised head, in the dtypes for training.

    Raises:
        ValueError: `base_model` or `reward_config` is invalid.
    """
    check_model(arguments.base_model, "base_model")
    family = arguments.reward_fields.get("backbone_type")
    if family is None:
        with loading("base_model", arguments.base_model):
            family = read_backbone_type(arguments.base_model, arguments.base_revision)
    dtype = "float32" if arguments.backbone == "full" else arguments.backbone_dtype
    fields = arguments.config_fields(family)
    start = None if arguments.start_from is None else load_start(arguments.start_from)
    if start is not None:
        fields = {name: getattr(start.config, name) for name in INHERITED_FIELDS} | fields
    try:
        with names_reward_config():
            model = DinaRewardModel.from_backbone(
                arguments.base_model,
                revision=arguments.base_revision,
                dtype=getattr(torch, dtype),
                **fields,
            )
    except OSError as error:
        raise ValueError(f"base_model: cannot load {arguments.base_model}: {error}") from error
    if start is not None:
        take_weights(model, start)
    return make_trainable(model, arguments)


def load_start(source: str) -> DinaRewardModel:
    """The reward model from which the training goes on, without LoRA layers; raises a ValueError if it cannot be
    loaded."""
    check_model(source, "start_from")
    with loading("start_from", source):
        model = DinaRewardModel.from_pretrained(source, dtype="auto")
    model.merge_adapter()
    return model


def take_weights(model: DinaRewardModel, start: DinaRewardModel) -> None:
    """Replace a model's backbone and head by those of another reward model; a LoRA stays on top of the new weights.
    Raises a ValueError if the sizes differ."""
    own, given = model.state_dict(), start.state_dict()
    # The name of a weight under a LoRA has one more part.
    names = {name: name.replace(".base_layer.", ".") for name in own if not is_adapter_key(name)}
    same = {name for name, other in names.items() if other in given and given[other].shape == own[name].shape}
    if different := sorted((names.keys() - same) | (given.keys() - set(names.values()))):
        raise ValueError(
            f"start_from: expected a reward model with the sizes of base_model and reward_config, got "
            f"{start.name_or_path}, which differs in {different[:3]} …"
        )
    model.load_state_dict({name: given[other] for name, other in names.items()}, strict=False)
    model.config.base_model = None  # whose blocks are no longer those of the model


def make_trainable(model: DinaRewardModel, arguments: ModelArguments) -> PreferenceObjective:
    """Freeze weights that are not trained, and convert the others to float32, because updates are too small for
    bfloat16."""
    if arguments.backbone == "frozen":
        model.backbone.requires_grad_(False)
    frozen_dtype = getattr(torch, arguments.backbone_dtype)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.float32 if parameter.requires_grad else frozen_dtype)
    return PreferenceObjective(model, arguments.loss, margin=arguments.margin, learn_variance=arguments.learn_variance)


def load_data(name: str, sources: Sequence[str], base_model: str, args: RewardTrainingArguments) -> Dataset:
    """Load the pairs of the argument `name`. Those of the small world are rendered into the output folder. Raises a
    ValueError if there are no pairs."""
    folders = []
    for source in sources:
        kind, *numbers = source.split(":")
        if kind != "world":
            folders.append(Path(source))
            continue
        if len(numbers) != 2 or not all(number.isdecimal() for number in numbers):
            raise ValueError(f"{name}: expected world:GROUPS:SEED, got {source!r}")
        folders.append(Path(args.output_dir) / "pairs" / "-".join(numbers))
        with args.main_process_first(desc="drawing pairs"):
            write_rendered_pairs(folders[-1], base_model, groups=int(numbers[0]), seed=int(numbers[1]))
    with args.main_process_first(desc="reading pairs"), loading(name, ", ".join(sources)):
        return load_pairs(folders)


def prepare(
    model_arguments: ModelArguments, data_arguments: DataArguments, args: RewardTrainingArguments
) -> RewardTrainer:
    """
    Create a trainer with weights and pairs, and load its last checkpoint if the run is resumed.

    Raises:
        ValueError: an argument is invalid; the message names it.
    """
    checkpoint = checkpoint_to_resume(Path(args.output_dir), args.resume_from_checkpoint, "trainer_state.json")
    set_seed(args.seed)  # for the initial head, the same in every process
    objective = build_objective(model_arguments)
    pairs = load_data("train_data", data_arguments.train_data, model_arguments.base_model, args)
    if data_arguments.validation_data:
        validation_pairs = load_data(
            "validation_data", data_arguments.validation_data, model_arguments.base_model, args
        )
    else:
        validation_pairs, args.eval_strategy = None, "no"
    # The Trainer's own push omits the model's code, and stops training if the Hub is unavailable.
    pushes, args.push_to_hub = args.push_to_hub and args.process_index == 0, False
    card = card_settings(model_arguments, data_arguments, args)
    trainer = new_trainer(objective, model_arguments, args, pairs, validation_pairs, card)
    if checkpoint is not None:
        trainer.resume(checkpoint)
    if pushes:
        trainer.pusher = CheckpointPusher(
            str(args.hub_model_id), trainer.output_dir, private=args.hub_private_repo is not False
        )
    return trainer


def new_trainer(
    objective: PreferenceObjective,
    model_arguments: ModelArguments,
    args: RewardTrainingArguments,
    pairs: Dataset,
    validation_pairs: Dataset | None = None,
    card: dict[str, Any] | None = None,
) -> RewardTrainer:
    """A trainer of the objective on pairs, with the text encoders of the base model; arguments as in `RewardTrainer`.
    Raises a ValueError if these cannot be loaded."""
    with loading("base_model", model_arguments.base_model):
        pipeline_class = PIPELINES[objective.model.config.backbone_type].pipeline_class
        pipeline = pipeline_class.from_pretrained(
            model_arguments.base_model,
            revision=model_arguments.base_revision,
            transformer=None,
            dtype=objective.model.compute_dtype,
        ).to(args.device)
    return RewardTrainer(
        objective,
        args,
        # Not that of a scorer, which caches prompts: rounding would depend on the earlier ones.
        encode_prompts=lambda prompts: encode_prompts(pipeline, prompts, objective.model.config.max_sequence_length),
        noise_levels=model_arguments.noise_levels,
        pairs=pairs,
        validation_pairs=validation_pairs,
        card_settings=card,
    )


def complete(trainer: RewardTrainer) -> Path | None:
    """
    Train until the end or a SIGTERM. After an early end, wait for pushes to the Hub only for as long as schedulers
    allow.

    Returns:
        The folder of the finished model, or None after a SIGTERM.
    """
    pusher = trainer.pusher
    try:
        trainer.train()
        if trainer.was_terminated:
            return None
        folder = trainer.output_dir / "model"
        trainer.finish(folder)
        if pusher is not None:
            print(pusher.finish(trainer.args.hub_tag), file=sys.stderr)
        return folder
    finally:
        if pusher is not None and not pusher.is_finished:
            print(pusher.finish(timeout=LAST_SECONDS), file=sys.stderr)


def card_settings(
    model_arguments: ModelArguments, data_arguments: DataArguments, args: RewardTrainingArguments
) -> dict[str, Any]:
    """The training settings to list in the model card."""
    start = model_arguments.start_from
    return {
        "pairs": ", ".join(Path(source).name for source in data_arguments.train_data),
        **({} if start is None else {"start": f"the reward model {Path(start).name}"}),
        "trained weights": {
            "lora": f"head, and LoRA of rank {model_arguments.lora_rank} on the backbone",
            "frozen": "head",
            "full": "all",
        }[model_arguments.backbone],
        "loss": model_arguments.loss,
        "noise levels": f"{model_arguments.sigma_density} {model_arguments.noise_levels.parameters or ''}".strip(),
        "pairs per step": args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size,
        "optimizer": f"{args.optim}, learning rate {args.learning_rate:g}, {args.lr_scheduler_type} schedule",
        "decay of averaged weights": args.ema_decay or "none",
        "precision": "bfloat16 autocast" if args.bf16 else "float32",
        "seed": args.seed,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments of a run and start it, or print its cost with `--dry_run`."""
    with exit_on_bad_input():
        arguments = parse(ModelArguments, DataArguments, RewardTrainingArguments, argv=argv)
        if arguments[-1].dry_run:
            return print_cost(*arguments)
        trainer = prepare(*arguments)
    if complete(trainer) is None:
        sys.exit(TERMINATED)
    return None


def print_cost(model_arguments: ModelArguments, data_arguments: DataArguments, args: RewardTrainingArguments) -> None:
    """Print the cost of a run, without weights or network."""
    family = offline_fields(model_arguments.base_model, model_arguments.reward_fields)["backbone_type"]
    with names_reward_config():
        config = offline_config(model_arguments.base_model, model_arguments.config_fields(family))
    with torch.device("meta"):
        objective = make_trainable(DinaRewardModel(config), model_arguments)
    print_dry_run(f"DiNa-LRM on {model_arguments.base_model}", objective, data_arguments.train_data, args)


if __name__ == "__main__":
    main()
