"""Arguments from a YAML file and from flags, which override the file."""

import argparse
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser

# Patterns that rewrite the errors of argparse in the form of all other errors.
_REWORDED = (
    (r"^argument --([\w-]+)[^:]*", r"\1"),
    (r"invalid (\w+) value: (.*)", r"expected \1, got \2"),
    (r"invalid choice: (.*) \(choose from (.*)\)", r"expected one of \2, got \1"),
    (r"^the following arguments are required: (.*)", r"\1: expected a value, got none"),
    (r"/--[\w-]+", ""),  # the second spelling, with dashes
    (r"(^|, )--", r"\1"),
)


class _Parser(HfArgumentParser):
    """Raises a ValueError for what argparse would print before it exits."""

    def error(self, message: str) -> NoReturn:
        for pattern, words in _REWORDED:
            message = re.sub(pattern, words, message)
        raise ValueError(message)


class _Loader(yaml.SafeLoader):
    """Parses 1e-4 as a number, like JSON and Python; YAML 1.1 parses it as text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def load_config(path: Path, *dataclass_types: Any, **overrides: Any) -> tuple:
    """
    Create an instance of each dataclass.

    Args:
        path: YAML file that maps fields to values.
        dataclass_types: dataclasses to create.
        overrides: fields with values that override the file; None uses the field's default.

    Raises:
        ValueError: a field is unknown or has a wrong value, or the file is not a mapping.
    """
    return _instances(_Parser(dataclass_types, allow_abbrev=False), _as_flags({**read_config(path), **overrides}))


def parse(*dataclass_types: Any, argv: Sequence[str] | None = None) -> tuple:
    """
    Like `load_config`, with fields from the command line.

    Args:
        dataclass_types: dataclasses to create.
        argv: `--config FILE` and any field as a flag; None reads the command line.

    Raises:
        ValueError: as in `load_config`.
    """
    # The default usage lists a few hundred flags, which would hide an error message.
    usage = "%(prog)s [--config FILE] [--FIELD VALUE ...]"
    parser = _Parser(dataclass_types, usage=usage, allow_abbrev=False)
    parser.add_argument("--config", type=Path, help="YAML file of defaults for all other flags.")
    chosen, flags = _config_parser().parse_known_args(argv)
    from_file = {} if chosen.config is None else read_config(chosen.config)
    return _instances(parser, [*_as_flags(from_file), *flags])


def peek(name: str, argv: Sequence[str] | None = None) -> Any:
    """The value of one field in the flags or else in the file, before the others can be parsed; None if unset."""
    parser = _config_parser()
    parser.add_argument(f"--{name}")
    chosen, _ = parser.parse_known_args(argv)
    value = getattr(chosen, name)
    return read_config(chosen.config).get(name) if value is None and chosen.config is not None else value


def read_config(path: Path) -> dict[str, Any]:
    """Read the mapping in a YAML file; raises a ValueError if the file does not exist or is not a mapping."""
    if not path.is_file():
        raise ValueError(f"config: expected a YAML file, got {path}, which is not a file")
    return read_mapping("config", path.read_text(), str(path))


def read_mapping(name: str, text: str, source: str) -> dict[str, Any]:
    """
    Parse a mapping in YAML or JSON.

    Args:
        name: name of the argument in errors.
        text: the mapping.
        source: description of `text` in errors.

    Raises:
        ValueError: `text` is not valid or not a mapping.
    """
    try:
        values = json.loads(text)
    except ValueError:  # JSON allows tabs, but YAML does not, so YAML does not include JSON.
        try:
            values = yaml.load(text, _Loader)
        except yaml.YAMLError as error:
            raise ValueError(f"{name}: expected a mapping in YAML or JSON, got {source}: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{name}: expected a mapping of fields to values, got {source}, a {type(values).__name__}")
    return values


def _config_parser() -> argparse.ArgumentParser:
    parser = _Parser([], add_help=False, allow_abbrev=False)
    parser.add_argument("--config", type=Path)
    return parser


def _instances(parser: _Parser, flags: list[str]) -> tuple:
    dataclass_types: list[Any] = list(parser.dataclass_types)
    *instances, unknown = parser.parse_args_into_dataclasses(
        flags, look_for_args_file=False, return_remaining_strings=True
    )
    if unknown:
        names = [flag[2:].partition("=")[0] for flag in unknown if flag.startswith("--")] or unknown
        types = ", ".join(each.__name__ for each in dataclass_types)
        raise ValueError(f"{', '.join(names)}: expected a field of {types}, got an unknown name")
    return tuple(instances[: len(dataclass_types)])


def _as_flags(values: Mapping[str, Any]) -> list[str]:
    flags = []
    for name, value in values.items():
        if isinstance(value, list | tuple):
            flags += [f"--{name}", *map(_as_text, value)]
        elif value is not None:
            flags.append(f"--{name}={_as_text(value)}")  # one argument, because a value may begin with a dash
    return flags


def _as_text(value: Any) -> str:
    return os.fspath(value) if isinstance(value, str | os.PathLike) else json.dumps(value, default=str)
