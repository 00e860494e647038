"""A killed server, a full disk and a page that outlives its server: no vote is lost or counted twice."""

import json
import signal
import threading
import time
from collections import Counter

import httpx
import numpy as np
import pytest
from PIL import Image

from modeling_dina.options import EMBEDDED_MODEL
from tests.processes import Worker, file_size_limit, unused_port
from training.label.votes import read_votes
from training.preference_data.sources import load_pairs

pytestmark = pytest.mark.slow

CHOICES = ("left", "right", "tie", "both_bad", "skip")


@pytest.fixture
def start():
    """Starts `python -m training.label`, in a process that ends with the test."""
    processes = []

    def start(*arguments, environment=None):
        processes.append(Worker("training.label", *arguments, environment=environment or {}))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()


def call(url, process, body=None):
    """The server's answer, or None if there is none because the server is not there."""
    try:
        answered = httpx.get(url, timeout=60) if body is None else httpx.post(url, json=body, timeout=60)
    except httpx.TransportError:
        if process is not None:
            assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
        return None
    assert answered.status_code == 200, answered.text
    return answered.json()


def until_answered(url, process=None, body=None):
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        found = call(url, process, body)
        if found is not None:
            return found
    raise AssertionError(f"{url} does not answer")


def vote_on_everything(api, sent):
    """Votes until there are no more pairs; a vote is sent until there is an answer. Notes what was sent in `sent`."""
    rng = np.random.default_rng(0)
    state = until_answered(f"{api}/pair")
    while state["pair"]:
        choice = CHOICES[rng.integers(5)]
        body = {"number": state["number"], "pair": state["pair"], "left": state["left"], "choice": choice}
        state = until_answered(f"{api}/vote", body=body)
        sent.append(body)


def test_a_server_killed_again_and_again_loses_no_vote(start, tmp_path):
    """Two annotators vote as fast as they can while the server is killed four times."""
    lines = ["prompt,image"]
    for index in range(12):
        Image.new("RGB", (8, 8), (index, 0, 0)).save(tmp_path / f"{index}.png")
        lines.append(f"a prompt,{index}.png")
    (tmp_path / "manifest.csv").write_text("\n".join(lines))
    out, port = tmp_path / "votes", unused_port()
    arguments = [tmp_path / "manifest.csv", "--out", out, "--port", port, "--repeats", 0]
    arguments += ["--annotator", "ann", "--annotator", "bob"]
    url = f"http://127.0.0.1:{port}/api"
    process = start(*arguments)
    sent = {"ann": [], "bob": []}
    voters = [
        threading.Thread(target=vote_on_everything, args=(f"{url}/{name}", sent[name]), daemon=True) for name in sent
    ]
    for voter in voters:
        voter.start()
    for kill in range(1, 5):
        while sum(map(len, sent.values())) < 20 * kill:
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.001)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        confirmed = {name: list(bodies) for name, bodies in sent.items()}
        written = read_votes(out)
        for name, bodies in confirmed.items():
            numbers = [vote.number for vote in written if vote.annotator == name]
            assert numbers == list(range(len(numbers)))
            # At most one vote is on the disk that was not confirmed.
            assert len(bodies) <= len(numbers) <= len(bodies) + 1
        process = start(*arguments)
    for voter in voters:
        voter.join(300)
        assert not voter.is_alive()
    votes = read_votes(out)
    assert Counter((vote.annotator, vote.pair) for vote in votes).most_common(1)[0][1] == 1
    for name, bodies in sent.items():
        own = [vote for vote in votes if vote.annotator == name]
        assert len(own) == 66
        assert [(vote.number, vote.pair, vote.left, vote.choice) for vote in own] == [
            tuple(body.values()) for body in bodies
        ]


def test_from_a_generator_to_pushed_votes(start, loopback_hub, tmp_path):
    """Pictures are sampled, votes are pushed, SIGTERM writes the data, and the next start goes on."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("two red circles\na blue square\n")
    out, port = tmp_path / "votes", unused_port()
    arguments = ["--generator", EMBEDDED_MODEL, "--prompts", prompts, "--samples", 2, "--out", out, "--port", port]
    size = {"height": 64, "width": 64, "num_inference_steps": 2, "max_sequence_length": 14}
    arguments += ["--sampling", json.dumps(size), "--annotator", "annegret"]
    arguments += ["--repo-id", "owner/votes", "--push-every", 1]
    environment = loopback_hub.environment(tmp_path / "home")
    api = f"http://127.0.0.1:{port}/api/annegret"

    process = start(*arguments, environment=environment)
    state = until_answered(f"{api}/pair", process)
    body = {"number": 0, "pair": state["pair"], "left": state["left"], "choice": "tie"}
    assert until_answered(f"{api}/vote", process, body)["recorded"]
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate()
    assert f"annegret: http://127.0.0.1:{port}/vote/annegret" in printed
    assert "2 pairs, 0 duplicates, 0 unusable" in printed
    assert f"1 votes in {out}; 1 pairs for training in {out / 'data'}" in printed
    assert "pushed to owner/votes: vote 1" in printed
    assert "Traceback" not in printed
    assert load_pairs(str(out))["target"][:] == [0.5]
    repo = loopback_hub.repos["datasets/owner/votes"]
    assert repo.private
    assert not any(b"annegret" in file for file in repo.files().values())

    process = start(*arguments, environment=environment)
    following = until_answered(f"{api}/pair", process)
    assert following["number"] == 1
    assert following["pair"] != state["pair"]


def test_a_vote_waits_in_the_page_until_the_server_is_back(label_server, browser):
    server = label_server("ann")
    page = browser.new_page()
    page.goto(f"{server.url}/vote/ann")
    page.wait_for_function("ready")
    server.stop()
    page.keyboard.press("ArrowRight")
    page.get_by_role("alert").get_by_text("The server does not answer").wait_for()
    page.keyboard.press("ArrowLeft")  # changes nothing
    server = label_server("ann", port=server.port)
    page.wait_for_function("ready && state.done === 1")
    assert page.locator("#fault").is_hidden()
    assert [vote.choice for vote in read_votes(server.folder)] == ["right"]
    page.close()


def test_a_vote_outlives_the_window(label_server, browser):
    server = label_server("ann")
    page = browser.new_page()
    page.goto(f"{server.url}/vote/ann")
    page.wait_for_function("ready")
    server.stop()
    page.keyboard.press("ArrowUp")
    page.get_by_role("alert").get_by_text("The server does not answer").wait_for()
    page.close()
    server = label_server("ann", port=server.port)
    page = browser.new_page()
    page.goto(f"{server.url}/vote/ann")
    page.wait_for_function("ready && state.done === 1")
    assert [vote.choice for vote in read_votes(server.folder)] == ["tie"]
    page.close()


def test_a_vote_waits_in_the_page_until_there_is_space_on_the_disk(label_server, browser):
    server = label_server("ann")
    page = browser.new_page()
    page.goto(f"{server.url}/vote/ann")
    page.wait_for_function("ready")
    page.keyboard.press("ArrowLeft")
    page.wait_for_function("ready && state.done === 1")
    path = server.folder / "votes.jsonl"
    before = path.read_bytes()
    with file_size_limit(len(before) + 30):
        page.keyboard.press("ArrowRight")
        page.get_by_role("alert").get_by_text("the vote cannot be written").wait_for()
        page.wait_for_timeout(1500)  # it tries again
        assert path.read_bytes() == before
    page.wait_for_function("ready && state.done === 2")
    assert [vote.choice for vote in read_votes(server.folder)] == ["left", "right"]
    page.close()
