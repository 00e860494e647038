"""The API as programs use it: documented types, the model's own numbers, and refusals that can be read."""

import os
import typing

import httpx
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from judge import MAX_FILE_BYTES, MAX_REQUEST_BYTES
from modeling_dina.configuration_dina import ENSEMBLE_MODES
from tests.space.places import EXAMPLES

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def app():
    """The module, which takes seconds to import."""
    import app

    return app


@pytest.fixture(scope="module")
def client(space_url):
    return Client(space_url, verbose=False)


@pytest.fixture(scope="module")
def question(pair):
    """Arguments of /compare that are in order."""
    prompt, (image_a, image_b) = pair
    return {"prompt": prompt, "image_a": handle_file(image_a), "image_b": handle_file(image_b)}


def test_compare_gives_the_models_numbers(app, client, question, pair, judge):
    prompt, paths = pair
    answer = client.predict(**question, sigmas=[0.1, 0.4], num_draws=3, mode="mean", seed=5, api_name="/compare")
    expected = judge.scorer.compare(prompt=prompt, images=paths, sigmas=[0.1, 0.4], num_draws=3, mode="mean", seed=5)
    assert set(answer) == set(typing.get_type_hints(app.ComparisonAnswer))
    assert answer["preferred"] == "a"
    assert not answer["near_tie"]
    for name in ("win_probability", "entropy", "disagreement", "likelihood_entropy", "difference_error"):
        assert answer[name] == pytest.approx(getattr(expected, name), abs=1e-5)
    assert answer["scores"] == pytest.approx(expected.scores.tolist(), abs=1e-4)
    assert answer["sigmas"] == pytest.approx(expected.sigmas.tolist())


def test_defaults_are_the_models(client, question, pair, judge):
    answer = client.predict(**question, api_name="/compare")
    expected = judge.scorer.compare(prompt=pair[0], images=pair[1])
    assert answer["win_probability"] == pytest.approx(expected.win_probability, abs=1e-5)
    assert answer["spread"] == pytest.approx(expected.spread.tolist(), abs=1e-4)


def test_one_draw_has_no_spread(client, question):
    answer = client.predict(**question, num_draws=1, api_name="/compare")
    assert answer["spread"] == [None, None]
    assert answer["difference_error"] is None


def test_rank_gives_the_models_numbers(app, client, judge, examples):
    group = examples["groups"][0]
    paths = [EXAMPLES / name for name in group["images"]]
    answer = client.predict(prompt=group["prompt"], images=[handle_file(path) for path in paths], api_name="/rank")
    expected = judge.scorer.rank(prompt=group["prompt"], images=paths)
    assert set(answer) == set(typing.get_type_hints(app.RankingAnswer))
    assert answer["order"] == expected.order
    assert answer["scores"] == pytest.approx(expected.scores.tolist(), abs=1e-4)
    assert answer["win_probability"][0] == pytest.approx(expected.win_probability[0].tolist(), abs=1e-4)


