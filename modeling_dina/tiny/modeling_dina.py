"""DiNa latent reward model: noise is added to a clean latent, a truncated diffusion transformer reads the noisy latent
with its prompt, and a head turns what it saw into a reward with a known variance (arXiv 2602.11146)."""

import dataclasses
import filecmp
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput, cached_file
from transformers.utils.hub import extract_commit_hash

from .backbone_dina import (
    Features,
    build_backbone,
    compute_dtype,
    freeze_base,
    is_adapter_key,
    load_base_weights,
    merge_lora,
    read_transformer_config,
    read_transformer_weights,
)
from .conditioning_dina import (
    HUB_OPTIONS,
    Location,
    absolute_source,
    is_relative_source,
    load_pipeline,
    read_conditioning,
    warn_of_local_sources,
)
from .configuration_dina import ENSEMBLE_MODES, DinaConfig
from .noising_dina import NoisePath, check_seeds, path_from_scheduler, shared_noise
from .official_dina import read_official
from .reward_head_dina import RewardHead
from .thurstone_dina import noise_variance, precision_weights


@dataclass
class DinaRewardOutput(ModelOutput):
    r"""
    scores (`torch.FloatTensor` of shape `(batch_size,)`):
        Rewards, raw or calibrated by `score_mean` and `score_std`.
    variance (`torch.FloatTensor` of shape `(batch_size,)`):
        The likelihood's variance of each reward, in squared units of `scores`.
    """

    scores: torch.Tensor
    variance: torch.Tensor | None = None


@dataclass
class DinaEnsembleOutput(ModelOutput):
    r"""
    scores (`torch.FloatTensor` of shape `(batch_size,)`):
        Rewards of the ensemble, raw or calibrated by `score_mean` and `score_std`.
    samples (`torch.FloatTensor` of shape `(K, N, batch_size)`):
        Rewards at each of K noise levels with each of N noise draws; K is 1 in mode "features", which reads all levels
        at once.
    sigmas (`torch.FloatTensor` of shape `(number of levels,)`):
        The noise levels used: the scheduler's levels nearest to those asked for.
    variance (`torch.FloatTensor` of shape `(K,)`):
        The likelihood's variance of one sample, in squared units of `scores`; in mode "features" the mean of the
        levels' variances.
    weights (`torch.FloatTensor` of shape `(K,)`):
        The weight of each sample's level in `scores`; they sum to one.
    level_samples (`torch.FloatTensor` of shape `(number of levels, N, batch_size)`, *optional*):
        Rewards of each noise level alone. They are the samples, except in mode "features", where they are returned
        with `with_levels=True`.
    level_variance (`torch.FloatTensor` of shape `(number of levels,)`):
        The likelihood's variance of one reward at each noise level, in squared units of `scores`.
    """

    scores: torch.Tensor
    samples: torch.Tensor | None = None
    sigmas: torch.Tensor | None = None
    variance: torch.Tensor | None = None
    weights: torch.Tensor | None = None
    level_samples: torch.Tensor | None = None
    level_variance: torch.Tensor | None = None


class EnsembleFeatures(NamedTuple):
    """What the backbone computes for an ensemble, and the head combines.

    Attributes:
        sigmas: [K] noise levels, or [K, B] if each sample has its own.
        draws: for each noise draw, the features at each of the K levels. An iterator computes them one draw at a time
            and can be read once; `list(draws)` keeps them.
    """

    sigmas: torch.Tensor
    draws: Iterable[list[Features]]


