"""Who may import whom, read from the source: what is fundamental imports nothing of what is built on it."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("modeling_dina", "training", "model_card", "space")
WORLD = ("training.world", "training.world.drawing", "training.world.latents")
# What each part may import of the project, beside itself. A module belongs to the longest name that it begins with.
ALLOWED = {
    "modeling_dina": set(),
    "training.world": set(),  # ground truth
    "training.world.drawing": {"modeling_dina", "training.world"},  # by several processes
    "training.world.latents": {"modeling_dina", "training.world", "training.world.drawing"},  # as a VAE sees it
    "training": {"modeling_dina", *WORLD},
    "training.world.models": {"modeling_dina", *WORLD, "training"},
    "model_card": {"modeling_dina", *WORLD, "training", "training.world.models"},
    "space": {"modeling_dina", *WORLD, "training", "training.world.models", "model_card"},
}


def modules() -> dict[str, Path]:
    """Files of the project's packages by module name, without the copies of code in the embedded model's folder."""
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py") if path.parent.name != "tiny"]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


def imports(module: str, path: Path, known: set[str]) -> Iterator[str]:
    """Modules of the project that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = module if path.stem == "__init__" else module.rpartition(".")[0]
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *filter(None, [node.module])])
            found = [f"{source}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in found:
            target = name if name in known else name.rpartition(".")[0]
            if target in known:
                yield target


def part(module: str) -> str:
    """The longest name in `ALLOWED` that the module begins with."""
    return max((name for name in ALLOWED if f"{module}.".startswith(f"{name}.")), key=len)


@pytest.fixture(scope="module")
def imported():
    """For each module, those of the project that it imports."""
    paths = modules()
    return {module: set(imports(module, path, set(paths))) for module, path in paths.items()}


def test_imports_are_found(imported):
    assert "modeling_dina.scoring_dina" in imported["modeling_dina"]  # relative
    assert "training.world.annotators" in imported["training.world.groups"]  # absolute
    assert "modeling_dina.hub.push" in imported["modeling_dina.cli.app"]  # within a function


@pytest.mark.parametrize("importer", ALLOWED)
def test_parts_import_what_they_stand_on(imported, importer):
    wrong = [
        (module, target)
        for module, targets in imported.items()
        if part(module) == importer
        for target in targets
        if part(target) not in {importer, *ALLOWED[importer]}
    ]
    assert not wrong


def test_packages_of_training_import_one_another_in_one_direction(imported):
    """Modules at the top of `training` count as packages of their own. A circle raises CycleError, which names it."""

    def package(module: str) -> str:
        name = "training.world.models" if part(module) == "training.world.models" else module
        return name if name == "training.world.models" else ".".join(module.split(".")[:2])

    graph: dict[str, set[str]] = {}
    for module, targets in imported.items():
        if module.startswith("training."):
            inside = {package(target) for target in targets if target.startswith("training.")}
            graph.setdefault(package(module), set()).update(inside - {package(module)})
    order = list(TopologicalSorter(graph).static_order())
    assert order.index("training.world") < order.index("training.reward") < order.index("training.world.models")
