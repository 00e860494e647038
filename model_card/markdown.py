"""What the studies' pages share."""

import os
from pathlib import Path


def markdown(header: tuple[str, ...], lines: list[tuple[str, ...]]) -> str:
    """A table whose first column is aligned to the left."""
    rule = ("---", *("---:" for _ in header[1:]))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *lines))


def figures_of(names: list[str]) -> str:
    """The figures of a page, one after another."""
    return "\n\n".join(f"![{name.removesuffix('.png').replace('_', ' ').capitalize()}]({name})" for name in names)


def write_page(text: str, path: Path) -> None:
    """Whole or not at all."""
    writing = path.with_name(f".{path.name}.writing")
    writing.write_text(text)
    os.replace(writing, path)
