"""The HTTP interface of the page, and its answers to bad requests and faults."""

import io

import httpx
import pytest
from PIL import Image

from training.label.session import Plan


@pytest.fixture
def server(label_server):
    return label_server("ann", "bob b")


def get(server, path):
    return httpx.get(f"{server.url}{path}")


def post(server, path, body, **headers):
    return httpx.post(f"{server.url}{path}", json=body, headers=headers)


def answer(state, choice):
    return {"number": state["number"], "pair": state["pair"], "left": state["left"], "choice": choice, "seconds": 1.5}


def test_a_vote_over_http(server):
    state = get(server, "/api/ann/pair").json()
    assert (state["done"], state["remaining"], state["can_undo"]) == (0, 4, False)
    sizes = [Image.open(io.BytesIO(get(server, path).content)).size for path in state["pictures"]]
    assert len(set(sizes)) == 2  # each at its own size
    following = post(server, "/api/ann/vote", answer(state, "left")).json()
    assert following["recorded"]
    assert (following["done"], following["number"], following["can_undo"]) == (1, 1, True)
    assert following["pair"] != state["pair"]
    again = post(server, "/api/ann/vote", answer(state, "right")).json()
    assert not again["recorded"]
    assert again["pair"] == following["pair"]
    assert [vote[1] for vote in server.votes()] == ["left"]


def test_pictures_are_blind(server):
    """Neither their addresses nor their contents say where they come from."""
    state = get(server, "/api/ann/pair").json()
    assert set(state) == {
        *("done", "remaining", "seconds", "can_undo", "number", "pair", "left", "prompt", "pictures"),
    }
    page = get(server, "/vote/ann").text
    for name in ("red", "orange", "blue", "navy"):
        assert name not in "".join(state["pictures"]) + page
    picture = Image.open(io.BytesIO(get(server, state["pictures"][0]).content))
    assert picture.format == "PNG"
    assert picture.info == {}


def test_one_link_for_each_annotator(label_server):
    server = label_server("ann", "bob b")
    assert '<a href="/vote/bob%20b">bob b</a>' in get(server, "/").text
    assert get(server, "/vote/bob%20b").status_code == 200
    assert get(server, "/vote/eve").status_code == 404
    assert "annotator: expected" in get(server, "/api/eve/pair").json()["error"]


def test_the_only_annotator_needs_no_link(label_server):
    answered = get(label_server("ann"), "/")
    assert answered.is_redirect
    assert answered.headers["location"] == "/vote/ann"


def test_a_picture_that_cannot_be_decoded_costs_its_pairs_alone(label_server, manifest):
    (manifest.parent / "blue.png").write_bytes(b"no picture")
    server = label_server("ann")
    seen = set()
    while (state := get(server, "/api/ann/pair").json())["pair"]:
        seen.add(state["prompt"])
        post(server, "/api/ann/vote", answer(state, "tie"))
    assert seen == {"a <b>red</b> & quiet square"}
    assert len(server.votes()) == 3
    assert state["remaining"] == 0
    ((name, error),) = server.unusable
    assert name.startswith("pair ")
    assert "blue.png" in error


def test_a_picture_that_vanishes_while_people_vote(label_server, manifest):
    server = label_server("ann")
    (manifest.parent / "navy.png").unlink()
    while (state := get(server, "/api/ann/pair").json())["pair"]:
        post(server, "/api/ann/vote", answer(state, "tie"))
    assert len(server.votes()) == 3
    assert "navy.png" in server.unusable[0][1]


def test_hidden_repeats_look_like_other_pairs(label_server):
    server = label_server("ann", plan=Plan(repeats=1.0))
    keys = set()
    while (state := get(server, "/api/ann/pair").json())["pair"]:
        keys.add(frozenset(state))
        post(server, "/api/ann/vote", answer(state, "tie"))
    assert len(keys) == 1


VALID = {"number": 0, "pair": "?", "left": "a", "choice": "left"}


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({**VALID, "pair": "no"}, "pair"),
        ({**VALID, "pair": ["no"]}, "pair"),
        ({**VALID, "choice": "up"}, "left, choice"),
        ({**VALID, "left": None}, "left, choice"),
        ({**VALID, "number": "0"}, "number"),
        ({**VALID, "number": 7}, "number"),
        ([], "body"),
    ],
)
def test_bad_votes(server, body, named):
    if isinstance(body, dict) and body["pair"] == "?":
        body = {**body, "pair": get(server, "/api/ann/pair").json()["pair"]}
    answered = post(server, "/api/ann/vote", body)
    assert answered.status_code == 400
    assert answered.json()["error"].startswith(f"{named}: expected")
    assert server.votes() == []


def test_bad_bodies(server):
    url = f"{server.url}/api/ann/vote"
    assert httpx.post(url, content=b"{", headers={"content-type": "application/json"}).status_code == 400
    assert httpx.post(url, content=b"{}", headers={"content-type": "text/plain"}).status_code == 415
    long = b"[" + b" " * 2**20
    assert httpx.post(url, content=long, headers={"content-type": "application/json"}).status_code == 413
    assert server.votes() == []


@pytest.mark.parametrize("seconds", [None, -1, 1e9, "2", [1]])
def test_a_time_that_is_not_credible_is_left_out(server, seconds):
    state = get(server, "/api/ann/pair").json()
    assert post(server, "/api/ann/vote", {**answer(state, "left"), "seconds": seconds}).json()["recorded"]
    assert get(server, "/api/ann/pair").json()["seconds"] is None


def test_unknown_pictures(server):
    key = get(server, "/api/ann/pair").json()["pair"]
    for path in ("/pictures/no/a", f"/pictures/{key}/c", "/pictures/..%2F..%2Fetc/a", "/page/../server.py"):
        assert get(server, path).status_code == 404
