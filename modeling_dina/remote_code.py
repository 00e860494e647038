"""The code files in a model's folder, with which transformers can load the model without this package.

`python -m modeling_dina.remote_code FOLDER` updates the copies in a model's folder. `save_pretrained` does this
automatically, because transformers copies the same files.
"""

import shutil
import sys
from pathlib import Path


def remote_code_files() -> list[Path]:
    """The package's files `*_dina.py`, which import only one another."""
    return sorted(Path(__file__).parent.glob("*_dina.py"))


def copy_remote_code(folder: Path) -> None:
    """Replace the Python files in a model's folder by copies of `remote_code_files()`.

    Raises:
        ValueError: `folder` has no config.json.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(f"folder: expected a model's folder, with config.json, got {folder}")
    for path in folder.glob("*.py"):
        path.unlink()
    for path in remote_code_files():
        shutil.copyfile(path, folder / path.name)


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        copy_remote_code(Path(argument))
