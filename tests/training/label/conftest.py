"""Pictures in a manifest, pairs without pictures, and votes by hand."""

import time
from pathlib import Path
from threading import Thread

import pytest
import uvicorn
from PIL import Image

from training.label.pairs import Pair, collect_pairs, record_pairs
from training.label.server import build_application, open_socket
from training.label.session import Plan, Session
from training.label.votes import Vote, VoteFile, read_votes
from training.preference_data.candidates import load_images, pair_images

# Prompt, and colour and size of its pictures.
PICTURES = {
    "a <b>red</b> & quiet square": [("red", (64, 64)), ("darkred", (300, 100)), ("orange", (640, 480))],
    "a long description of a blue square, " * 6: [("blue", (64, 64)), ("navy", (80, 160))],
}
NUM_PAIRS = 3 + 1


@pytest.fixture
def manifest(tmp_path):
    """A manifest of pictures of unlike sizes."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    lines = ["prompt,image"]
    for prompt, pictures in PICTURES.items():
        for color, size in pictures:
            Image.new("RGB", size, color).save(folder / f"{color}.png")
            lines.append(f'"{prompt}",{color}.png')
    path = folder / "manifest.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def make_pairs():
    """Pairs with the keys p0, p1 and so on, two for each prompt."""
    return lambda count: [Pair(f"p{i}", f"prompt {i // 2}", f"/a{i}.png", f"/b{i}.png") for i in range(count)]


@pytest.fixture
def write_votes():
    """Votes with numbers, from texts such as "ann p0 left a": annotator, pair, choice, picture on the left."""

    def write_votes(*lines):
        votes, numbers = [], {}
        for line in lines:
            name, pair, choice, left = line.split()
            number = numbers.get(name, 0)
            numbers[name] = number + 1
            votes.append(Vote(name, number, pair, left, choice, seconds=2.0 + number, time=1.0))
        return votes

    return write_votes


@pytest.fixture
def label_server(manifest, tmp_path):
    """Starts the page in a thread of this process, on pairs of the manifest. The value has `url`, `session` and
    `folder`."""
    servers = []

    def label_server(*annotators, plan=None, port=0):
        servers.append(LabelServer(manifest, tmp_path / "votes", annotators, plan or Plan(repeats=0), port))
        return servers[-1]

    yield label_server
    for server in servers:
        server.stop()


class LabelServer:
    """A running server of the page, and what it serves."""

    def __init__(self, manifest, folder, annotators, plan, port):
        self.folder = folder
        self.unusable = []
        collected = collect_pairs(pair_images(*load_images(str(manifest)), None, 0), folder)
        record_pairs(folder, collected.pairs)
        self._file = VoteFile(folder)
        order = range(len(collected.pairs))
        self.session = Session(collected.pairs, order, self._file, annotators, seed=0, plan=plan)
        application = build_application(self.session, on_unusable=lambda *unusable: self.unusable.append(unusable))
        listening = open_socket("127.0.0.1", port)
        self.port = listening.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._server = uvicorn.Server(uvicorn.Config(application, log_level="warning", timeout_graceful_shutdown=0))
        self._thread = Thread(target=self._server.run, kwargs={"sockets": [listening]}, daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.005)

    def stop(self):
        self._server.should_exit = self._server.force_exit = True
        self._thread.join()
        self._file.close()

    def votes(self):
        """Annotator, choice, and names of the files on the left and on the right, of the votes that stand."""
        found = []
        for vote in read_votes(self.folder):
            pair = self.session.pairs[vote.pair]
            colors = [Path(path).stem for path in (pair.image_a, pair.image_b)]
            found.append((vote.annotator, vote.choice, *(colors if vote.left == "a" else colors[::-1])))
        return found