def test_types_are_documented_and_nothing_else_is_public(app, client):
    endpoints = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert set(endpoints) == {"/compare", "/rank"}
    documented = {
        parameter["parameter_name"]: parameter["python_type"]["type"]
        for parameter in endpoints["/compare"]["parameters"]
    }
    assert documented == {
        "prompt": "str",
        "image_a": "filepath",
        "image_b": "filepath",
        "sigmas": "None | list[float]",
        "num_draws": "None | int",
        "mode": f"None | Literal{list(ENSEMBLE_MODES)}",
        "seed": "int",
    }
    returned = endpoints["/compare"]["returns"][0]["python_type"]["type"]
    assert all(name in returned for name in typing.get_type_hints(app.ComparisonAnswer))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"prompt": "x" * 5000}, "prompt: expected at most 1000 characters, got 5000"),
        ({"prompt": "a red circle " * 10}, "prompt: expected at most 14 tokens"),
        ({"prompt": ""}, "prompt: expected a text, got ''"),
        ({"prompt": 5}, "prompt: expected a text, got int"),
        ({"image_a": None}, "image_a: expected a picture, got none"),
        ({"image_b": "/etc/hostname"}, "image_b: expected an uploaded file, got '/etc/hostname'"),
        ({"image_b": {"path": "/etc/hostname"}}, "image_b: expected an uploaded file"),
        ({"image_a": handle_file("http://127.0.0.1:9/a.png")}, "picture: expected an uploaded file, got an address"),
        ({"num_draws": 33}, "draws: expected a whole number from 1 to 32, got 33"),
        ({"sigmas": [0.1, 2]}, "noise levels: expected a number from 0 to 1, got 2"),
        ({"sigmas": []}, "noise levels: expected 1 to 10 numbers"),
        ({"mode": "median"}, "mode: expected one of features, mean, precision, got 'median'"),
        ({"seed": -1}, "seed: expected a whole number from 0"),
    ],
)
def test_refusals_can_be_read(client, question, changed, message):
    with pytest.raises(AppError, match="expected") as refusal:
        client.predict(**question | changed, api_name="/compare")
    assert str(refusal.value).startswith(message)


def test_wrong_and_oversized_files_are_refused(client, question, tmp_path):
    (tmp_path / "note.png").write_text("hello")
    with pytest.raises(AppError, match=r"^image_a \(note.png\): expected a picture of PNG, JPEG"):
        client.predict(**question | {"image_a": handle_file(tmp_path / "note.png")}, api_name="/compare")
    Image.new("1", (5000, 4000)).save(tmp_path / "wide.png")
    with pytest.raises(AppError, match=r"^image_a \(wide.png\): refused before decoding"):
        client.predict(**question | {"image_a": handle_file(tmp_path / "wide.png")}, api_name="/compare")
    (tmp_path / "huge.png").write_bytes(os.urandom(MAX_FILE_BYTES + 1))
    with pytest.raises(ValueError, match="exceeds the maximum file size of 8388608 bytes"):
        client.predict(**question | {"image_a": handle_file(tmp_path / "huge.png")}, api_name="/compare")


@pytest.mark.parametrize(
    ("count", "message"), [(1, "pictures: expected 2 to 16, got 1"), (17, "pictures: expected 2 to 16, got 17")]
)
def test_a_ranking_is_bounded(client, question, count, message):
    with pytest.raises(AppError, match=message):
        client.predict(prompt="a star", images=[question["image_a"]] * count, api_name="/rank")


def test_a_ranking_wants_a_list(client):
    with pytest.raises(AppError, match="images: expected a list of files, got NoneType"):
        client.predict(prompt="a star", images=None, api_name="/rank")


def test_no_file_of_the_host_is_read(space_url, pair):
    """A program that does not use gradio_client may call anything an upload."""
    stolen = {"path": "/etc/hostname", "meta": {"_type": "gradio.FileData"}}
    call = httpx.post(
        f"{space_url}/gradio_api/call/compare", json={"data": [pair[0], stolen, stolen, None, None, None, 0]}
    )
    answer = httpx.get(f"{space_url}/gradio_api/call/compare/{call.json()['event_id']}").text
    assert "picture: expected an uploaded file, got a path" in answer
    assert httpx.get(f"{space_url}/gradio_api/file=/etc/hostname").status_code == 403


def test_requests_are_bounded(space_url):
    def endless():
        for _ in range(MAX_REQUEST_BYTES // 2**20 + 1):
            yield b" " * 2**20

    with httpx.Client() as http:
        assert http.post(f"{space_url}/gradio_api/call/compare", content=endless()).status_code == 413
        too_large = {"files": ("a.png", bytes(MAX_FILE_BYTES + 1))}
        assert http.post(f"{space_url}/gradio_api/upload", files=too_large).status_code == 413
