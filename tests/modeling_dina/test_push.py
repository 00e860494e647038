"""Folders pushed to a Hub in memory: what arrives, what stays at home, and what faults of the network do."""

import os
import time
from math import inf
from pathlib import Path

import huggingface_hub
import pytest
from typer.testing import CliRunner

from modeling_dina import DinaScorer
from modeling_dina.cli.app import app
from modeling_dina.hub import push
from modeling_dina.hub.push import PushError, published_files, push_folder
from modeling_dina.remote_code import remote_code_files
from tests.processes import Worker, run_code

ROOT = Path(__file__).parents[2]
EMBEDDED = ROOT / "modeling_dina" / "tiny"
IMAGE = ROOT / "space" / "examples" / "clear_1.png"
PROMPT = "a red circle and a blue square"
MODEL = {
    "config.json": b'{"model_type": "dina"}',
    "model.safetensors": b"weights" * 999,
    "modeling_dina.py": b"code = 1\n",
    "vae/diffusion_pytorch_model.safetensors": b"more weights" * 999,
    "scheduler/scheduler_config.json": b"{}",
    "README.md": b"---\nlicense: other\n---\n",
    "empty.txt": b"",
}
# In the order of their coming.
KINDS = ("info", "create", "refs", "preupload", "lfs", "upload", "validate", "commit", "tag")


def write(folder, files):
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


