"""The folder of a study: its settings, and what has been measured so far."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from modeling_dina.files import write_json


class StudyFolder:
    """
    Results of a study's parts, each a file that is whole or not there: an interrupted study goes on, and several
    processes may work on one, each leaving to the others what they have begun.

    Args:
        path: the folder.
        settings: of the study.

    Attributes:
        path, settings: the same, the latter as JSON has them.

    Raises:
        ValueError: it is a file, or of a study with other settings.
    """

    def __init__(self, path: Path, settings: dict) -> None:
        if path.is_file():
            raise ValueError(f"out: expected a folder, new or of the same study, got the file {path}")
        self.path = path
        self.settings = settings = json.loads(json.dumps(settings))
        found = self.keep("settings", lambda: settings)
        if found != settings:
            different = sorted(name for name in settings if found.get(name) != settings[name])
            raise ValueError(
                f"out: expected a new folder or one of the same study, got {path}, which differs in {different}"
            )

    def keep(self, name: str, make: Callable[[], Any], wait: bool = True) -> Any:
        """
        What is in `<name>.json`; if there is none, what is made for it.

        Args:
            name: of the part, relative to the folder.
            make: measures it; returns what JSON can hold.
            wait: for another process that is making it, instead of returning None.
        """
        path, lock = self.path / f"{name}.json", self.path / "locks" / f"{name.replace('/', '-')}.lock"
        for each in (path, lock):
            each.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(lock, timeout=-1 if wait else 0):
                if not path.exists():
                    write_json(path, make())
        except Timeout:
            return None
        return json.loads(path.read_text())

    def keep_all(self, parts: dict[str, Callable[[], Any]], tell: Callable[[str], None]) -> list[Any]:
        """What `keep` returns for each part. `tell` is called with what is about to be done."""
        for number, (name, make) in enumerate(parts.items(), start=1):
            tell(f"{number} of {len(parts)}: {name}{', done' * (self.path / f'{name}.json').exists()}")
            self.keep(name, make, wait=False)
        return [self.keep(name, make) for name, make in parts.items()]


def device_name() -> str:
    """What the study runs on."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    return f"{threads} CPU thread{'s' * (threads > 1)}"
