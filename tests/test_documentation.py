"""What documentation names exists: modules, commands, targets, files, and what examples import."""

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from modeling_dina.cli.app import app

ROOT = Path(__file__).parents[1]
PACKAGES = "modeling_dina|training|model_card|space|tests|docs|examples"
PAGES = [path for path in ROOT.rglob("*.md") if not {".venv", "runs", "templates"} & set(path.parts)]
CODE = re.compile(r"```\w*\n(.*?)```|`([^`\n]+)`", re.DOTALL)


def code_of(text):
    """What stands in code blocks and between backticks, one after another."""
    return "\n".join(block or span for block, span in CODE.findall(text))


def sources():
    """Text files of the project by name: pages, code, configurations and the Makefile."""
    suffixes = {".md", ".py", ".yaml", ".toml"}
    folders = PACKAGES.split("|")
    found = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in suffixes]
    return {
        path.relative_to(ROOT).as_posix(): path.read_text() for path in [*found, ROOT / "README.md", ROOT / "Makefile"]
    }


def module_file(name):
    """Where a module, or a package that can be run, is; None if it is not the project's."""
    path = ROOT.joinpath(*name.split("."))
    return next((each for each in (path.with_suffix(".py"), path / "__init__.py") if each.is_file()), None)


def is_defined(dotted):
    """Whether a name is that of a module, or of something at the top of a module's file or of a class in it."""
    if module_file(dotted) or ROOT.joinpath(*dotted.split(".")).is_dir():
        return True
    parent, _, name = dotted.rpartition(".")
    file = module_file(parent) if parent else None
    if file is not None:
        return (
            re.search(rf"^(class|def|async def) {name}\b|^{name}\b.*=|\"{name}\"", file.read_text(), re.M) is not None
        )
    return bool(parent) and is_defined(parent) and "." in parent


def test_modules_that_are_run():
    named = {
        (name, module)
        for name, text in sources().items()
        for module in re.findall(rf"-m ((?:{PACKAGES})(?:\.\w+)*)", text)
    }
    assert len(named) > 20
    missing = [(name, module) for name, module in named if not module_file(module)]
    assert not missing


def test_names_in_backticks_and_configurations():
    named = {
        (name, dotted)
        for name, text in sources().items()
        for dotted in re.findall(
            rf"(?<![\w./-])((?:{PACKAGES})(?:\.\w+)+)(?=[:\s`(]|$)", text if name.endswith(".yaml") else code_of(text)
        )
        if not dotted.endswith((".py", ".md", ".json", ".yaml"))
    }
    assert len(named) > 20
    missing = [(name, dotted) for name, dotted in named if not is_defined(dotted)]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_files_and_links(page):
    text = page.read_text()
    links = [link for link in re.findall(r"\]\(\s*([^)\s#]+)", text) if "://" not in link]
    assert not [link for link in links if not (page.parent / link).exists()]
    paths = re.findall(rf"(?<![\w/.-])((?:{PACKAGES})/[\w./-]*\w)", code_of(text))
    assert not [path for path in paths if not (ROOT / path).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands(page):
    code = code_of(page.read_text())
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
    assert not set(re.findall(r"^make ([\w-]+)", code, re.M)) - set(targets)
    commands = get_command(app).commands
    for line in re.findall(r"^dina ([a-z].*)", code.replace("\\\n", " "), re.M):
        name, *arguments = shlex.split(line, comments=True)
        assert name in commands, line
        options = {option for each in commands[name].params for option in each.opts}
        assert not {argument for argument in arguments if argument.startswith("--")} - options, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_what_examples_import(page):
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        for node in ast.walk(ast.parse(block.replace(">>> ", ""))):
            if isinstance(node, ast.ImportFrom) and re.match(PACKAGES, node.module):
                module = importlib.import_module(node.module)
                assert not [alias.name for alias in node.names if not hasattr(module, alias.name)], block
