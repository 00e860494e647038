"""The command itself: what goes wrong with images and options, resumption, the small world, noise levels."""

import math
import shutil
import time
from importlib.metadata import version
from pathlib import Path
from threading import Thread

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import uvicorn
from safetensors.torch import load_file, save_file
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from model_card.world_benchmark import read_world
from modeling_dina import DinaScorer
from modeling_dina.evaluation.benchmarks import BENCHMARKS
from modeling_dina.evaluation.benchmarks.preference_set import Item, PreferenceSet
from modeling_dina.evaluation.evaluate import evaluate, score_items
from modeling_dina.evaluation.rewards import CallableEvaluator, DinaEvaluator
from modeling_dina.files import Journal
from modeling_dina.options import EMBEDDED_MODEL
from modeling_dina.thurstone_dina import pair_statistics, precision_weights
from tests.modeling_dina.evaluation import scorers
from tests.modeling_dina.evaluation.conftest import SCORERS, grey
from tests.processes import Worker, kill_after_lines, run_code
from training.world.annotators import true_preference
from training.world.groups import FIRST, SECOND, Groups, pairwise_accuracy
from training.world.seeds import Seed

ROOT = Path(__file__).parents[3]
read_hpdv3 = BENCHMARKS["hpdv3"].read
HPDV3 = [
    {"prompt": "a cat", "path1": "2.png", "path2": "1.png"},
    {"prompt": "a cat", "path1": "1.png", "path2": "0.png"},
    {"prompt": "a dog", "path1": "0.png", "path2": "2.png"},
]
GREYS = {"0.png": 0, "1.png": 100, "2.png": 200}


@pytest.fixture(scope="module")
def embedded():
    return DinaScorer.from_pretrained(EMBEDDED_MODEL)


@pytest.fixture
def hpdv3(write_json, write_greys):
    write_json(HPDV3)
    write_greys(GREYS)


def test_results(run, hpdv3):
    results = run("hpdv3", "--seed", 3)
    assert results["benchmark"] == "hpdv3"
    assert results["accuracy"] == pytest.approx(2 / 3)
    assert (results["pairs"], results["ties"], results["failures"], results["failed"]) == (3, 0, 0, [])
    settings = results["settings"]
    assert {"sigmas", "draws", "mode", "seed", "text_length", "model", "libraries"} <= set(settings)
    assert (results["kind"], results["revision"]) == ("preferences", None)
    words = results["command"].split()
    assert words[:5] == ["dina", "evaluate", "--benchmark", "hpdv3", "--scorer"]
    assert words[words.index("--seed") + 1] == "3"
    assert words[-2] == "--out"
    assert settings["seed"] == 3
    assert settings["libraries"]["torch"] == version("torch")


def test_one_prompt(run, write_json, write_greys):
    write_json(HPDV3[:2])
    write_greys(GREYS)
    results = run("hpdv3")
    assert (results["accuracy"], results["standard_error"], results["interval"]) == (1.0, None, None)


def test_sides_are_shuffled(run, write_json, write_greys):
    """Where the first always wins, a side that always wins would say nothing about calibration."""
    write_json([HPDV3[0] | {"prompt": f"{number} cats"} for number in range(400)])
    write_greys(GREYS)
    results = [run("hpdv3", "--seed", seed, "--batch-size", 400) for seed in (0, 1)]
    won = 1 / (1 + math.exp(-1))
    for result in results:
        assert result["accuracy"] == 1.0
        assert result["calibration_error"] == pytest.approx(1 - won)  # in both its bins
    pairs = PreferenceSet()
    for number in range(400):
        items = Item("a cat", f"{number}a", None), Item("a cat", f"{number}b", None)
        pairs.add_pair("a cat", *items, 1.0, target=0.8)
    shuffled = pairs.pairs().shuffled_sides(0)
    assert 160 < shuffled.label.sum() < 240
    assert set(zip(shuffled.a % 2, shuffled.label, shuffled.target.round(6), strict=True)) == {
        (0, 1, 0.8),
        (1, 0, 0.2),
    }
    assert (pairs.pairs().shuffled_sides(1).a != shuffled.a).any()


