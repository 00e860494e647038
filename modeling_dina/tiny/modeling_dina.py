"""DiNa latent reward model (arXiv 2602.11146): noise is added to a clean latent, the first blocks of a diffusion
transformer process the noisy latent with its prompt, and a head maps their features to a reward with a known
variance."""

import dataclasses
import filecmp
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from huggingface_hub.errors import GatedRepoError
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput, cached_file
from transformers.utils.hub import extract_commit_hash

from .backbone_base_dina import Features, compute_dtype
from .backbone_dina import (
    BACKBONES,
    allocate_backbone,
    backbone_class,
    build_backbone,
    freeze_base,
    is_adapter_key,
    load_base_weights,
    merge_lora,
    read_backbone_type,
    read_transformer_config,
    share_base_weights,
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
from .official_dina import describe_adapter, is_official, read_official
from .pipelines_dina import EncodedPrompts
from .reward_head_dina import RewardHead
from .thurstone_dina import noise_variance, precision_weights
from .weights_dina import TransformerWeights, allocate


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
        Rewards at each of K noise levels with each of N noise draws; K is 1 in mode "features", where the head
        processes all levels together.
    sigmas (`torch.FloatTensor` of shape `(number of levels,)`):
        The noise levels used: the scheduler's levels nearest to the requested ones.
    variance (`torch.FloatTensor` of shape `(K,)`):
        The likelihood's variance of one sample, in squared units of `scores`; in mode "features" the mean of the
        levels' variances.
    weights (`torch.FloatTensor` of shape `(K,)`):
        The weight of each sample's level in `scores`; they sum to one.
    level_samples (`torch.FloatTensor` of shape `(number of levels, N, batch_size)`, *optional*):
        Rewards at each single noise level. They equal `samples`, except in mode "features", where they are returned
        only with `with_levels=True`.
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
    """The backbone's features of an ensemble, which the head combines.

    Attributes:
        sigmas: [K] noise levels, or [K, B] if each sample has its own.
        draws: for each noise draw, the features at each of the K levels. It may be an iterator, which computes one
            draw at a time and can be used once; `list(draws)` stores all of them.
    """

    sigmas: torch.Tensor
    draws: Iterable[list[Features]]


class DinaPreTrainedModel(PreTrainedModel):
    """Base class of DiNa models: loading, saving and class attributes."""

    config_class = DinaConfig
    main_input_name = "noisy_latents"
    supports_gradient_checkpointing = True
    _no_split_modules = [  # noqa: RUF012
        *dict.fromkeys(
            block for backbone in BACKBONES.values() for block in backbone.transformer_class._no_split_modules
        ),
        "RewardHead",
    ]
    # The head stays in float32, because half precision would round small differences between scores. Quantisers use
    # the first list.
    _keep_in_fp32_modules = ["head"]  # noqa: RUF012
    _keep_in_fp32_modules_strict = ["head"]  # noqa: RUF012
    _supports_sdpa = True

    # Commit and folder in the repository of weights that were loaded from the Hub.
    weights_revision: str | None = None
    weights_subfolder: str = ""
    # Location of base weights that were not in the checkpoint.
    base_location: Location | None = None
    # Hub options with which the weights were loaded; the pipeline is loaded with the same ones.
    hub_options: dict[str, Any] = {}  # noqa: RUF012

    def _init_weights(self, module):
        """Do nothing: modules initialise themselves when built, and `from_pretrained` refuses incomplete weights."""

    def get_input_embeddings(self):
        """Return None, because prompts are passed as embeddings. Quantisers call this to skip input embeddings."""

    def _check_and_adjust_attn_implementation(self, attn_implementation, *args, **kwargs):
        """Only torch's `scaled_dot_product_attention` is supported by the backbone and the head."""
        if attn_implementation not in (None, "sdpa"):
            raise ValueError(f"attn_implementation: expected 'sdpa', got {attn_implementation!r}")
        return super()._check_and_adjust_attn_implementation(attn_implementation, *args, **kwargs)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path,
        *model_args,
        backbone=None,
        backbone_revision=None,
        output_loading_info=False,
        **kwargs,
    ):
        """Load a merged or an adapter-only checkpoint like `PreTrainedModel.from_pretrained`, but require all weights.

        The other weights of an adapter-only checkpoint come from `config.base_model` at `config.base_revision`. The
        model stores its source and the Hub options (`cache_dir`, `token`, `local_files_only` and so on), with which
        `scorer` loads the pipeline.

        Args:
            backbone: a diffusers folder or Hub id, which replaces `config.base_model`, also as the source of the
                pipeline.
            backbone_revision: branch, tag or commit of this backbone on the Hub.

        Raises:
            ValueError: tensors are missing, unexpected or of another shape; the message lists them. Weights are never
                left random.
        """
        kwargs["ignore_mismatched_sizes"] = True  # mismatches are collected, and reported by name below
        source = absolute_source(pretrained_model_name_or_path)
        loaded: Any = super().from_pretrained(source, *model_args, output_loading_info=True, **kwargs)
        model, info = loaded
        _refuse_inexact(info, origin=source)
        model.hub_options = {name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}
        config = model.config
        if backbone is not None:
            _replace_base(config, absolute_source(backbone), backbone_revision)
        if config.adapter_only:
            if kwargs.get("quantization_config") is not None:
                raise ValueError(
                    "quantization_config: expected none for an adapter-only checkpoint, whose base would not be "
                    "quantised; save the loaded model without adapter_only and quantise the saved one"
                )
            model.base_location = Location(config.base_model, config.base_revision)
            with _names_backbone(config.base_model):
                component = model.backbone.component
                base = TransformerWeights(
                    config.base_model, config.base_revision, component=component, **model.hub_options
                )
                load_base_weights(model.backbone, base, origin=config.base_model)
            config.adapter_only = False
        if config.lora is not None:
            freeze_base(model.backbone)  # because loading makes every parameter trainable
        subfolder = kwargs.get("subfolder") or ""
        if os.path.isdir(source):
            model.name_or_path = os.path.normpath(os.path.join(source, subfolder))
        else:
            where = {name: kwargs[name] for name in ("revision", "subfolder") if name in kwargs}
            # A forced download has already taken place above.
            where |= {name: value for name, value in model.hub_options.items() if name != "force_download"}
            model.weights_revision = extract_commit_hash(cached_file(source, "config.json", **where), None)
            model.weights_subfolder = subfolder
        return (model, info) if output_loading_info else model

    def save_pretrained(self, save_directory, *args, adapter_only: bool = False, **kwargs):
        """Write weights, config and code, so that `AutoModel.from_pretrained(folder, trust_remote_code=True)` can load
        the folder without this package.

        The model card of the folder that the model was loaded from is copied if the weights and config have not
        changed since.

        Args:
            adapter_only: write only the LoRA and the head; loading takes the other weights from `config.base_model`.

        Raises:
            ValueError: `adapter_only` is set for a model without a LoRA adapter or without `config.base_model`.
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
        """Make a relative `conditioning_source` valid for `save_directory`."""
        source = self.config.conditioning_source
        if not is_relative_source(source) or not self.name_or_path:
            return
        if os.path.isfile(os.path.join(save_directory, source, "model_index.json")):
            return
        try:
            location = self.conditioning_location()
        except ValueError:
            return  # a source that is missing already must not keep the weights from being saved
        if os.path.isdir(location.source) and not os.path.isfile(os.path.join(location.source, "model_index.json")):
            return  # weights that their pipeline has yet to be put beside, such as a checkpoint's
        config = self.config
        config.conditioning_source, config.conditioning_revision, config.conditioning_subfolder = location

    def conditioning_location(self) -> Location:
        """Resolve `conditioning_source` to the location of the VAE, text encoders and tokenizers.

        A relative source is relative to the weights: "." is the folder, or the Hub repository and revision, that they
        were loaded from.

        Raises:
            ValueError: the config has no source, or its folder does not exist.
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
        # push_to_hub has replaced the card by an empty template.
        _carry_card(self.name_or_path, working_dir, replace=True)
        warn_of_local_sources(working_dir)
        return super()._upload_modified_files(working_dir, *args, **kwargs)