def state_of(folder):
    """Everything about the files of a folder that a push might change."""
    paths = sorted(folder.rglob("*"))
    return [(path, path.lstat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in paths]


@pytest.fixture
def model(tmp_path):
    """A model's folder, which no test may find changed."""
    folder = write(tmp_path / "model", MODEL)
    before = state_of(folder)
    yield folder
    assert state_of(folder) == before


def pushed(repo, revision="main"):
    files = repo.files(revision)
    files.pop(".gitattributes")
    return files


# What arrives


def test_one_commit_of_a_private_repository(connected_hub, model):
    commit = push_folder(model, "owner/name", tag="v1.0", message="First")
    repo = connected_hub.repos["owner/name"]
    assert repo.private
    assert repo.titles() == ["First", "initial commit"]
    assert pushed(repo) == MODEL
    assert repo.tags == {"v1.0": commit.oid} == {"v1.0": repo.main}
    assert commit.commit_url == f"{connected_hub.url}/owner/name/commit/{commit.oid}"


def test_nothing_new_is_no_commit(connected_hub, model):
    first = push_folder(model, "owner/name")
    second = push_folder(model, "owner/name", tag="v1")
    assert first.oid == second.oid == connected_hub.repos["owner/name"].tags["v1"]


@pytest.mark.parametrize("private", [True, False])
def test_an_existing_repository_keeps_its_visibility(connected_hub, model, caplog, private):
    push_folder(model, "owner/name", private=private)
    assert not caplog.records
    push_folder(model, "owner/name", private=not private)
    assert connected_hub.repos["owner/name"].private is private
    assert f"owner/name already exists and remains {'private' if private else 'public'}" in caplog.text


def test_a_tag_that_exists_is_refused_before_anything_is_uploaded(connected_hub, model):
    push_folder(model, "owner/name", tag="v1")
    tags = dict(connected_hub.repos["owner/name"].tags)
    connected_hub.requests.clear()
    for taken in ("v1", "main"):
        with pytest.raises(ValueError, match=f"tag: expected a new one, got '{taken}', which owner/name has"):
            push_folder(model, "owner/name", tag=taken)
    assert set(connected_hub.requests) == {"info", "refs"}
    assert connected_hub.repos["owner/name"].tags == tags


def test_training_state_takes_the_place_of_the_last(connected_hub, model, tmp_path):
    first = {"optimizer.pt": b"1", "rng_state.pth": b"1", "sub/scheduler.pt": b"1"}
    second = {"optimizer.pt": b"2", "sub/sampler.json": b"2"}
    push_folder(model, "owner/name", training_state=write(tmp_path / "first", {**first, "x.partial": b""}))
    repo = connected_hub.repos["owner/name"]
    assert pushed(repo) == MODEL | {f"last-checkpoint/{path}": content for path, content in first.items()}
    push_folder(model, "owner/name", training_state=write(tmp_path / "second", second))
    assert pushed(repo) == MODEL | {f"last-checkpoint/{path}": content for path, content in second.items()}
    assert len(repo.commits) == 3
    push_folder(model, "owner/name")
    assert len(repo.commits) == 3


def test_what_is_not_published(tmp_path):
    folder = write(tmp_path / "model", MODEL)
    litter = (
        *(".git/config", ".cache/huggingface/x", ".env", "vae/.DS_Store", ".gitattributes", "__pycache__/a.pyc"),
        *("a.pyc", "model.safetensors.partial", "vae/x.tmp", "model.lock", "optimizer.pt", "optimizer_0/x.distcp"),
        *("scheduler.pt", "rng_state_3.pth", "trainer_state.json", "training_args.bin", "ema.safetensors"),
        *("trainable.safetensors", "sampler.json", "checkpoint-10/model.safetensors", "last-checkpoint/a", "runs/e"),
    )
    write(folder, dict.fromkeys(litter, b"x"))
    assert published_files(folder) == sorted(MODEL)


def test_links_are_followed_and_not_round_and_round(tmp_path, connected_hub):
    elsewhere = write(tmp_path / "elsewhere", {"model.safetensors": b"1", "vae/config.json": b"2"})
    folder = write(tmp_path / "model", {"config.json": b"{}"})
    (folder / "model.safetensors").symlink_to(elsewhere / "model.safetensors")
    (folder / "vae").symlink_to(elsewhere / "vae")
    (folder / "round").symlink_to(folder)
    (folder / "broken").symlink_to(tmp_path / "nowhere")
    push_folder(folder, "owner/name")
    expected = {"config.json": b"{}", "model.safetensors": b"1", "vae/config.json": b"2"}
    assert pushed(connected_hub.repos["owner/name"]) == expected


def test_push_to_hub_of_a_model_brings_its_code(connected_hub, tiny_model):
    tiny_model.push_to_hub("owner/name", private=True)
    repo = connected_hub.repos["owner/name"]
    assert repo.private
    code = {path.name for path in remote_code_files()}
    assert code | {"config.json", "model.safetensors", "README.md"} == set(pushed(repo))


def test_what_was_pushed_loads_and_scores_alike_in_a_fresh_process(loopback_hub, tmp_path):
    environment = loopback_hub.environment(tmp_path / "pusher")
    pusher = Worker("tests.dina", "push", EMBEDDED, "owner/name", "--tag", "v1", environment=environment)
    printed, _ = pusher.communicate()
    repo = loopback_hub.repos["owner/name"]
    assert printed.splitlines()[-1] == f"{loopback_hub.url}/owner/name/commit/{repo.tags['v1']}"

    code = """
import sys
sys.modules["modeling_dina"] = None  # whatever is installed, `import modeling_dina` fails
import torch
from diffusers import StableDiffusion3Pipeline
from transformers import AutoModel
model = AutoModel.from_pretrained("owner/name", trust_remote_code=True, revision="v1")
assert type(model).__module__.startswith("transformers_modules"), type(model)
scores = model.scorer().score(prompts=[sys.argv[1]], images=[sys.argv[2]]).scores
pipeline = StableDiffusion3Pipeline.from_pretrained("owner/name")
options = dict(height=64, width=64, num_inference_steps=1, max_sequence_length=14)
assert pipeline(sys.argv[1], **options).images[0].size == (64, 64)
print(scores.item().hex())
"""
    printed = run_code(
        code, PROMPT, IMAGE, folder=tmp_path, environment=loopback_hub.environment(tmp_path / "stranger")
    )
    expected = DinaScorer.from_pretrained(EMBEDDED).score(prompts=[PROMPT], images=[IMAGE]).scores
    assert float.fromhex(printed[-1]) == expected.item()


# Faults


@pytest.mark.parametrize(
    "fault", [{"status": 503}, {"cut": True}, {"lost": True}], ids=lambda fault: next(iter(fault))
)
@pytest.mark.slow
def test_a_fault_of_every_request_is_overcome(connected_hub, model, fault):
    for kind in KINDS:
        connected_hub.fail(kind, **fault)
    commit = push_folder(model, "owner/name", tag="v1")
    repo = connected_hub.repos["owner/name"]
    assert pushed(repo, "v1") == MODEL
    assert repo.tags == {"v1": commit.oid}
    # A lost answer to the commit is a commit made twice; no other trace is left.
    assert set(repo.titles()) == {"Upload model", "initial commit"}
    assert {kind: connected_hub.requests.count(kind) > 1 for kind in KINDS} == dict.fromkeys(KINDS, True)


def test_a_hub_that_comes_back_in_time_is_waited_for(connected_hub, model):
    connected_hub.fail("any", cut=True, times=len(push.RETRY_DELAYS))
    push_folder(model, "owner/name")
    assert connected_hub.requests.count("info") == 1 + len(push.RETRY_DELAYS)
    assert pushed(connected_hub.repos["owner/name"]) == MODEL


def test_a_commit_that_came_in_between_is_no_obstacle(connected_hub, model):
    connected_hub.fail("commit", status=412, times=2)
    push_folder(model, "owner/name")
    assert pushed(connected_hub.repos["owner/name"]) == MODEL


@pytest.mark.parametrize(
    ("kind", "status", "token"),
    [("info", 401, "hf_wrong"), ("create", 401, None), ("create", 403, "hf_fake"), ("upload", 403, "hf_fake")],
)
def test_a_refusal_says_what_to_do_and_is_not_asked_again(connected_hub, model, monkeypatch, kind, status, token):
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
        monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", "/nowhere")
    else:
        monkeypatch.setenv("HF_TOKEN", token)
    if token == "hf_fake":
        connected_hub.fail(kind, status=status, times=inf)
    with pytest.raises(
        PushError, match=rf"owner/name.*\({status}\): set HF_TOKEN .* or run `hf auth login`"
    ) as caught:
        push_folder(model, "owner/name")
    assert "hf_" not in str(caught.value)
    assert connected_hub.requests.count(kind) == (2 if kind == "upload" else 1)  # of two large files


def test_a_hub_that_stays_broken_is_given_up(connected_hub, model, monkeypatch):
    connected_hub.fail("commit", status=500, times=inf)
    with pytest.raises(PushError, match="500 Internal Server Error: as it was asked to"):
        push_folder(model, "owner/name")
    assert connected_hub.requests.count("commit") == 1 + len(push.RETRY_DELAYS)
    monkeypatch.setattr(push, "RETRY_TIMEOUT", 0)
    connected_hub.requests.clear()
    with pytest.raises(PushError):
        push_folder(model, "owner/name")
    assert connected_hub.requests.count("commit") == 1


def test_a_hub_that_is_not_there_is_given_up(connected_hub, model):
    connected_hub.stop()
    with pytest.raises(PushError, match=f"owner/name: cannot reach {connected_hub.url}"):
        push_folder(model, "owner/name")


def test_a_hub_that_falls_silent_is_given_up(connected_hub, model, monkeypatch):
    monkeypatch.setattr(push, "TIMEOUT", 0.2)
    connected_hub.fail("commit", delay=30, times=inf)
    started = time.monotonic()
    with pytest.raises(PushError, match=r"cannot reach .*: timed out"):
        push_folder(model, "owner/name")
    assert time.monotonic() - started < 15
    assert connected_hub.requests.count("commit") == 1 + len(push.RETRY_DELAYS)


def test_a_tag_that_fails_leaves_word_of_the_commit(connected_hub, model):
    connected_hub.fail("tag", status=403)
    with pytest.raises(PushError, match=r"owner/name/commit/\w+ is pushed, but not tagged v1: .*403"):
        push_folder(model, "owner/name", tag="v1")
    assert pushed(connected_hub.repos["owner/name"]) == MODEL


# The command


def dina(*arguments):
    result = CliRunner().invoke(app, ["push", *map(str, arguments)])
    return result.exit_code, " ".join((result.stderr if result.exit_code else result.stdout).split())


def test_command(connected_hub, model):
    code, printed = dina(model, "owner/name", "--public", "--tag", "v1")
    repo = connected_hub.repos["owner/name"]
    assert (code, printed) == (0, f"{connected_hub.url}/owner/name/commit/{repo.main}")
    assert not repo.private
    assert list(repo.tags) == ["v1"]
    assert dina(model, "owner/other")[0] == 0
    assert connected_hub.repos["owner/other"].private


@pytest.mark.parametrize(
    ("change", "repo_id", "options", "message"),
    [
        ("config.json", "owner/name", [], "folder: expected config.json and *.safetensors, got"),
        ("model.safetensors", "owner/name", [], "folder: expected config.json and *.safetensors, got"),
        (None, "name", [], "repo_id: expected owner/name, got 'name'"),
        (None, "a/b/c", [], "Repo id must be in the form"),
        (None, "owner/na me", [], "Repo id must use alphanumeric chars"),
        (None, "owner/name", ["--tag", "v 1"], "tag: expected letters, digits"),
        (None, "owner/name", ["--tag", ""], "tag: expected letters, digits"),
    ],
)
def test_command_refuses_bad_input_unasked(connected_hub, tmp_path, change, repo_id, options, message):
    files = {path: content for path, content in MODEL.items() if path != change}
    code, printed = dina(write(tmp_path / "model", files), repo_id, *options)
    assert code == 2
    assert message in printed
    assert connected_hub.requests == []


def test_command_refuses_what_is_no_folder(tmp_path):
    code, printed = dina(tmp_path / "nothing", "owner/name")
    assert (code, printed) == (2, f"Error: folder: expected a folder, got {tmp_path / 'nothing'}")


def test_command_offline(model):
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    code, printed = dina(model, "owner/name")
    assert code == 2
    assert "unset the `HF_HUB_OFFLINE` environment variable" in printed
