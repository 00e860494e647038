"""The wheel: one name, everything that belongs to it, and enough to compare, evaluate, calibrate and serve."""

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "space" / "examples"
SITE_PACKAGES = sysconfig.get_path("purelib")
PICTURES = [f"{name}.png" for name in ("clear_1", "clear_2", "wrong_1", "wrong_2")]

# In a working directory of its own, without what `.pth` files add to the path, such as an editable installation.
INSTALLED = """
import json, os, signal, socket, sys, threading, time, urllib.request
from importlib.metadata import distribution
from importlib.util import find_spec
from pathlib import Path

folder, data = map(Path, sys.argv[1:])
assert not [name for name in ("training", "model_card", "space", "tests") if find_spec(name)]

import modeling_dina
from PIL import Image
from typer.testing import CliRunner
from modeling_dina.adapters.flow_grpo import dina_score

assert Path(modeling_dina.__file__).is_relative_to(folder), modeling_dina.__file__
(console,) = [entry.load() for entry in distribution("dina-lrm").entry_points if entry.group == "console_scripts"]


def dina(*arguments):
    result = CliRunner().invoke(console, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


question = "--prompt", "a red circle and a blue square"
pictures = [data / name for name in ("clear_1.png", "clear_2.png")]
compared = json.loads(dina("compare", *pictures, *question, "--json"))
scores, _ = dina_score(str(folder / "modeling_dina" / "tiny"))(
    [Image.open(path) for path in pictures], [question[1]] * 2, {}
)
source = "--benchmark", "imagereward", "--data", data
dina("evaluate", *source, "--out", "results.json")
evaluated = json.loads(Path("results.json").read_text())
model = "--model", folder / "modeling_dina" / "tiny"
calibrated = json.loads(dina("calibrate", *source, *model, "--out", "calibrated", "--json"))
moved = json.loads(dina("compare", *pictures, *question, "--model", "calibrated", "--json"))

with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]


def ask():
    url = f"http://127.0.0.1:{port}"
    while True:
        try:
            urllib.request.urlopen(f"{url}/readyz", timeout=5)
            break
        except OSError:
            time.sleep(0.1)
    parts = [f'Content-Disposition: form-data; name="prompt"\\r\\n\\r\\n{question[1]}'.encode()]
    for path in pictures:
        head = f'Content-Disposition: form-data; name="images"; filename="{path.name}"\\r\\n\\r\\n'
        parts.append(head.encode() + path.read_bytes())
    body = b"".join(b"--x\\r\\n" + part + b"\\r\\n" for part in parts) + b"--x--\\r\\n"
    request = urllib.request.Request(f"{url}/v1/compare", body, {"Content-Type": "multipart/form-data; boundary=x"})
    served = json.load(urllib.request.urlopen(request, timeout=60))
    found = {"compared": compared, "adapter": scores, "evaluated": evaluated, "calibrated": calibrated}
    Path("found.json").write_text(json.dumps({**found, "moved": moved, "served": served}))
    os.kill(os.getpid(), signal.SIGTERM)


threading.Thread(target=ask, daemon=True).start()
CliRunner().invoke(console, ["serve", "--port", str(port)], catch_exceptions=False)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy of the sources: `build/` of an earlier build would leave its files in the wheel."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("modeling_dina", "training", "model_card", "space"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, source / name)
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", out]
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", *options, source], check=True)
    (path,) = out.iterdir()
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Rankings in the schema of ImageReward, of which none fits all rewards."""
    folder = tmp_path_factory.mktemp("data")
    for name in PICTURES:
        shutil.copyfile(EXAMPLES / name, folder / name)
    rankings = ([1, 2, 3, 4], [4, 3, 2, 1], [2, 1, 4, 3], [3, 4, 1, 2])
    rows = [
        {"id": str(number), "prompt": f"picture {number}", "generations": PICTURES, "ranking": ranking}
        for number, ranking in enumerate(rankings)
    ]
    (folder / "test.json").write_text(json.dumps(rows))
    return folder


@pytest.mark.slow
def test_holds_one_name_and_all_of_it(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (top_level,) = [name for name in names if name.endswith(".dist-info/top_level.txt")]
        assert archive.read(top_level).decode().split() == ["modeling_dina"]
    package = ROOT / "modeling_dina"
    files = [path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    expected = {path.relative_to(ROOT).as_posix() for path in files if not path.name.startswith(".")}
    assert {"modeling_dina/py.typed", "modeling_dina/tiny/model.safetensors"} < expected
    assert {name for name in names if ".dist-info/" not in name} == expected


@pytest.mark.slow
def test_works_where_nothing_else_of_the_project_is(wheel, data, tmp_path):
    installed, work = tmp_path / "installed", tmp_path / "work"
    work.mkdir()
    options = ["--quiet", "--no-deps", "--no-index", "--no-compile", "--target", installed]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, wheel], check=True)
    ran = subprocess.run(
        [sys.executable, "-S", "-c", INSTALLED, installed, data],
        cwd=work,
        env={**os.environ, "HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": f"{installed}:{SITE_PACKAGES}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == -signal.SIGTERM, ran.stderr
    found = json.loads((work / "found.json").read_text())
    assert found["compared"]["win_probability"] > 0.5
    assert found["adapter"] == pytest.approx(found["compared"]["scores"], abs=1e-5)
    assert found["served"]["win_probability"][0][1] == pytest.approx(found["compared"]["win_probability"], abs=1e-5)
    assert (found["evaluated"]["prompts"], found["evaluated"]["used"]) == (4, 24)
    assert found["calibrated"]["pairs_fitted"] == found["calibrated"]["pairs_held_out"] == 12
    scores = [found[name]["scores"] for name in ("compared", "moved")]
    mean, std = found["calibrated"]["score_mean"], found["calibrated"]["score_std"]
    assert scores[1] == pytest.approx([(score - mean) / std for score in scores[0]], abs=1e-4)