# What goes wrong with the data


def test_bad_images_and_rows_are_named(run, data, write_json, write_greys):
    rows = [
        {"prompt": "a dog", "path1": "2.png", "path2": "missing.png"},
        {"prompt": "a dog", "path1": "text.png", "path2": "missing.png"},
        {"prompt": "a dog", "path1": "cut.png", "path2": "1.png"},
        {"prompt": "", "path1": "1.png", "path2": "2.png"},
        {"prompt": "a dog", "path1": "1.png"},
        {"prompt": "a dog", "path1": "1.png", "path2": 5},
        {"prompt": ["a dog"], "path1": "1.png", "path2": "2.png"},
        "a dog",
    ]
    write_json(rows[:4] + HPDV3 + rows[4:])
    write_greys(GREYS)
    (data / "text.png").write_text("no picture")
    (data / "cut.png").write_bytes(grey(50)[:40])
    results = run("hpdv3", "--batch-size", 3)
    assert results["accuracy"] == pytest.approx(2 / 3)
    assert (results["pairs"], results["failed_pairs"]) == (7, 4)
    failed = {failure["name"]: failure["error"] for failure in results["failed"]}
    assert set(failed) == {"missing.png", "text.png", "cut.png", "1.png", "2.png"} | {
        f"test.json, row {row}" for row in (7, 8, 9, 10)
    }
    assert results["failures"] == len(results["failed"]) == 9
    assert "which does not exist" in failed["missing.png"]
    assert "cannot open it" in failed["text.png"]
    assert "empty" in failed["1.png"]  # of the row without a prompt
    assert failed["test.json, row 7"] == "expected the field path2, got none"


def test_an_image_that_has_no_score_is_named(run, hpdv3):
    results = run("hpdv3", scorer=f"{SCORERS}:not_a_number_for_black")
    assert results["accuracy"] == 1.0
    assert [failure["name"] for failure in results["failed"]] == ["0.png", "0.png"]  # under two prompts
    assert "finite numbers" in results["failed"][0]["error"]


def test_an_image_whose_scoring_fails_is_named(run, hpdv3):
    results = run("hpdv3", scorer=f"{SCORERS}:out_of_memory_for_black")
    assert results["accuracy"] == 1.0
    assert [(failure["name"], failure["error"]) for failure in results["failed"]] == [("0.png", "MemoryError")] * 2


def test_a_scorer_that_always_fails_is_no_fault_of_the_images(run, hpdv3, tmp_path):
    message = run("hpdv3", scorer=f"{SCORERS}:broken", refused=True)
    assert "model: expected" in message
    assert "no weights" in message
    journal = (tmp_path / "results.json.partial").read_text().splitlines()
    assert len(journal) == 1  # its settings alone


def test_nothing_to_measure(run, data, write_json, write_greys):
    write_json(HPDV3)
    assert "expected pairs that can be scored, got none" in run("hpdv3", refused=True)
    write_json([])
    assert "data: expected rows" in run("hpdv3", refused=True)
    (data / "test.json").write_text("{cut")
    assert "data: cannot read" in run("hpdv3", refused=True)
    (data / "test_v1.parquet").write_text("no table")
    assert "data: cannot read" in run("genai-bench", refused=True)
    columns = ("prompt", "left_image", "right_image", "vote_type")
    pq.write_table(pa.table({name: pa.array([], pa.string()) for name in columns}), data / "test_v1.parquet")
    assert "data: expected rows in" in run("genai-bench", refused=True)
    write_json([{"id": "1", "prompt": "a cat", "generations": ["0.png", "1.png"], "ranking": [1, 1]}])
    write_greys(GREYS)
    assert "expected pairs that count" in run("imagereward", refused=True)