class DinaPreTrainedModel(PreTrainedModel):
    """Loading, saving and the class attributes of every DiNa model."""

    config_class = DinaConfig
    main_input_name = "noisy_latents"
    supports_gradient_checkpointing = True
    _no_split_modules = ["JointTransformerBlock", "RewardHead"]  # noqa: RUF012
    # Scores are differences of near numbers: half precision would quantise them. Quantisers read the first list.
    _keep_in_fp32_modules = ["head"]  # noqa: RUF012
    _keep_in_fp32_modules_strict = ["head"]  # noqa: RUF012
    _supports_sdpa = True

    # Of weights that came from the Hub: their commit, and their folder in the repository.
    weights_revision: str | None = None
    weights_subfolder: str = ""
    # How the Hub was reached for the weights; the pipeline is read in the same way.
    hub_options: dict[str, Any] = {}  # noqa: RUF012

    def _init_weights(self, module):
        """Nothing: modules initialise themselves when built, and `from_pretrained` refuses incomplete weights."""

    def get_input_embeddings(self):
        """None: prompts arrive embedded. Quantisers leave input embeddings as they are, and look for them here."""

    def _check_and_adjust_attn_implementation(self, attn_implementation, *args, **kwargs):
        """The backbone and the head attend by torch's `scaled_dot_product_attention`, and by nothing else."""
        if attn_implementation not in (None, "sdpa"):
            raise ValueError(f"attn_implementation: expected 'sdpa', got {attn_implementation!r}")
        return super()._check_and_adjust_attn_implementation(attn_implementation, *args, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, output_loading_info=False, **kwargs):
        """Load a merged or an adapter-only checkpoint, as `PreTrainedModel.from_pretrained` does, but exactly.

        An adapter-only checkpoint takes the rest of its weights from `config.base_model` at `config.base_revision`.
        The model remembers where it came from and how the Hub was reached (`cache_dir`, `token`, `local_files_only`
        and so on), for the pipeline that `scorer` reads.

        Raises:
            ValueError: naming every tensor that is missing, unexpected or of another shape. Nothing random ever
                scores.
        """
        kwargs["ignore_mismatched_sizes"] = True  # collected and refused below, by name
        source = absolute_source(pretrained_model_name_or_path)
        loaded: Any = super().from_pretrained(source, *model_args, output_loading_info=True, **kwargs)
        model, info = loaded
        _refuse_inexact(info, origin=source)
        model.hub_options = {name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}
        if model.config.adapter_only:
            if kwargs.get("quantization_config") is not None:
                raise ValueError(
                    "quantization_config: expected none for an adapter-only checkpoint, whose base would not be "
                    "quantised; save the loaded model whole, and quantise that"
                )
            config = model.config
            base = read_transformer_weights(
                config.backbone_type, config.base_model, config.base_revision, model.dtype, **model.hub_options
            )
            load_base_weights(model.backbone, base, origin=config.base_model)
            config.adapter_only = False
        if model.config.lora is not None:
            freeze_base(model.backbone)  # loading makes every parameter trainable
        subfolder = kwargs.get("subfolder") or ""
        if os.path.isdir(source):
            model.name_or_path = os.path.normpath(os.path.join(source, subfolder))
        else:
            where = {name: kwargs[name] for name in ("revision", "subfolder") if name in kwargs}
            # Whether to download again was decided above.
            where |= {name: value for name, value in model.hub_options.items() if name != "force_download"}
            model.weights_revision = extract_commit_hash(cached_file(source, "config.json", **where), None)
            model.weights_subfolder = subfolder
        return (model, info) if output_loading_info else model

    def save_pretrained(self, save_directory, *args, adapter_only: bool = False, **kwargs):
        """Write weights, config and code, such that the folder loads by itself through
        `AutoModel.from_pretrained(folder, trust_remote_code=True)`.

        The model card of the folder that the model was loaded from goes along as long as it is true, that is if the
        weights and config written are the ones it was loaded with.

        Args:
            adapter_only: write the LoRA and the head alone; the reader gets the rest from `config.base_model`.

        Raises:
            ValueError: if `adapter_only` is asked of a model without a LoRA adapter or without a named base.
        """
        config = self.config
        recorded = (config.conditioning_source, config.conditioning_revision, config.conditioning_subfolder)
        self._point_at_conditioning(save_directory)
        try:
            if not adapter_only:
                super().save_pretrained(save_directory, *args, **kwargs)
                return _carry_card(self.name_or_path, save_directory)
            if self.config.lora is None or self.config.base_model is None:
                raise ValueError(
                    "adapter_only: expected a model with a LoRA adapter and a base_model, "
                    f"got lora={self.config.lora}, base_model={self.config.base_model}"
                )
            weights = kwargs.pop("state_dict", None) or self.state_dict()
            kwargs["state_dict"] = {
                key: value for key, value in weights.items() if key.startswith("head.") or is_adapter_key(key)
            }
            self.config.adapter_only = True
            return super().save_pretrained(save_directory, *args, **kwargs)
        finally:
            self.config.adapter_only = False
            config.conditioning_source, config.conditioning_revision, config.conditioning_subfolder = recorded

    def _point_at_conditioning(self, save_directory: str | os.PathLike) -> None:
        """Let the config name a place that is the same from `save_directory` as from where the weights came."""
        source = self.config.conditioning_source
        if not is_relative_source(source) or not self.name_or_path:
            return
        if os.path.isfile(os.path.join(save_directory, source, "model_index.json")):
            return
        config = self.config
        config.conditioning_source, config.conditioning_revision, config.conditioning_subfolder = (
            self.conditioning_location()
        )

    def conditioning_location(self) -> Location:
        """Where the VAE, text encoders and tokenizers are that `conditioning_source` names.

        A relative source is looked for beside the weights: "." is the very folder, or Hub repository and revision,
        that they came from.

        Raises:
            ValueError: if the config names no source, or a folder that is not there.
        """
        source, weights = self.config.conditioning_source, self.name_or_path or ""
        if source is None:
            raise ValueError("conditioning_source: expected a folder or Hub id, got None")
        is_relative, is_local = is_relative_source(source), os.path.isdir(weights)
        folder = os.path.normpath(os.path.join(weights, source))
        if (is_local or os.path.isabs(source)) and os.path.isdir(folder):
            return Location(folder)
        if os.path.isabs(source) or (is_relative and (is_local or not weights)):
            raise ValueError(
                f"conditioning_source: expected a folder that exists, got {source!r} of a model from {weights!r}"
            )
        if is_relative:
            subfolder = os.path.normpath(os.path.join(self.weights_subfolder, source))
            return Location(weights, self.weights_revision, "" if subfolder == "." else subfolder)
        revision = self.config.base_revision if source == self.config.base_model else None
        return Location(source, self.config.conditioning_revision or revision, self.config.conditioning_subfolder)

    def _upload_modified_files(self, working_dir, *args, **kwargs):
        # push_to_hub has put an empty form in place of the card.
        _carry_card(self.name_or_path, working_dir, replace=True)
        warn_of_local_sources(working_dir)
        return super()._upload_modified_files(working_dir, *args, **kwargs)