class DinaRewardModel(DinaPreTrainedModel):
    """A reward on noisy latents, with the variance of its Thurstone likelihood.

    `noise_path` adds noise to clean latents as in the training of the backbone.

    ```python
    >>> model = DinaRewardModel.from_pretrained("path/or/hub-id")
    >>> model.reward(latents, prompt_embeds, pooled_prompt_embeds, sigmas=[0.2, 0.5, 0.7], num_draws=4).scores
    ```
    """

    def __init__(self, config: DinaConfig):
        config.validate()  # again, because lists and dictionaries in it may have been changed in place
        super().__init__(config)
        self.backbone = build_backbone(config)
        self.head = _new_head(config)
        self.noise_path: NoisePath = path_from_scheduler(config.scheduler_config)
        if config.adapter_only:
            # The base weights are not in the checkpoint; from_pretrained loads them afterwards.
            self._keys_to_ignore_on_load_missing = [r"^backbone\.(?!.*\.lora_)"]
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        """Load a checkpoint in the layout of this package, or in the published one, which its `config.json` shows.

        The arguments are those of `DinaPreTrainedModel.from_pretrained`, or of `from_official`.
        """
        if kwargs.get("config") is None:  # AutoModel gives the config that it has read
            where = {name: kwargs[name] for name in ("revision", "subfolder", *HUB_OPTIONS) if name in kwargs}
            if is_official(absolute_source(pretrained_model_name_or_path), **where):
                kwargs.pop("trust_remote_code", None)  # there is no code in this layout
                return cls.from_official(pretrained_model_name_or_path, **kwargs)
        return super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)

    @classmethod
    def from_backbone(
        cls, source: str | Path, *, revision: str | None = None, dtype: torch.dtype = torch.float32, **options
    ) -> "DinaRewardModel":
        """Create a model from the first blocks of a pretrained diffusion transformer, with a randomly initialised
        head. Only the weights of these blocks are read.

        Args:
            source: a diffusers pipeline, as a folder or Hub id, with `transformer/` or `unet/`, and `scheduler/`.
            revision: branch, tag or commit on the Hub.
            dtype: dtype of the pretrained weights; a LoRA and the head are float32.
            options: fields of `DinaConfig`, where those of transformer, scheduler, base and conditioning default to
                those of `source`, and layers and the length of text to those of its family; and options of the Hub's
                loaders, such as `cache_dir`, `token` or `local_files_only`.

        Raises:
            TypeError: an option is not a field of the config.
            ValueError: the transformer's weights are incomplete.
        """
        hub = {name: options.pop(name) for name in HUB_OPTIONS if name in options}
        _check_fields(options)
        source = absolute_source(source)
        model = cls._allocated(_config_on(source, revision, options, hub), dtype)
        model.head = _new_head(model.config)
        model._read_base(source, revision, hub)
        return model

    @classmethod
    def from_official(
        cls,
        checkpoint: str | Path,
        backbone: str | Path | None = None,
        *,
        revision: str | None = None,
        subfolder: str = "",
        backbone_revision: str | None = None,
        dtype: torch.dtype | str | None = None,
        keep_adapter: bool = False,
        **options,
    ) -> "DinaRewardModel":
        """Load a checkpoint in the published layout; `save_pretrained` then writes it in the layout of this package.

        ```python
        >>> model = DinaRewardModel.from_official("official/", "stabilityai/stable-diffusion-3.5-medium")
        >>> model.save_pretrained("converted/")
        ```

        Args:
            checkpoint: a folder with `config.json` and `checkpoint/`, or a Hub id.
            backbone: the diffusion model of the checkpoint: a diffusers folder or Hub id; None uses the id in the
                checkpoint's config. If there is a `full_model.pt`, only its configurations are used.
            revision, subfolder: branch, tag or commit of a checkpoint on the Hub, and its folder in `checkpoint`.
            backbone_revision: branch, tag or commit of a backbone on the Hub.
            dtype: dtype of the backbone; the head is float32. None and "auto" use float32.
            keep_adapter: keep LoRA layers, which allows saving with `adapter_only`, instead of merging them.
            options: fields of `DinaConfig`, which replace those of the checkpoint; and options of the Hub's loaders,
                such as `cache_dir`, `token` or `local_files_only`.

        Returns:
            The model in evaluation mode.

        Raises:
            OSError, ValueError: a file, setting or tensor is missing or does not fit; the message names it.
        """
        hub = {name: options.pop(name) for name in HUB_OPTIONS if name in options}
        if unknown := sorted(set(options) - _FIELDS):
            raise ValueError(
                f"{', '.join(unknown)}: expected no such argument for a checkpoint in the published layout; save the "
                "loaded model, and use it with the saved one"
            )
        official = read_official(absolute_source(checkpoint), revision, subfolder, **hub)
        source = absolute_source(backbone or official.base_model)
        with _names_backbone(source):
            family = options.get("backbone_type") or read_backbone_type(source, backbone_revision, **hub)
            known = {"backbone_type": family, **backbone_class(family).official_fields, **official.config}
            config = _config_on(source, backbone_revision, {**known, **options}, hub)
        if official.lora is not None:
            with torch.device("meta"):
                modules = [name for name, _ in build_backbone(config).named_modules()]
            config.lora = describe_adapter(official.lora, official.adapter, modules)
        model = cls._allocated(config, _dtype_named(dtype))
        model.name_or_path, model.weights_revision, model.weights_subfolder = official.location
        _load_exactly(model.head, official.head, origin="head")
        adapted = {key for key in model.backbone.state_dict() if is_adapter_key(key)}
        _load_exactly(model.backbone, official.adapter, origin="LoRA adapter", expected=adapted)
        for copied in (official.head, official.adapter):
            copied.clear()  # frees memory for the backbone
        if official.backbone:
            model.hub_options = hub
            load_base_weights(model.backbone, official.backbone, origin="full_model.pt")
        else:
            with _names_backbone(source):
                model._read_base(source, backbone_revision, hub)
        if not keep_adapter:
            model.merge_adapter()
        return model.eval()

    @classmethod
    def _allocated(cls, config: DinaConfig, dtype: torch.dtype) -> "DinaRewardModel":
        """A model whose weights have memory but no values, except that a LoRA is initialised to have no effect."""
        with torch.device("meta"):
            model = cls(config)
        allocate_backbone(model.backbone, dtype)
        allocate(model.head, torch.float32)
        return model

    def _read_base(self, source: str, revision: str | None, hub: dict[str, Any]) -> None:
        """Read the backbone's weights from a diffusers folder or Hub repository."""
        revision = self.config.base_revision or revision
        self.hub_options, self.base_location = hub, Location(source, revision)
        weights = TransformerWeights(source, revision, component=self.backbone.component, **hub)
        load_base_weights(self.backbone, weights, origin=source)

    def merge_adapter(self) -> None:
        """Merge the LoRA layers, if there are any, into the backbone's weights, in place."""
        if self.config.lora is not None:
            merge_lora(self.backbone)
            self.config.lora = None

    def sharing(self, pipe) -> "DinaRewardModel":
        """Let this model read the base weights of a generator instead of its own copy of them, in place, and move its
        other weights, such as those of the LoRA and the head, to the generator's device.

        Every base weight that equals the generator's is shared and frozen; scores do not change. The generator's
        modules, adapters and hooks stay as they are, so that both may run in several threads. Sharing ends when either
        model is moved or converted. Operations that change the generator's base weights in place, such as its full
        training, change the reward too.

        ```python
        >>> model = DinaRewardModel.from_pretrained("path/or/hub-id", dtype=pipe.dtype).sharing(pipe)
        ```

        Args:
            pipe: a diffusers pipeline of the reward's family and dtype, which is not offloaded. It may have LoRA
                adapters, but they must not be fused into its weights.

        Returns:
            This model.

        Raises:
            ValueError: the pipeline has no base weight that equals the reward's.
        """
        name = self.backbone.component
        transformer = getattr(pipe, name, None)
        if not isinstance(transformer, self.backbone.transformer_class):
            raise ValueError(
                f"pipe: expected a pipeline with a {self.backbone.transformer_class.__name__} under {name!r}, got "
                f"{type(transformer).__name__}"
            )
        if any(weight.is_meta for weight in (*transformer.parameters(), *self.parameters())):
            raise ValueError(
                "pipe: expected a generator and a reward with their weights in memory, got offloaded ones"
            )
        if not share_base_weights(self.backbone, transformer):
            raise ValueError(
                f"pipe: expected the generator that the reward is based on, in {self.compute_dtype}, got one in "
                f"{transformer.dtype} without any base weight of the reward's"
            )
        return self.to(transformer.device)

    @property
    def compute_dtype(self) -> torch.dtype:
        """The floating-point dtype that the backbone computes in. `dtype` is that of a stored weight, which may not
        allow arithmetic if weights are quantised or cast layer by layer."""
        return compute_dtype(self.backbone)

    @property
    def execution_device(self) -> torch.device:
        """The device that the model computes on and expects inputs on. `device` is the one that stores the weights,
        which is the meta device for an offloaded model."""
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
        prompt_embeds_mask: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> DinaRewardOutput | tuple:
        """Compute the reward of noisy latents, such as an intermediate state of a sampler.

        Args:
            noisy_latents: [B, C, H, W].
            sigma: noise level in [0, 1], one number or [B]; it is not rounded to the scheduler's levels.
            prompt_embeds: [B, L, D].
            pooled_prompt_embeds: [B, P], for families that have them.
            prompt_embeds_mask: bool [B, L], True for text and False for padding behind it, for families whose text
                has various lengths; None if there is no padding.

        Raises:
            ValueError: an argument has a wrong shape or range; the message names it.
        """
        conditioning = (prompt_embeds, pooled_prompt_embeds, prompt_embeds_mask)
        self._check_inputs("noisy_latents", noisy_latents, *conditioning)
        batch, device = noisy_latents.shape[0], noisy_latents.device
        sigma = torch.as_tensor(sigma, dtype=torch.float32, device=device)
        if sigma.shape not in ((), (batch,)):
            raise ValueError(f"sigma: expected one number or [{batch}], got {list(sigma.shape)}")
        _check_range("sigma", sigma)
        sigma = sigma.expand(batch)
        raw = self.head([self._features(noisy_latents, sigma, *conditioning)])
        output = DinaRewardOutput(scores=self._calibrate(raw), variance=self.variance(sigma))
        return output if return_dict else output.to_tuple()

    def reward(
        self,
        latents: torch.Tensor,
        prompt_embeds: torch.Tensor,
        pooled_prompt_embeds: torch.Tensor | None = None,
        prompt_embeds_mask: torch.Tensor | None = None,
        *,
        sigmas: Sequence[float] | torch.Tensor | None = None,
        num_draws: int | None = None,
        mode: str | None = None,
        seed: int | Sequence[int] = 0,
        noise: torch.Tensor | None = None,
        with_levels: bool = False,
        level_batching: bool = False,
    ) -> DinaEnsembleOutput:
        """Compute the noise-ensembled reward of clean latents, with gradients to the latents.

        Noise depends only on (seed, draw). All samples and levels share it, so that a score does not depend on the
        rest of the batch, and common noise cancels in differences.

        Args:
            latents: clean latents [B, C, H, W] in model space, that is the VAE's latents, shifted and scaled.
            prompt_embeds, pooled_prompt_embeds, prompt_embeds_mask: as in `forward`.
            sigmas: K noise levels in [0, 1], rounded to the scheduler's nearest; None uses `default_sigmas`. A tensor
                [K, B] has separate levels for each sample.
            num_draws: number N of noise draws at each level; None uses `default_num_draws`.
            mode: "features" (the head processes the tokens of all levels together), "mean" (of the levels' rewards) or
                "precision" (a mean weighted by 1 / variance); None uses `ensemble_mode`.
            seed: non-negative seed of the noise: one for all samples, or B seeds, one per sample.
            noise: noise to use in place of a seed, [N, B or 1, C, H, W], or [B or 1, C, H, W] for one draw.
            with_levels: also return `level_samples` in mode "features", which takes one more head pass per level and
                draw.
            level_batching: process the levels of a draw in one pass of the backbone instead of K. This is faster for
                few samples, takes the memory of K B samples, and changes scores by rounding only.

        Raises:
            ValueError: an argument has a wrong shape or range; the message names it.
        """
        conditioning = (prompt_embeds, pooled_prompt_embeds, prompt_embeds_mask)
        options: dict[str, Any] = {"sigmas": sigmas, "num_draws": num_draws, "seed": seed, "noise": noise}
        features = self.features(latents, *conditioning, **options, level_batching=level_batching)
        return self.combine(features, mode, with_levels=with_levels)

    def features(
        self,
        latents: torch.Tensor,
        prompt_embeds: torch.Tensor,
        pooled_prompt_embeds: torch.Tensor | None = None,
        prompt_embeds_mask: torch.Tensor | None = None,
        *,
        sigmas: Sequence[float] | torch.Tensor | None = None,
        num_draws: int | None = None,
        seed: int | Sequence[int] = 0,
        noise: torch.Tensor | None = None,
        level_batching: bool = False,
    ) -> EnsembleFeatures:
        """Compute the backbone's features at every noise level and draw; arguments are as in `reward`. Iterating over
        `draws` computes one draw at a time, so that only one has to be in memory."""
        conditioning = (prompt_embeds, pooled_prompt_embeds, prompt_embeds_mask)
        self._check_inputs("latents", latents, *conditioning)
        noise = self._noise_for(latents, num_draws, seed, noise)
        levels = self._levels(sigmas, len(latents)).to(latents.device)
        per_sample = levels if levels.ndim == 2 else levels[:, None].expand(-1, len(latents))

        def at(draw: torch.Tensor) -> list[Features]:
            noisy = (self.noise_path.add_noise(latents, draw, sigma) for sigma in per_sample)
            if not level_batching:
                return [self._features(*each, *conditioning) for each in zip(noisy, per_sample, strict=True)]
            together = EncodedPrompts(*conditioning).repeat(len(per_sample))
            return self._features(torch.cat(list(noisy)), per_sample.flatten(), *together).chunk(len(per_sample))

        return EnsembleFeatures(levels, map(at, noise))

    def combine(
        self, features: EnsembleFeatures, mode: str | None = None, *, with_levels: bool = False
    ) -> DinaEnsembleOutput:
        """Compute rewards from features at several noise levels and draws; the second step of `reward`.

        Args:
            features: the result of `features`, or a subset of its levels or draws.
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
        """The likelihood's variance of one reward at noise level `sigma` of any shape, in squared units of the scores.

        The standard deviation is multiplied by `temperature` and, like the scores, divided by `score_std`, so that win
        probabilities do not depend on the unit of the scores.
        """
        config = self.config
        variance = noise_variance(sigma, config.variance_slope, config.variance_floor)
        return variance * (config.temperature / config.score_std) ** 2

    def scorer(self, pipeline=None, **options):
        """Create a `DinaScorer` of this model, which scores prompts and images.

        Args:
            pipeline: diffusers pipeline that encodes prompts and images; None loads it from `conditioning_location()`.
            options: further arguments of `DinaScorer`.
        """
        # Imported here to avoid a circular import. transformers' copier of remote code also finds a relative import
        # inside a method.
        from .scoring_dina import DinaScorer

        return DinaScorer(self, load_pipeline(self) if pipeline is None else pipeline, **options)

    def _features(self, noisy_latents, sigma, *conditioning):
        return self.backbone(noisy_latents, self.noise_path.timestep(sigma), *conditioning)

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
        """Draw or check the noise, [N, B or 1, C, H, W] on the latents' device."""
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

    def _check_inputs(self, name, latents, prompt_embeds, pooled_prompt_embeds, prompt_embeds_mask) -> None:
        self.backbone.check_inputs(name, latents, prompt_embeds, pooled_prompt_embeds, prompt_embeds_mask)
        _check_finite(name, latents)
        _check_finite("prompt_embeds", prompt_embeds)
        if pooled_prompt_embeds is not None:
            _check_finite("pooled_prompt_embeds", pooled_prompt_embeds)