def test_strict(run, hpdv3, write_json):
    assert run("hpdv3", "--strict")["size_differences"] == {}  # no size is published
    write_json([{"id": "1", "prompt": "a cat", "generations": ["0.png", "1.png"], "ranking": [1, 2]}])
    message = run("imagereward", "--strict", refused=True)
    assert "expected the published sizes" in message
    assert "'pairs': 7230" in message
    assert "'pairs': 1" in message
    assert run("imagereward")["size_differences"]["pairs"] == 1 - 7230


def test_limit(run, hpdv3):
    results = run("hpdv3", "--limit", 2)
    assert (results["pairs"], results["accuracy"], results["settings"]["limit"]) == (2, 1.0, 2)


@pytest.mark.parametrize(
    ("benchmark", "options", "scorer", "message"),
    [
        ("hpdv3", ["--data", "/nowhere"], None, "data: expected a folder or a Hub id, got /nowhere"),
        ("world", ["--data", "some/set"], None, "data: expected none, got some/set"),
        ("hpdv3", ["--data", "some/set"], None, "data: cannot load some/set"),
        ("pickapic", [], None, "data: expected **/*test_unique*.parquet"),
        ("hpdv3", ["--sigmas", "0.5"], "brightness", "scorer: expected no model and no noise levels"),
        ("hpdv3", ["--model", "tiny"], "brightness", "scorer: expected no model"),
        ("hpdv3", [], "nothing", "scorer: expected module:function"),
        ("hpdv3", [], "CALLS", "scorer: expected module:function"),
        ("hpdv3", [], "too_few", "scorer: expected 5 numbers for 5 images, got 1"),
        ("hpdv3", ["--model", "/nowhere"], None, "model: expected a folder or a Hub id, got /nowhere"),
        ("hpdv3", ["--out", "results.txt"], "brightness", "out: expected a file ending in .json"),
        ("hpdv3", ["--out", "/nowhere/results.json"], "brightness", "out: expected a file that can be written"),
        ("hpdv4", [], None, "benchmark: expected one of"),
    ],
)
def test_refusals(run, write_json, benchmark, options, scorer, message, write_greys):
    write_json(HPDV3)
    write_greys(GREYS)
    refusal = run(benchmark, *options, scorer=scorer and f"{SCORERS}:{scorer}", refused=True)
    assert message.replace(" ", "") in refusal.replace(" ", "")  # paths break across lines


# Resumption


@pytest.mark.slow
def test_outlives_a_kill(run, tmp_path, data, write_json, write_greys, monkeypatch):
    write_greys({f"{number}.png": 3 * number for number in range(80)})
    write_json(
        [
            {"prompt": f"{number} cats", "path1": f"{number}.png", "path2": f"{(7 * number + 3) % 80}.png"}
            for number in range(40)
        ]
    )
    out, log = tmp_path / "results.json", tmp_path / "log"
    journal = tmp_path / "results.json.partial"
    monkeypatch.setenv("LOG", str(log))
    monkeypatch.chdir(ROOT)
    options = {"--benchmark": "hpdv3", "--data": data, "--scorer": f"{SCORERS}:slow_brightness", "--out": out}
    arguments = [str(part) for option in options.items() for part in option]
    process = Worker("model_card.evaluate_preferences", *arguments, "--batch-size", 3, environment={"LOG": str(log)})
    kept = kill_after_lines(process, journal, lines=4)
    assert not out.exists()
    assert 4 < kept.count(b"\n") < 27
    with journal.open("ab") as file:
        file.write(b'{"items": [70, 71')  # what a crash of the machine leaves of a line

    def go_on(*more, **expected):
        return run("hpdv3", "--batch-size", 3, *more, scorer=options["--scorer"], **expected)

    assert "other settings" in go_on("--seed", 1, refused=True)
    assert journal.read_bytes().startswith(kept)
    results = go_on()
    assert len(log.read_text().splitlines()) <= 80 + 3  # but for the batch that was cut off, no image came twice
    written = out.read_bytes()
    assert go_on() == results  # from the beginning
    assert out.read_bytes() == written


