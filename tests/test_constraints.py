"""The lock file names every package that the project can install, with its version, and no source of them."""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from itertools import chain
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LINES = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]


def needed_by(requirement, extras, found):
    """Adds to `found` the names of all packages that a requirement installs in this environment."""
    if requirement.marker is not None and not any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
        return
    name = canonicalize_name(requirement.name)
    if name in found and not requirement.extras - found[name]:
        return
    found[name] = found.get(name, set()) | requirement.extras
    try:
        following = requires(name) or []
    except PackageNotFoundError:
        return
    for line in following:
        needed_by(Requirement(line), found[name] | {""}, found)


def test_every_line_is_one_version_of_a_package():
    wrong = [line for line in LINES if not re.fullmatch(r"[a-z0-9-]+==[\w.!]+( ; [^;]+)?", line)]
    assert LINES
    assert not wrong


def test_the_lock_is_complete():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = {}
    for line in chain(project["dependencies"], *project["optional-dependencies"].values()):
        requirement = Requirement(line)
        if requirement.name != project["name"]:
            needed_by(requirement, {""}, found)
    assert len(found) > 100
    assert not set(found) - {line.partition("==")[0] for line in LINES}
