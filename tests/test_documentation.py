"""What documentation names exists: modules, commands and their options, targets, files, and what examples import.
Python examples run on the embedded model, and print what the page says."""

import ast
import importlib
import io
import json
import re
import shlex
import shutil
import tarfile
import tomllib
from contextlib import redirect_stdout
from dataclasses import fields
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest
import typer
import yaml
from typer.main import get_command
from typer.testing import CliRunner

from modeling_dina.cli.app import app
from training.align.arguments import AlignArguments
from training.align.run import ALGORITHMS
from training.label.learning_curve import CurveArguments
from training.reward.trainer import RewardTrainingArguments
from training.train_reward import DataArguments, ModelArguments

ROOT = Path(__file__).parents[1]
PACKAGES = "modeling_dina|training|model_card|space|tests|docs|examples"
PAGES = [
    path
    for path in ROOT.rglob("*.md")
    if not {".venv", ".venv-docs", "build", "runs", "templates", "node_modules"} & set(path.relative_to(ROOT).parts)
]
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


def linked_pages(page):
    links = re.findall(r"\]\(\s*([^)\s#]+\.md)", page.read_text())
    return {(page.parent / link).resolve() for link in links if "://" not in link}


def test_every_page_is_two_clicks_from_the_readme():
    reached = linked_pages(ROOT / "README.md")
    reached |= {second for first in reached for second in linked_pages(first)}
    assert not set((ROOT / "docs").glob("*.md")) - reached


class Block(NamedTuple):
    """A block of code: its language, its code, the comment in the line before it, and the output shown after it."""

    language: str
    code: str
    comment: str
    output: str | None


def blocks(page):
    """Blocks of code of a page; the output of a block is a block of text that follows immediately."""
    found = [
        Block(match[2], match[3], match[1] or "", None)
        for match in re.finditer(r"(?:<!-- ([^\n]*) -->\n+)?^```(\w*)\n(.*?)^```$", page.read_text(), re.M | re.DOTALL)
    ]
    following = [each.code if each.language == "text" else None for each in found[1:]]
    return [each._replace(output=output) for each, output in zip_longest(found, following)]


def by_page(pages):
    return pytest.mark.parametrize("page", pages, ids=lambda page: page.relative_to(ROOT).as_posix())


DOCUMENTATION = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NOT_RUN = "not run: "  # A block after such a comment needs weights, a GPU or a server.


@by_page(PAGES)
def test_targets(page):
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
    assert not set(re.findall(r"^make ([\w-]+)", code_of(page.read_text()), re.M)) - set(targets)


@cache
def options_of(module):
    """Options of a module that can be run."""
    own = {
        "training.train_reward": (ModelArguments, DataArguments, RewardTrainingArguments),
        "training.label.learning_curve": (ModelArguments, DataArguments, RewardTrainingArguments, CurveArguments),
        "training.align": (AlignArguments, *(each.Arguments for each in ALGORITHMS.values())),
    }
    if module in own:
        return {"--config", *(f"--{each.name}" for arguments in own[module] for each in fields(arguments))}
    name = module if (ROOT / f"{module.replace('.', '/')}.py").is_file() else f"{module}.__main__"
    loaded = importlib.import_module(name)
    command = re.search(r"app\.command\(\)\((\w+)\)", Path(loaded.__file__).read_text())
    if command is None:
        return set()
    single = typer.Typer()
    single.command()(getattr(loaded, command[1]))
    return {option for each in get_command(single).params for option in each.opts}


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def check_options(line, given, known):
    wrong = {word.partition("=")[0] for word in given if word.startswith("--")} - known
    assert not wrong, f"{line}: unknown {wrong}"


def ray_settings():
    """Fields of the server's settings on Ray, read from the source: importing Ray takes seconds."""
    tree = ast.parse((ROOT / "modeling_dina/serving/ray_app.py").read_text())
    (settings,) = [each for each in tree.body if isinstance(each, ast.ClassDef) and each.name == "Settings"]
    return {each.target.id for each in settings.body if isinstance(each, ast.AnnAssign)}