def _new_head(config) -> RewardHead:
    sizes = config.dimensions
    return RewardHead(config, sizes.token_width, sizes.conditioning_width, sizes.visual_widths, sizes.text_token_width)


def _config_on(source: str, revision: str | None, config: dict, hub: dict) -> DinaConfig:
    """Create a config with the transformer, scheduler and conditioning of a diffusers model, except for the fields in
    `config`."""
    backbone_type = config.get("backbone_type") or read_backbone_type(source, revision, **hub)
    transformer_config, commit = read_transformer_config(backbone_type, source, revision, **hub)
    read = {
        "backbone_type": backbone_type,
        "transformer_config": transformer_config,
        **backbone_class(backbone_type).default_fields(config.get("transformer_config", transformer_config)),
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


def _replace_base(config: DinaConfig, backbone: str, revision: str | None) -> None:
    """Replace the diffusion model that a config names, as the source of base weights and of the pipeline."""
    is_pipeline = config.base_model is not None and config.conditioning_source == config.base_model
    if not config.adapter_only and not is_pipeline:
        raise ValueError(
            "backbone: expected a checkpoint that takes weights or its pipeline from its base_model, got one with "
            f"base_model={config.base_model} and conditioning_source={config.conditioning_source}"
        )
    config.base_model, config.base_revision = backbone, revision
    if is_pipeline:
        config.conditioning_source, config.conditioning_revision, config.conditioning_subfolder = backbone, None, ""


@contextmanager
def _names_backbone(source: str) -> Iterator[None]:
    """Add the argument `backbone` to the errors of reading a checkpoint's diffusion model."""
    try:
        yield
    except OSError as error:
        # diffusers reports a gated repository as a missing one.
        reason = error.__context__ if isinstance(error.__context__, GatedRepoError) else error
        raise OSError(
            f"backbone: cannot read {source}, the diffusion model of the checkpoint; `backbone` may name another copy "
            f"of it: {reason}"
        ) from error


def _dtype_named(dtype: torch.dtype | str | None) -> torch.dtype:
    """A dtype as `from_pretrained` of transformers takes it; None and "auto" are float32."""
    if dtype in (None, "auto"):
        return torch.float32
    return getattr(torch, dtype) if isinstance(dtype, str) else dtype


def _carry_card(origin: str | None, directory: str | Path, *, replace: bool = False) -> None:
    """Copy a folder's `README.md`, and the images in it, to another folder if this contains the same model.

    Args:
        origin: source of the model; nothing is copied if it is not a folder.
        directory: folder in which the model has been saved.
        replace: whether to replace an existing card.
    """
    source, target = Path(origin or os.devnull), Path(directory)
    card = source / "README.md"
    if not card.is_file() or ((target / card.name).exists() and not replace):
        return
    model = {"config.json"} | {path.name for place in (source, target) for path in place.glob("*.safetensors")}
    if set(filecmp.cmpfiles(source, target, model, shallow=False)[0]) != model:
        return
    pictures = re.findall(r"!\[[^]]*\]\(([\w.-]+)\)", card.read_text("utf-8"))
    for name in {card.name, *pictures}:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


# torch.compile cannot trace a random generator, so noise is drawn outside the compiled graphs.
_drawn_noise = torch.compiler.disable(shared_noise)


_FIELDS = {each.name for each in dataclasses.fields(DinaConfig)}


def _check_fields(config: dict) -> None:
    if unknown := sorted(set(config) - _FIELDS):
        raise TypeError(f"expected fields of DinaConfig, got {unknown}")


def _load_exactly(module: nn.Module, weights: dict, origin: str, expected: set[str] | None = None) -> None:
    """Load weights whose names must be exactly `expected`, by default the module's whole state dict."""
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
    """Raise a ValueError that lists the missing, unexpected and mismatched tensors of a loading report."""
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
    """Whether values cannot be checked, because they are on the meta device or are being traced."""
    return values.is_meta or torch.compiler.is_compiling()


DinaConfig.register_for_auto_class()
DinaRewardModel.register_for_auto_class("AutoModel")

__all__ = ["DinaEnsembleOutput", "DinaPreTrainedModel", "DinaRewardModel", "DinaRewardOutput", "EnsembleFeatures"]
