"""What the studies' pages share."""


def markdown(header: tuple[str, ...], lines: list[tuple[str, ...]]) -> str:
    """A table whose first column is aligned to the left."""
    rule = ("---", *("---:" for _ in header[1:]))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *lines))


def figures_of(names: list[str]) -> str:
    """The figures of a page, one after another."""
    return "\n\n".join(f"![{name.removesuffix('.png').replace('_', ' ').capitalize()}]({name})" for name in names)