def check_command(line):
    """Raise an AssertionError unless the program of a line is known and has the options that the line gives."""
    words = shlex.split(line, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    if not words:
        return
    program, *arguments = words
    program = program.removeprefix(".venv/bin/")
    if "-m" in arguments and program in ("python", "torchrun", "accelerate"):
        _, module, *given = arguments[arguments.index("-m") :]
        if module == "pytest":
            assert not [word for word in given if word.startswith("tests/") and not (ROOT / word).exists()], line
        elif module != "venv":
            check_options(line, given, options_of(module))
    elif program == "dina":
        commands = get_command(app).commands
        assert not arguments or arguments[0] in [*commands, "--help"], line
        if arguments[0] in commands:
            known = {option for each in commands[arguments[0]].params for option in each.opts} | {"--help"}
            check_options(line, arguments[1:], known)
    elif program == "serve":
        assert {word.partition("=")[0] for word in arguments[2:]} <= ray_settings(), line
    elif program == "pip":
        named = {name for group in re.findall(r"\[([\w,]+)\]", line) for name in group.split(",")}
        assert named <= set(PROJECT["optional-dependencies"]), line
    elif program == "curl":
        application = (ROOT / "modeling_dina/serving/application.py").read_text()
        for path in re.findall(r"http://[\w.:]+(/[\w/]+)", line):
            assert f'Route("{path}"' in application, line
    elif program == "python":
        assert (ROOT / arguments[0]).is_file(), line
    else:
        assert program in ("make", "hf", "pre-commit"), f"{line}: unknown program {program}"


@pytest.mark.parametrize(
    "line",
    [
        "dina compare a.png b.png --promt text",
        "dina compere a.png b.png",
        "accelerate launch -m training.align --config file.yaml --no_such 1",
        "python -m model_card.studies.method --out DIR --no-such",
        "serve run modeling_dina.serving.ray_app:build no_such=1",
        'pip install "dina-lrm[no_such]"',
        "curl http://127.0.0.1:8000/v2/compare",
        "python no_such.py",
        "dyna compare a.png b.png",
    ],
)
def test_a_wrong_command_is_found(line):
    with pytest.raises(AssertionError):
        check_command(line)


def commands(page):
    """Lines of the page's blocks of commands, and the `dina` commands between backticks."""
    texts = [each.code for each in blocks(page) if each.language in ("", "bash")]
    spans = [span for span in re.findall(r"`([^`\n]+)`", page.read_text()) if re.match(r"dina [a-z]+ ", span)]
    return [line for text in [*texts, *spans] for line in text.replace("\\\n", " ").splitlines()]


@by_page(PAGES)
def test_commands(page):
    for line in commands(page):
        check_command(line)


# Pages whose `dina` commands run on files of a user, and what names a file or a place that a test does not have.
LOCAL = ["README.md", "docs/quickstart.md", "docs/score-and-rank.md", "docs/score-a-dataset.md"]
ELSEWHERE = {"owner/name", "--ray", "SOURCE", "MODEL", "DIR"}
RUN = ("compare", "score", "rank", "score-dataset", "info")


@pytest.fixture
def folder_of_a_user(tmp_path, monkeypatch):
    """A clone with the files that the commands name."""
    for name in ("modeling_dina", "space"):
        (tmp_path / name).symlink_to(ROOT / name)
    images = [ROOT / f"space/examples/clear_{number}.png" for number in (1, 2, 1)]
    rows = {"prompt": ["a red circle"] * 3, "image": ["a.png", "b.png", "c.png"]}
    (tmp_path / "images").mkdir()
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards/0.tar", "w") as tar:
        for source, name in zip(images, rows["image"], strict=True):
            shutil.copy(source, tmp_path / name)
            shutil.copy(source, tmp_path / "images" / name)
            (tmp_path / "text").write_text("a red circle")
            tar.add(source, name)
            tar.add(tmp_path / "text", Path(name).with_suffix(".txt").name)
    table = pd.DataFrame(rows)
    table.to_csv(tmp_path / "images.csv", index=False)
    table.to_parquet(tmp_path / "images.parquet")
    named = {"file_name": table["image"], "caption": table["prompt"]}
    pd.DataFrame(named).to_csv(tmp_path / "images/metadata.csv", index=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create 8 worker processes")
@by_page([ROOT / name for name in LOCAL])
def test_commands_run(page, folder_of_a_user):
    ran = 0
    for line in commands(page):
        program, *arguments = shlex.split(line, comments=True) or [""]
        if program != "dina" or len(arguments) < 2 or ELSEWHERE & set(arguments) or arguments[0] not in RUN:
            continue
        shutil.rmtree(folder_of_a_user / "scores", ignore_errors=True)
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, f"{line}: {result.output}"
        ran += 1
    assert ran


@by_page(PAGES)
def test_data_blocks(page):
    parsers = {"json": json.loads, "yaml": yaml.safe_load}
    for block in blocks(page):
        if block.language in parsers:
            assert parsers[block.language](block.code) is not None


@by_page(PAGES)
def test_what_examples_import(page):
    for block in blocks(page):
        if block.language != "python":
            continue
        for node in ast.walk(ast.parse(block.code.replace(">>> ", ""))):
            if isinstance(node, ast.ImportFrom) and re.match(PACKAGES, node.module):
                module = importlib.import_module(node.module)
                assert not [alias.name for alias in node.names if not hasattr(module, alias.name)], block


@pytest.mark.slow
@by_page([page for page in DOCUMENTATION if any(each.language == "python" for each in blocks(page))])
def test_examples_run(page, tmp_path, monkeypatch):
    """The examples of a page, one after another in this process, as in a clone."""
    for name in ("modeling_dina", "space", "training"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in blocks(page):
        if block.language != "python" or block.comment.startswith(NOT_RUN):
            continue
        printed = io.StringIO()
        with redirect_stdout(printed):
            exec(compile(block.code, page.name, "exec"), names)
        assert printed.getvalue() == (block.output or ""), block.code


# Versions, names and settings. Measured numbers stand in generated parts only.
NUMBERS = {"2602.11146", "3.5", "3.11", "0.05", "0.1", "0.5"}


@by_page(DOCUMENTATION)
def test_measured_numbers_are_generated(page):
    text = page.read_text()
    for part in (r"<!-- generated.*?<!-- end -->", r"```.*?```", r"`[^`\n]*`", r"\]\([^)]*\)"):
        text = re.sub(part, "", text, flags=re.DOTALL)
    assert set(re.findall(r"(?<![\w.])[-+]?\d[\d,]*\.\d+(?![\w.])", text)) <= NUMBERS


def texts_in_code():
    """All texts in the source of the library and of training; what is filled in stands as "…"."""
    for path in [*(ROOT / "modeling_dina").glob("**/*.py"), *(ROOT / "training").glob("**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                yield "".join(each.value if isinstance(each, ast.Constant) else "…" for each in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_errors_of_troubleshooting_exist():
    page = (ROOT / "docs/troubleshooting.md").read_text()
    messages = re.findall(r"^\| `(.*?)` \|", page, re.M)
    assert len(messages) >= 20
    known = "\0".join(texts_in_code())
    assert not [message for message in messages if message not in known]


@by_page(DOCUMENTATION)
def test_size(page):
    text = page.read_text()
    assert len(text.splitlines()) < 200
    if page.name == "README.md":
        assert len(text.splitlines()) <= 130
        assert len(text.split()) <= 900


def test_all_pages_are_in_the_navigation():
    listed = set(re.findall(r"[\w-]+\.md", (ROOT / "mkdocs.yml").read_text().partition("nav:")[2]))
    assert {page.name for page in (ROOT / "docs").glob("*.md")} <= listed


def test_configuration_files_are_yaml():
    paths = [*(ROOT / ".github").rglob("*.yml"), *ROOT.glob("*.yml"), *ROOT.glob(".*.yaml"), ROOT / "CITATION.cff"]
    assert len(paths) >= 6
    assert all(isinstance(yaml.safe_load(path.read_text()), dict) for path in paths)


def test_citations_agree():
    article = yaml.safe_load((ROOT / "CITATION.cff").read_text())["preferred-citation"]
    readme = (ROOT / "README.md").read_text()
    (authors,) = re.findall(r"author  = \{(.*?)\}", readme, re.DOTALL)
    named = [f"{each['family-names']}, {each['given-names']}" for each in article["authors"]]
    assert named == " ".join(authors.split()).split(" and ")
    assert f"title   = {{{article['title']}}}" in readme


def test_version_is_in_one_place():
    version = PROJECT["version"]
    assert re.search(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.M)[1] in ("Unreleased", version)
    named = [name for name, text in sources().items() if f'"{version}"' in text]
    assert not named