class DinaRewardModel(DinaPreTrainedModel):
    """A reward on noisy latents, with the variance of its Thurstone likelihood.

    `noise_path` is the path from clean to noisy latents that the backbone was trained on.

    ```python
    >>> model = DinaRewardModel.from_pretrained("path/or/hub-id")
    >>> model.reward(latents, prompt_embeds, pooled_prompt_embeds, sigmas=[0.2, 0.5, 0.7], num_draws=4).scores
    ```
    """

    def __init__(self, config: DinaConfig):
        config.validate()  # also what has changed inside a list or dictionary of it
        super().__init__(config)
        self.backbone = build_backbone(config)
        self.head = RewardHead(config, self.backbone.token_width(config))
        self.noise_path: NoisePath = path_from_scheduler(config.scheduler_config)
        if config.adapter_only:
            # The base's weights are not in the checkpoint and are filled in, exactly, after loading.
            self._keys_to_ignore_on_load_missing = [r"^backbone\.(?!.*\.lora_)"]
        self.post_init()

    @classmethod
    def from_backbone(
        cls, source: str | Path, *, revision: str | None = None, dtype: torch.dtype = torch.float32, **options
    ) -> "DinaRewardModel":
        """Start from a pretrained diffusion transformer: its first blocks with their weights, and a fresh head.

        Args:
            source: a diffusers pipeline, as a folder or Hub id, with `transformer/` and `scheduler/`.
            revision: of a Hub id.
            dtype: of the backbone; the head is float32.
            options: fields of `DinaConfig`, of which those of transformer, scheduler, base and conditioning are read
                from `source` unless given; and options of the Hub's loaders, such as `cache_dir`, `token` or
                `local_files_only`.

        Raises:
            TypeError: for a keyword that is no field of the config.
            ValueError: if the transformer's weights are incomplete.
        """
        hub = {name: options.pop(name) for name in HUB_OPTIONS if name in options}
        _check_fields(options)
        source = absolute_source(source)
        model = cls(_config_on(source, revision, options, hub))
        model.hub_options = hub
        weights = read_transformer_weights(model.config.backbone_type, source, revision, dtype, **hub)
        load_base_weights(model.backbone, weights, origin=source)
        model.backbone.to(dtype)
        return model

    @classmethod
    def from_official(
        cls,
        checkpoint_dir: str | Path,
        backbone: str | Path | None = None,
        *,
        revision: str | None = None,
        keep_adapter: bool = False,
        **hub,
    ) -> "DinaRewardModel":
        """Read the published layout; `save_pretrained` then writes this package's own.

        ```python
        >>> model = DinaRewardModel.from_official("official/", "stabilityai/stable-diffusion-3.5-medium")
        >>> model.save_pretrained("converted/")
        ```

        Args:
            checkpoint_dir: folder with the layout's `config.json` and `checkpoint/`.
            backbone: the diffusion model it was trained on: a diffusers folder or Hub id, by default the id that the
                layout names. With a `full_model.pt` only its configurations are read.
            revision: of a Hub id.
            keep_adapter: leave LoRA layers as they are (and able to be saved `adapter_only`) instead of merging them.
            hub: options of the Hub's loaders, such as `cache_dir`, `token` or `local_files_only`.

        Returns:
            The model in evaluation mode, in float32.

        Raises:
            FileNotFoundError, ValueError: naming the file, setting or tensors that are missing or do not fit.
        """
        official = read_official(checkpoint_dir)
        source = absolute_source(backbone or official.base_model)
        model = cls(_config_on(source, revision, official.config, hub))
        model.hub_options = hub
        base = official.backbone or read_transformer_weights(model.config.backbone_type, source, revision, **hub)
        load_base_weights(model.backbone, base, origin="full_model.pt" if official.backbone else source)
        _load_exactly(model.head, official.head, origin="head")
        adapted = {key for key in model.backbone.state_dict() if is_adapter_key(key)}
        _load_exactly(model.backbone, official.adapter, origin="LoRA adapter", expected=adapted)
        if not keep_adapter:
            model.merge_adapter()
        return model.eval()

    def merge_adapter(self) -> None:
        """Fold the LoRA layers, if there are any, into the backbone's weights, in place."""
        if self.config.lora is not None:
            merge_lora(self.backbone)
            self.config.lora = None

    @property
    def compute_dtype(self) -> torch.dtype:
        """The floating dtype that the backbone computes in. `dtype` is that of a stored weight, which may allow no
        arithmetic where the weights are quantised or cast."""
        return compute_dtype(self.backbone)

    @property
    def execution_device(self) -> torch.device:
        """The device that the model computes on and inputs belong on. `device` is where weights are stored, which for
        an offloaded model is the meta device."""
        for module in self.modules():
            device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
            if device is not None:
                return torch.device(device)
        return self.device

    def forward(
        self,
        noisy_latents: torch.Tensor,
        sigma: float | torch.Tensor,
        prompt_embeds: torch.Tensor,
        pooled_prompt_embeds: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> DinaRewardOutput | tuple:
        """The reward at one state of the path. A sampler's own noisy latents go straight in.

        Args:
            noisy_latents: [B, C, H, W].
            sigma: their noise level in [0, 1], one number or [B]; taken as it is, not snapped to the scheduler.
            prompt_embeds: [B, L, D].
            pooled_prompt_embeds: [B, P].

        Raises:
            ValueError: naming an argument of a wrong shape or range, what came and what was expected.
        """
        self._check_inputs("noisy_latents", noisy_latents, prompt_embeds, pooled_prompt_embeds)
        batch, device = noisy_latents.shape[0], noisy_latents.device
        sigma = torch.as_tensor(sigma, dtype=torch.float32, device=device)
        if sigma.shape not in ((), (batch,)):
            raise ValueError(f"sigma: expected one number or [{batch}], got {list(sigma.shape)}")
        _check_range("sigma", sigma)
        sigma = sigma.expand(batch)
        raw = self.head([self._features(noisy_latents, sigma, prompt_embeds, pooled_prompt_embeds)])
        output = DinaRewardOutput(scores=self._calibrate(raw), variance=self.variance(sigma))
        return output if return_dict else output.to_tuple()

    def reward(
        self,
        latents: torch.Tensor,
        prompt_embeds: torch.Tensor,
        pooled_prompt_embeds: torch.Tensor | None = None,
        *,
        sigmas: Sequence[float] | torch.Tensor | None = None,
        num_draws: int | None = None,
        mode: str | None = None,
        seed: int | Sequence[int] = 0,
        noise: torch.Tensor | None = None,
        with_levels: bool = False,
    ) -> DinaEnsembleOutput:
        """The noise-ensembled reward of clean latents, differentiable in them.

        Noise depends on (seed, draw) alone and is shared by the batch and by all levels, so that a score does not
        depend on what else is in the batch and common noise cancels in differences.

        Args:
            latents: [B, C, H, W], clean, in model space (VAE output shifted and scaled).
            prompt_embeds: [B, L, D].
            pooled_prompt_embeds: [B, P].
            sigmas: K noise levels in [0, 1], each taken to the scheduler's nearest; `default_sigmas` if None. A tensor
                [K, B] gives each sample levels of its own.
            num_draws: N noise draws at each level; `default_num_draws` if None.
            mode: "features" (the head reads the tokens of all levels at once), "mean" of the levels' rewards, or
                "precision" (a mean weighted by 1 / variance); `ensemble_mode` if None.
            seed: of the noise, at least 0: one for all, or one a sample (B of them).
            noise: the noise itself, [N, B or 1, C, H, W], or [B or 1, C, H, W] for one draw, in place of a seed.
            with_levels: return `level_samples` in mode "features" too, for one more head pass a level and draw.

        Raises:
            ValueError: naming an argument of a wrong shape or range, what came and what was expected.
        """
        features = self.features(
            latents, prompt_embeds, pooled_prompt_embeds, sigmas=sigmas, num_draws=num_draws, seed=seed, noise=noise
        )
        return self.combine(features, mode, with_levels=with_levels)

    def features(
        self,
        latents: torch.Tensor,
        prompt_embeds: torch.Tensor,
        pooled_prompt_embeds: torch.Tensor | None = None,
        *,
        sigmas: Sequence[float] | torch.Tensor | None = None,
        num_draws: int | None = None,
        seed: int | Sequence[int] = 0,
        noise: torch.Tensor | None = None,
    ) -> EnsembleFeatures:
        """The backbone's half of `reward`, with the same arguments: features at every noise level and draw. Those of a
        draw are computed when `draws` comes to it, so that only one draw's need to be in memory."""
        self._check_inputs("latents", latents, prompt_embeds, pooled_prompt_embeds)
        noise = self._noise_for(latents, num_draws, seed, noise)
        levels = self._levels(sigmas, len(latents)).to(latents.device)
        per_sample = levels if levels.ndim == 2 else levels[:, None].expand(-1, len(latents))

        def at(sigma: torch.Tensor, draw: torch.Tensor) -> Features:
            noisy_latents = self.noise_path.add_noise(latents, draw, sigma)
            return self._features(noisy_latents, sigma, prompt_embeds, pooled_prompt_embeds)

        return EnsembleFeatures(levels, ([at(sigma, draw) for sigma in per_sample] for draw in noise))

    def combine(
        self, features: EnsembleFeatures, mode: str | None = None, *, with_levels: bool = False
    ) -> DinaEnsembleOutput:
        """The head's half of `reward`: rewards from features at several noise levels and draws.

        Args:
            features: what `features` returned, or a part of it: fewer levels, or fewer draws.
            mode, with_levels: as in `reward`.
        """
        mode = self.config.ensemble_mode if mode is None else mode
        if mode not in ENSEMBLE_MODES:
            raise ValueError(f"mode: expected one of {ENSEMBLE_MODES}, got {mode!r}")
        is_joint = mode == "features"
        joint, single = [], []
        for draw in features.draws:
            if is_joint:
                joint.append(self.head(draw))
            if with_levels or not is_joint:
                single.append(torch.stack([self.head([level]) for level in draw]))
        level_samples = self._calibrate(torch.stack(single, dim=1)) if single else None
        samples: Any = self._calibrate(torch.stack(joint))[None] if is_joint else level_samples

        level_variance = self.variance(features.sigmas)
        variance = level_variance.mean(dim=0, keepdim=True) if is_joint else level_variance
        weights = precision_weights(variance) if mode == "precision" else torch.full_like(variance, 1 / len(variance))
        scores = (weights.reshape(len(weights), -1) * samples.mean(dim=1)).sum(dim=0)
        return DinaEnsembleOutput(
            scores=scores,
            samples=samples,
            sigmas=features.sigmas,
            variance=variance,
            weights=weights,
            level_samples=level_samples,
            level_variance=level_variance,
        )

    def variance(self, sigma: torch.Tensor) -> torch.Tensor:
        """The likelihood's variance of one reward at noise level `sigma` (any shape), in squared units of the scores.

        Calibration: `temperature` multiplies the standard deviation; a `score_std` that divides the scores divides it
        too, so that win probabilities do not depend on the unit of the scores.
        """
        config = self.config
        variance = noise_variance(sigma, config.variance_slope, config.variance_floor)
        return variance * (config.temperature / config.score_std) ** 2

    def scorer(self, pipeline=None, **options):
        """A `DinaScorer` of this model, which takes prompts and images.

        Args:
            pipeline: the diffusers pipeline that encodes them; loaded from `conditioning_location()` if None.
            options: further arguments of `DinaScorer`.
        """
        # The scorer stands above the model and is met here only when called, so no import goes round in a circle; a
        # relative import inside a method is still seen by the copier of remote code.
        from .scoring_dina import DinaScorer

        return DinaScorer(self, load_pipeline(self) if pipeline is None else pipeline, **options)

    def _features(self, noisy_latents, sigma, prompt_embeds, pooled_prompt_embeds):
        timestep = self.noise_path.timestep(sigma)
        return self.backbone(noisy_latents, timestep, prompt_embeds, pooled_prompt_embeds)

    def _calibrate(self, raw: torch.Tensor) -> torch.Tensor:
        return (raw - self.config.score_mean) / self.config.score_std

    def _levels(self, sigmas, batch: int) -> torch.Tensor:
        sigmas = self.config.default_sigmas if sigmas is None else sigmas
        try:
            sigmas = torch.as_tensor(sigmas, dtype=torch.float32, device="cpu")
        except (TypeError, ValueError) as error:
            raise ValueError(f"sigmas: expected a list of noise levels, got {sigmas!r}") from error
        if not sigmas.numel() or sigmas.ndim not in (1, 2):
            raise ValueError(f"sigmas: expected a list of noise levels, got {sigmas.tolist()}")
        if sigmas.ndim == 2 and sigmas.shape[1] != batch:
            raise ValueError(f"sigmas: expected [K, {batch}], levels of each sample, got {list(sigmas.shape)}")
        _check_range("sigmas", sigmas)
        return self.noise_path.snap(sigmas)

    def _noise_for(self, latents, num_draws, seed, noise) -> torch.Tensor:
        """The noise of every draw, [N, B or 1, C, H, W], on the latents' device."""
        batch, *shape = latents.shape
        if noise is not None:
            noise = noise if noise.ndim == 5 else noise.unsqueeze(0)
            draws = len(noise) if num_draws is None else num_draws
            if list(noise.shape) not in ([draws, 1, *shape], [draws, batch, *shape]):
                raise ValueError(f"noise: expected {[draws, batch, *shape]}, got {list(noise.shape)}")
            _check_finite("noise", noise)
            return noise.to(latents.device)
        draws = self.config.default_num_draws if num_draws is None else num_draws
        if draws < 1 or draws != int(draws):
            raise ValueError(f"num_draws: expected a whole number of at least 1, got {draws}")
        return _drawn_noise(shape, int(draws), check_seeds(seed, batch)).to(latents.device)

    def _check_inputs(self, name, latents, prompt_embeds, pooled_prompt_embeds) -> None:
        self.backbone.check_inputs(name, latents, prompt_embeds, pooled_prompt_embeds)
        _check_finite(name, latents)
        _check_finite("prompt_embeds", prompt_embeds)
        _check_finite("pooled_prompt_embeds", pooled_prompt_embeds)


def _config_on(source: str, revision: str | None, config: dict, hub: dict) -> DinaConfig:
    """A config whose transformer, scheduler and conditioning, where `config` does not give them, are those of a
    diffusers model."""
    backbone_type = config.get("backbone_type", DinaConfig.backbone_type)
    transformer_config, commit = read_transformer_config(backbone_type, source, revision, **hub)
    read = {
        "transformer_config": transformer_config,
        "base_model": source,
        "base_revision": commit or revision,
        "conditioning_source": source,
        "conditioning": read_conditioning(source, revision, **hub),
    }
    if "scheduler_config" not in config:
        read["scheduler_config"] = FlowMatchEulerDiscreteScheduler.load_config(
            source, revision=revision, subfolder="scheduler", **hub
        )
    given = dict(config)
    for name in ("base_model", "conditioning_source"):
        if given.get(name) is not None and not is_relative_source(given[name]):
            given[name] = absolute_source(given[name])
    return DinaConfig(**{**read, **given})


def _carry_card(origin: str | None, directory: str | Path, *, replace: bool = False) -> None:
    """Copy a folder's `README.md`, and the pictures it shows, to another folder with the very same model in it.

    Args:
        origin: where the model came from; nothing is copied unless that is a folder.
        directory: where it has been saved.
        replace: the card that is there already.
    """
    source, target = Path(origin or os.devnull), Path(directory)
    card = source / "README.md"
    if not card.is_file() or ((target / card.name).exists() and not replace):
        return
    model = {"config.json"} | {path.name for place in (source, target) for path in place.glob("*.safetensors")}
    if set(filecmp.cmpfiles(source, target, model, shallow=False)[0]) != model:
        return
    shown = re.findall(r"!\[[^]]*\]\(([\w.-]+)\)", card.read_text("utf-8"))
    for name in {card.name, *shown}:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


# A random generator is no part of a graph: under torch.compile, noise from a seed is drawn between two graphs.
_drawn_noise = torch.compiler.disable(shared_noise)


def _check_fields(config: dict) -> None:
    unknown = sorted(set(config) - {each.name for each in dataclasses.fields(DinaConfig)})
    if unknown:
        raise TypeError(f"expected fields of DinaConfig, got {unknown}")


def _load_exactly(module: nn.Module, weights: dict, origin: str, expected: set[str] | None = None) -> None:
    """Load weights that must be all those `expected` (the module's whole state by default), and no others."""
    own = module.state_dict()
    expected = set(own) if expected is None else expected
    _refuse_inexact(
        {
            "missing_keys": expected - set(weights),
            "unexpected_keys": set(weights) - expected,
            "mismatched_keys": {
                (key, weights[key].shape, own[key].shape)
                for key in expected & set(weights)
                if weights[key].shape != own[key].shape
            },
        },
        origin,
    )
    module.load_state_dict(weights, strict=False)


def _refuse_inexact(info: dict, origin: str) -> None:
    """Raise a ValueError that names every tensor of a loading report that is not as it must be."""
    problems = [f"missing: {key}" for key in sorted(info["missing_keys"])]
    problems += [f"unexpected: {key}" for key in sorted(info["unexpected_keys"])]
    problems += [
        f"wrong shape: {key}, expected {list(expected)}, got {list(got)}"
        for key, got, expected in sorted(info["mismatched_keys"])
    ]
    if problems:
        raise ValueError(f"{origin}: the weights do not fit the model\n  " + "\n  ".join(problems))


def _check_finite(name: str, values: torch.Tensor) -> None:
    if not _unchecked(values) and not values.isfinite().all():
        raise ValueError(f"{name}: expected finite numbers, got {int((~values.isfinite()).sum())} NaN or infinite")


def _check_range(name: str, sigma: torch.Tensor) -> None:
    if not _unchecked(sigma) and not ((sigma >= 0) & (sigma <= 1)).all():
        raise ValueError(f"{name}: expected noise levels in [0, 1], got {sigma.tolist()}")


def _unchecked(values: torch.Tensor) -> bool:
    """Whether values cannot be read: on the meta device, or while a graph is traced, which may not depend on them."""
    return values.is_meta or torch.compiler.is_compiling()


DinaConfig.register_for_auto_class()
DinaRewardModel.register_for_auto_class("AutoModel")

__all__ = ["DinaEnsembleOutput", "DinaPreTrainedModel", "DinaRewardModel", "DinaRewardOutput", "EnsembleFeatures"]
