"""The reward trainer: transformers' Trainer with pairs of latents, seeded noise, an EMA, and atomic checkpoints."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from diffusers.training_utils import EMAModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.distributed.fsdp import register_fsdp_forward_method
from torch.nn.utils import get_total_norm
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.hf_argparser import HfArg
from transformers.trainer_utils import HubStrategy

from modeling_dina import DinaRewardModel
from modeling_dina.files import atomic_path
from modeling_dina.hub.background import CheckpointPusher
from training.card import write_card
from training.reward.data import PairLoader
from training.reward.evaluation import Encoder, mean_agreement, sum_agreement
from training.reward.noise_levels import NoiseLevels, seeded_draws
from training.reward.objective import PreferenceObjective
from training.reward.sharding import gather, put
from training.run_control import (
    NonFiniteError,
    averaged_weights,
    last_checkpoint,
    new_checkpoint,
    sigterm_sets_trigger,
)

TRAINABLE, EMA, SAMPLER = "trainable.safetensors", "ema.safetensors", "sampler.json"


@dataclass
class RewardTrainingArguments(TrainingArguments):
    """TrainingArguments with defaults for reward training, and additional fields.

    `per_device_train_batch_size` counts pairs of the resolution that the backbone was trained at; a batch contains
    more pairs of smaller latents and fewer pairs of larger ones.
    """

    output_dir: str = HfArg(default="runs/reward", help="Folder for the checkpoints, and for the model at the end.")
    resume_from_checkpoint: str | None = HfArg(
        default=None,
        help="Checkpoint to resume from: a folder, or 'last' (or true) for the newest in output_dir, if any.",
    )
    report_to: list[str] = HfArg(
        default_factory=lambda: ["trackio"],
        help="Experiment trackers to log to: trackio, tensorboard, wandb and so on, or none.",
    )
    remove_unused_columns: bool = HfArg(
        default=False, help="This has to stay false, because the loss needs all columns of a pair."
    )
    eval_strategy: str = HfArg(
        default="steps", help="When to evaluate on validation_data: no, steps (every eval_steps) or epoch."
    )
    save_total_limit: int | None = HfArg(default=3, help="Number of checkpoints to keep; older ones are deleted.")
    ema_decay: float = HfArg(
        default=0.999, help="Decay per update of the averaged weights, in [0, 1); 0 switches averaging off."
    )
    eval_sigmas: list[float] = HfArg(
        default_factory=lambda: [0.1, 0.2, 0.4, 0.7],
        help="Noise levels in [0, 1] at which validation pairs are scored.",
    )
    eval_draws: int = HfArg(default=1, help="Number of noise draws at each noise level of the evaluation.")
    hub_tag: str | None = HfArg(
        default=None, help="Git tag of the finished model on the Hub, such as v1.0; no tag if unset."
    )
    dry_run: bool = HfArg(default=False, help="Print what the run would cost, without weights or network, and exit.")

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay: expected a number in [0, 1), got {self.ema_decay}")
        if not self.eval_sigmas or not all(0 <= sigma <= 1 for sigma in self.eval_sigmas) or self.eval_draws < 1:
            raise ValueError(
                f"eval_sigmas, eval_draws: expected levels in [0, 1] and at least one draw, "
                f"got {self.eval_sigmas} and {self.eval_draws}"
            )
        if self.push_to_hub and self.hub_model_id is None:
            raise ValueError("hub_model_id: expected owner/name with push_to_hub, got none")
        if self.hub_strategy == HubStrategy.ALL_CHECKPOINTS:
            raise ValueError("hub_strategy: expected every_save, checkpoint or end, got all_checkpoints")
        if self.save_strategy not in ("steps", "epoch"):
            raise ValueError(f"save_strategy: expected steps or epoch, got {self.save_strategy}")
        if self.load_best_model_at_end or self.remove_unused_columns or self.auto_find_batch_size:
            raise ValueError(
                "load_best_model_at_end, remove_unused_columns, auto_find_batch_size: expected false, got true"
            )


class RewardTrainer(Trainer):
    """
    Trains a `PreferenceObjective` on pairs of cached latents.

    A checkpoint contains the model as users load it, with the averaged weights if there are any, and the training
    state: trained weights, averaged weights, optimizer, schedule, random states, and the state of the sampler.

    Args:
        objective: objective with the model to train; only parameters that require gradients are trained.
        args: training arguments; see `RewardTrainingArguments`.
        encode_prompts: maps texts to their conditioning, without gradients.
        noise_levels: distribution of the training noise levels.
        pairs, validation_pairs: data sets from `load_pairs`.
        card_settings: training settings to list in the model card.

    Attributes:
        pusher: pushes every checkpoint to the Hub, if it is set; only in the main process.

    Raises:
        ValueError: pairs cannot be divided between the processes.
    """

    args: RewardTrainingArguments

    def __init__(
        self,
        objective: PreferenceObjective,
        args: RewardTrainingArguments,
        *,
        encode_prompts: Encoder,
        noise_levels: NoiseLevels,
        pairs: Dataset,
        validation_pairs: Dataset | None = None,
        card_settings: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(objective, args, train_dataset=pairs, eval_dataset=validation_pairs)
        # compute_loss already divides by the weight of all pairs of an update.
        self.model_accepts_loss_kwargs = True
        self.encode_prompts = encode_prompts
        self.noise_levels = noise_levels
        self.pusher: CheckpointPusher | None = None
        self.card_settings = card_settings or {}
        self.ema: EMAModel | None = None
        self._resumed_from: Path | None = None
        self._rows: list[int] = []
        self._updates = _Updates(self)
        self.add_callback(self._updates)
        # Created here, so that pairs that cannot be divided between processes raise an error before training.
        self._train_loader = self._make_loader(pairs, args.dataloader_num_workers)
        self._eval_loader = None if validation_pairs is None else self._make_loader(validation_pairs, 0)

    @property
    def output_dir(self) -> Path:
        """The folder of the run."""
        return Path(str(self.args.output_dir))

    @property
    def objective(self) -> PreferenceObjective:  # type: ignore[override]  # that of a search is not used
        """The objective without the wrappers of distributed training."""
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    @property
    def trainable(self) -> dict[str, torch.nn.Parameter]:
        """The trained parameters, by their names in the objective."""
        return {name: weight for name, weight in self.objective.named_parameters() if weight.requires_grad}

    @property
    def was_terminated(self) -> bool:
        """Whether a SIGTERM ended the last `train`."""
        return self._updates.terminated

    # ---- data and loss ----

    def _make_loader(self, pairs: Dataset, num_workers: int) -> PairLoader:
        side = self.objective.model.config.dimensions.training_side
        return PairLoader(
            pairs,
            max_area=self.args.per_device_train_batch_size * side**2,
            num_replicas=self.args.world_size,
            rank=self.args.process_index,
            seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
            num_workers=num_workers,
        )

    def get_train_dataloader(self) -> PairLoader:
        """Return the loader unchanged, because its sampler already divides the pairs between the processes."""
        return self._train_loader

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """Load the batches of one update, and sum the weight of their pairs over all processes."""
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        self._rows = [row for batch in batches for row in batch["index"]]
        weight = sum(batch["weight"].sum() for batch in batches)
        return batches, self.accelerator.reduce(weight.to(device), reduction="sum")

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The batch's share of the update's mean loss, multiplied by the number of processes, over which gradients are
        averaged."""
        latents = inputs["latents"]
        if not latents.isfinite().all():
            raise NonFiniteError(self._describe("latents: expected finite numbers, got NaN or infinity"))
        u, noise = seeded_draws(
            self.args.seed, self.state.global_step, inputs["index"], latents.shape[2:], latents.device
        )
        with torch.no_grad():
            conditioning = self.encode_prompts(inputs["prompt"])
        losses = model(
            latents=latents,
            noise=noise,
            sigma=self.noise_levels(u).to(latents.device),
            **conditioning._asdict(),
            target=inputs["target"],
        )
        loss = (inputs["weight"] * losses).sum() * self.accelerator.num_processes / num_items_in_batch
        if not loss.isfinite():
            raise NonFiniteError(self._describe(f"loss: expected a finite number, got {loss.item()}"))
        return loss

    def check_gradients(self) -> None:
        """
        Raises:
            NonFiniteError: a gradient is NaN or infinite. A gradient scaler, if there is one, handles this itself.
        """
        gradients = [weight.grad for weight in self.trainable.values() if weight.grad is not None]
        if getattr(self.accelerator, "scaler", None) is None and not get_total_norm(gradients).isfinite():
            raise NonFiniteError(self._describe("gradient: expected finite numbers, got NaN or infinity"))

    def _describe(self, problem: str) -> str:
        return (
            f"{problem}, in update {self.state.global_step + 1} of process {self.args.process_index}, for the rows "
            f"{self._rows} of the training pairs; the last good checkpoint is {last_checkpoint(self.output_dir)}"
        )

    # ---- evaluation ----

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Evaluate the averaged weights: agreement with the validation pairs, at each noise level and with the
        ensemble."""
        objective = self.objective
        assert self._eval_loader is not None
        if self.is_fsdp_enabled:
            register_fsdp_forward_method(objective, "reward")
        with self._averaged_weights():
            sums = sum_agreement(
                objective.reward,
                self._eval_loader,
                self.encode_prompts,
                mode=objective.model.config.ensemble_mode,
                sigmas=self.args.eval_sigmas,
                num_draws=self.args.eval_draws,
            )
        means = mean_agreement(self.accelerator.reduce(sums, reduction="sum"))
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in means.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @contextmanager
    def _averaged_weights(self) -> Iterator[None]:
        """Context in which the objective is in evaluation mode, with the averaged weights if there are any."""
        objective = self.objective
        was_training = objective.training
        objective.eval()
        try:
            with averaged_weights(self.ema, self.trainable.values()):
                objective.write_variance(objective.log_variance)
                yield
        finally:
            objective.train(was_training)

    # ---- checkpoints ----

    def resume(self, checkpoint: Path) -> None:
        """
        Make `train` resume from a checkpoint.

        Raises:
            ValueError: the checkpoint is from a run with other pairs, batches, processes or trained weights.
        """
        self._train_loader.pair_sampler.load_state_dict(json.loads((checkpoint / SAMPLER).read_text()))
        with safe_open(checkpoint / TRAINABLE, "pt") as saved:
            different = set(saved.keys()) ^ self.trainable.keys()
        if different:
            raise ValueError(
                f"resume_from_checkpoint: expected a checkpoint of the weights in training, got {checkpoint}, which "
                f"differs in {sorted(different)[:5]} …"
            )
        self._resumed_from = checkpoint

    def train(self, **kwargs):  # type: ignore[override]
        """Like the inherited method, from the start or from the checkpoint of `resume`."""
        with sigterm_sets_trigger(self.accelerator):
            return super().train(None if self._resumed_from is None else str(self._resumed_from), **kwargs)

    def start_average(self) -> None:
        """Create the EMA of the trained weights, or load it from the checkpoint. Called when the weights are on their
        final device."""
        if not self.args.ema_decay:
            return
        weights = self.trainable
        self.ema = EMAModel(weights.values(), decay=self.args.ema_decay)
        if self._resumed_from is not None:
            self.ema.optimization_step = self.state.global_step
            put(self._averaged, load_file(self._resumed_from / EMA))

    @property
    def _averaged(self) -> Mapping[str, torch.Tensor]:
        """The averaged weights if there are any, otherwise the trained ones, by their names in the objective."""
        return self.trainable if self.ema is None else dict(zip(self.trainable, self.ema.shadow_params, strict=True))

    def _save_checkpoint(self, model, trial) -> None:
        """Save a checkpoint atomically: the inherited method writes to a temporary folder, which is then renamed."""
        args, step, output_dir = self.args, self.state.global_step, self.output_dir
        with new_checkpoint(
            self.accelerator, output_dir, step, keep=args.save_total_limit, writes=args.should_save
        ) as partial:
            args.output_dir = str(partial.parent)
            try:
                super()._save_checkpoint(model, trial)
            finally:
                args.output_dir = str(output_dir)
        if self.pusher is not None and args.hub_strategy != HubStrategy.END:
            folder = output_dir / partial.name
            with_state = folder if args.hub_strategy == HubStrategy.CHECKPOINT else None
            self.pusher.push(folder, step, training_state=with_state)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Save the weights, the model and its card; the inherited methods save the rest of the training state."""
        trained, averaged = gather(self.trainable), gather(self._averaged)
        if not self.args.should_save:
            return
        folder = Path(str(output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_file(trained, folder / TRAINABLE)
        if self.ema is not None:
            save_file(averaged, folder / EMA)
        # The position in the epoch follows from the number of updates; this is the rest of the sampler's state.
        order = self._train_loader.pair_sampler.state_dict(step=0)
        (folder / SAMPLER).write_text(json.dumps({**order, "epoch": 0}))

        objective = self.objective
        objective.write_variance(averaged.get("log_variance"))
        state = {**(state_dict or objective.state_dict()), **averaged}
        weights = {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}
        model = objective.model
        # Without a named base, such as that of a model inside its pipeline's folder, all weights have to be saved.
        adapter_only = model.config.lora is not None and model.config.base_model is not None
        model.save_pretrained(folder, state_dict=weights, adapter_only=adapter_only)
        self._write_card(folder, model.config, folder.name)

    def _write_card(self, folder: Path, config: Any, name: str) -> None:
        measured = [logged for logged in self.state.log_history if "eval_agreement_ensemble" in logged]
        metrics = {name.removeprefix("eval_"): value for name, value in measured[-1].items()} if measured else {}
        write_card(folder, config, self.card_settings, metrics, self.args.hub_model_id, name=name)

    def finish(self, folder: Path) -> None:
        """Write the model of the last checkpoint, with its adapter, if any, merged."""
        if not self.args.should_save:
            return
        model = DinaRewardModel.from_pretrained(last_checkpoint(self.output_dir), dtype="auto")
        model.merge_adapter()
        with atomic_path(folder) as partial:
            model.save_pretrained(partial)
            self._write_card(partial, model.config, folder.name)
        if self.pusher is not None:
            self.pusher.push(folder, self.state.global_step)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        put(self.trainable, load_file(Path(resume_from_checkpoint) / TRAINABLE))


class _Updates(TrainerCallback):
    """Actions around every update: check gradients, update the averaged weights, and save a checkpoint and stop after
    a SIGTERM."""

    def __init__(self, trainer: RewardTrainer) -> None:
        self.trainer = trainer
        self.terminated = False

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.start_average()

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.trainer.check_gradients()

    def on_step_end(self, args, state, control, **kwargs):
        if self.trainer.ema is not None:
            self.trainer.ema.step(self.trainer.trainable.values())
        if self.trainer.accelerator.check_trigger():
            control.should_save = control.should_training_stop = self.terminated = True