def test_the_same_annotations_beside_other_images_are_another_run(data, tmp_path, write_json, write_greys):
    write_json(HPDV3)
    write_greys(GREYS)
    other = shutil.copytree(data, tmp_path / "other")
    evaluator = CallableEvaluator(f"{SCORERS}:brightness")

    def interrupt(done, total):
        if done:
            raise KeyboardInterrupt

    def run_on(folder, **options):
        out = tmp_path / "results.json"
        evaluate("hpdv3", read_hpdv3(folder, None), evaluator, out, batch_size=2, folder=folder, **options)

    with pytest.raises(KeyboardInterrupt):
        run_on(data, progress=interrupt)
    with pytest.raises(ValueError, match=r"other settings; folder: expected .*other, got .*data"):
        run_on(other)
    run_on(data)


def test_a_reader_knows_the_text_encoders_of_its_model(embedded, tmp_path):
    folder = shutil.copytree(EMBEDDED_MODEL, tmp_path / "model")
    before = DinaEvaluator(embedded, EMBEDDED_MODEL).settings
    path = folder / "text_encoder" / "model.safetensors"
    save_file({name: weight + 1 for name, weight in load_file(path).items()}, path, metadata={"format": "pt"})
    after = DinaEvaluator(DinaScorer.from_pretrained(folder), str(folder)).settings
    assert {name for name in after if before[name] != after[name]} == {"model", "conditioning"}


def test_mended_images_are_scored_when_a_run_goes_on(data, tmp_path, write_json, write_greys):
    """An image that failed before the interruption is no failure for good."""
    write_json(HPDV3)
    write_greys(GREYS)
    image = (data / "1.png").read_bytes()
    (data / "1.png").unlink()
    preferences, evaluator = read_hpdv3(data, None), CallableEvaluator(f"{SCORERS}:brightness")
    journal = tmp_path / "journal"
    _, errors = score_items(preferences.items, evaluator, Journal(journal, {}), 2, lambda *_: None)
    assert [error["name"] for error in errors] == ["1.png"]
    (data / "1.png").write_bytes(image)
    scorers.CALLS.clear()
    samples, errors = score_items(preferences.items, evaluator, Journal(journal, {}), 2, lambda *_: None)
    assert not errors
    assert samples[0, 0].tolist() == [2.0, 1.0, 0.0, 0.0, 2.0]
    assert scorers.CALLS == [1]


# The embedded model and the small world

GROUPS = 12


@pytest.mark.parametrize("mode", ["features", "mean", "precision"])
def test_one_pass_reads_levels_and_ensemble(embedded, mode):
    items = read_world(3).items
    prompts, images = [item.prompt for item in items], [item.open() for item in items]
    sigmas, options = [0.2, 0.6], {"num_draws": 2, "seed": 5}
    evaluator = DinaEvaluator(embedded, EMBEDDED_MODEL, sigmas=sigmas, mode=mode, **options)
    calls = []
    hook = embedded.model.backbone.register_forward_hook(lambda *_: calls.append(1))
    samples = evaluator.score(prompts[:8], images[:8])
    hook.remove()
    assert len(calls) == 2 * 2  # levels x draws

    samples = evaluator.score(prompts, images)
    ensemble, levels = evaluator.ensemble(samples), evaluator.levels(samples)
    expected = embedded.score(prompts=prompts, images=images, sigmas=sigmas, mode=mode, **options)
    np.testing.assert_allclose(ensemble.scores, expected.scores, atol=1e-5)
    pairs = read_world(3).pairs()
    variance = embedded.model.variance(expected.sigmas)
    weights = precision_weights(variance) if mode == "precision" else None
    if mode == "features":
        variance = variance.mean(dim=0, keepdim=True)
    statistics = pair_statistics(expected.samples[..., pairs.a], expected.samples[..., pairs.b], variance, weights)
    np.testing.assert_allclose(np.exp(ensemble.log_probabilities(pairs)[0]), statistics.win_probability, atol=1e-5)
    assert list(levels) == sigmas
    for sigma, rewards in levels.items():
        alone = embedded.score(prompts=prompts, images=images, sigmas=[sigma], **options)
        np.testing.assert_allclose(rewards.scores, alone.scores, atol=1e-5)


