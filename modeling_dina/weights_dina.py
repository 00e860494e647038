"""Weights of a pretrained diffusion transformer, read one tensor at a time, so that loading a model takes hardly more
memory than the model itself."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from diffusers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.utils import cached_file
from transformers.utils.hub import extract_commit_hash


class TransformerWeights(Mapping[str, torch.Tensor]):
    """The state dict of the transformer in a diffusers folder or Hub repository, in one safetensors file or several.

    Each access reads one tensor, and no tensor is stored. A file on the Hub is downloaded at the first access to one
    of its tensors.

    Args:
        source: a diffusers folder with a folder `component`, the folder of a transformer itself, or a Hub id.
        component: name of the transformer's folder.
        revision: branch, tag or commit on the Hub.
        hub: options of the Hub's loaders, such as `cache_dir` or `token`.

    Raises:
        OSError: there are no safetensors, or the Hub cannot be reached.
        ValueError: a file is not what its name says.
    """

    def __init__(self, source: str, revision: str | None = None, *, component: str = "transformer", **hub):
        is_bare = os.path.isdir(source) and not os.path.isdir(os.path.join(source, component))
        self._source = source
        self._where = {**hub, "revision": revision, "subfolder": "" if is_bare else component}
        self._paths: dict[str, str] = {}
        index = cached_file(
            source, SAFE_WEIGHTS_INDEX_NAME, _raise_exceptions_for_missing_entries=False, **self._where
        )
        if index is not None:
            self._where["revision"] = extract_commit_hash(index, None) or revision
            self._files = _read_index(index)
        else:
            with self._open(SAFETENSORS_WEIGHTS_NAME) as file:
                self._files = dict.fromkeys(file.keys(), SAFETENSORS_WEIGHTS_NAME)

    def __getitem__(self, name: str) -> torch.Tensor:
        # The file is opened for each tensor, because the memory map of an open one grows with every tensor read.
        with self._open(self._files[name]) as file:
            try:
                return file.get_tensor(name)
            except SafetensorError as error:
                raise KeyError(name) from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    @contextmanager
    def _open(self, filename: str) -> Iterator[safe_open]:
        if filename not in self._paths:
            self._paths[filename] = str(cached_file(self._source, filename, **self._where))
        path = self._paths[filename]
        try:
            file = safe_open(path, framework="pt")
        except SafetensorError as error:
            raise ValueError(f"{path}: expected safetensors, got a file that cannot be read: {error}") from error
        with file:
            yield file


def _read_index(path: str) -> dict[str, str]:
    """The file of each tensor."""
    try:
        with open(path, encoding="utf-8") as file:
            return dict(json.load(file)["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: expected the files of all tensors under 'weight_map', got {error!r}") from error


def allocate(module: nn.Module, dtype: torch.dtype) -> None:
    """Replace all tensors of a module that are on the meta device by uninitialised ones on the CPU; those with
    floating-point numbers are of type `dtype`.

    Raises:
        RuntimeError: a buffer that no state dict contains is on the meta device, so that its values are lost.
    """
    saved = set(module.state_dict(keep_vars=True))
    for prefix, part in module.named_modules():
        for name, tensor in [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]:
            if not tensor.is_meta:
                continue
            full_name = f"{prefix}.{name}" if prefix else name
            if full_name not in saved:
                raise RuntimeError(f"expected a persistent buffer or one with values, got {full_name} without them")
            own_dtype = dtype if tensor.is_floating_point() else tensor.dtype
            real = torch.empty(tensor.shape, dtype=own_dtype, device="cpu")
            is_parameter = isinstance(tensor, nn.Parameter)
            setattr(part, name, nn.Parameter(real, requires_grad=tensor.requires_grad) if is_parameter else real)


__all__ = ["TransformerWeights", "allocate"]
