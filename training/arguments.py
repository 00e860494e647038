"""Arguments from a YAML file and from flags, the flags having the last word."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml
from transformers import HfArgumentParser


def parse(*dataclass_types: type, argv: Sequence[str] | None = None) -> tuple:
    """
    One instance of each of `dataclass_types`.

    Args:
        argv: `--config FILE` and any field as a flag; None reads the command line. The file maps fields to values and
            is read as if its lines were flags that come before all others.

    Raises:
        ValueError: a field is unknown, or the file is no mapping.
    """
    # Written out, the usage of a few hundred flags would push an error off the screen.
    parser = HfArgumentParser(dataclass_types, usage="%(prog)s [--config FILE] [--FIELD VALUE ...]")
    parser.add_argument("--config", type=Path, help="YAML file of defaults for all other flags.")
    config_parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    config_parser.add_argument("--config", type=Path)
    chosen, flags = config_parser.parse_known_args(sys.argv[1:] if argv is None else list(argv))
    from_file = [] if chosen.config is None else _as_flags(chosen.config)
    return parser.parse_args_into_dataclasses([*from_file, *flags], look_for_args_file=False)[: len(dataclass_types)]


def _as_flags(path: Path) -> list[str]:
    if not path.is_file():
        raise ValueError(f"config: expected a YAML file, got {path}, which is not a file")
    try:
        values = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"config: expected YAML, got {path}: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"config: expected a mapping of fields to values, got {path} with a {type(values).__name__}")
    flags = []
    for name, value in values.items():
        if value is not None:
            flags += [f"--{name}", *map(_as_text, value if isinstance(value, list) else [value])]
    return flags


def _as_text(value) -> str:
    return value if isinstance(value, str) else json.dumps(value)