@pytest.mark.slow
def test_world(run, embedded):
    results = run("world", "--limit", GROUPS, "--draws", 2, "--sigmas", "0.1,0.4", scorer=None)
    preferences = read_world(GROUPS)
    items, pairs = preferences.items, preferences.pairs()
    scores = embedded.score(
        prompts=[item.prompt for item in items],
        images=[item.open() for item in items],
        sigmas=[0.1, 0.4],
        num_draws=2,
    ).scores.numpy()
    utilities = np.array(
        [Groups.draw([index], Seed.BENCHMARK, held_out=index % 2 == 1).utilities[0] for index in range(GROUPS)]
    )
    np.testing.assert_allclose(pairs.label, true_preference(utilities[:, FIRST], utilities[:, SECOND]).ravel())
    expected = pairwise_accuracy(scores.reshape(GROUPS, 4), utilities)
    assert results["accuracy"] == pytest.approx(expected["accuracy"])
    assert results["standard_error"] == pytest.approx(expected["standard_error"])
    assert results["best_reachable_accuracy"] == pytest.approx(expected["best"])
    assert set(results["categories"]) == {"seen combinations", "held-out combinations"}
    assert [level["sigma"] for level in results["levels"]] == [0.1, 0.4]
    assert results["accuracy"] > 0.65
    assert results["revision"].startswith("sha256:")
    assert not results["settings"]["model"].startswith("/")


def test_scorer_module_function():
    evaluator = CallableEvaluator(f"{SCORERS}:brightness")
    assert evaluator.function is scorers.brightness
    assert evaluator.levels(np.zeros((1, 1, 2))) == {}


# A data set on the Hub


def test_hub(tmp_path):
    files = {"test.json": b"[]", "HPDv3.tar.gz.00": b"archive", "train.json": b"not to be fetched"}
    commit = "0123456789abcdef0123456789abcdef01234567"
    fetched = []

    def info(_):
        siblings = [{"rfilename": name, "size": len(content)} for name, content in files.items()]
        return JSONResponse({"id": "owner/set", "sha": commit, "private": False, "siblings": siblings, "tags": []})

    def resolve(request):
        name = request.path_params["name"]
        if request.method == "GET":
            fetched.append(name)
        return Response(files[name], headers={"ETag": f'"{name}"', "X-Repo-Commit": commit})

    api = "/api/datasets/owner/set"
    tree = [{"type": "file", "path": name, "oid": "0", "size": len(content)} for name, content in files.items()]
    routes = [
        Route(api, info),
        Route(api + "/revision/{revision}", info),
        Route(api + "/tree/{revision}", lambda _: JSONResponse(tree)),
        Route("/datasets/owner/set/resolve/{revision}/{name:path}", resolve),
    ]
    server = uvicorn.Server(uvicorn.Config(Starlette(routes=routes), port=0, log_level="critical"))
    thread = Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    address = server.servers[0].sockets[0].getsockname()
    environment = {
        "HF_HUB_OFFLINE": "0",
        "HF_ENDPOINT": f"http://{address[0]}:{address[1]}",
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
    }
    code = """
from modeling_dina.evaluation.benchmarks import BENCHMARKS, find_data
print(*find_data(BENCHMARKS["hpdv3"], "owner/set"))
"""
    printed = run_code(code, folder=ROOT, environment=environment)
    server.should_exit = True
    thread.join()
    folder, revision = printed[-1].split()
    assert revision == commit
    assert sorted(fetched) == sorted(path.name for path in Path(folder).iterdir()) == ["HPDv3.tar.gz.00", "test.json"]
