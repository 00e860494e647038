"""The page in a real browser, wide and narrow, by mouse, keyboard and touch; see `SCREENSHOTS`."""

import io

import pytest
from PIL import Image

from tests.space.places import SCREENSHOTS
from training.label.session import Plan

pytestmark = pytest.mark.slow

WIDTHS = (1280, 390)
KEYS = {"left": "ArrowLeft", "right": "ArrowRight", "tie": "ArrowUp", "both_bad": "ArrowDown", "skip": "s"}
CHOICES = tuple(KEYS)


def by_mouse(page, choice):
    page.locator(f".choices [data-choice={choice}]").click()


def by_keyboard(page, choice):
    page.keyboard.press(KEYS[choice])


def by_touch(page, choice):
    page.locator(f".choices [data-choice={choice}]").tap()


WAYS = {"mouse": by_mouse, "keyboard": by_keyboard, "touch": by_touch}


def wait_until_ready(page, done):
    """Until so many answers are recorded and the next pair, or the end, is visible."""
    page.wait_for_function(f"ready && state.done === {done}")


@pytest.fixture
def open_vote(open_window):
    """Opens an annotator's page, once both pictures are visible; in a context of its own if it has a touch screen."""

    def open_vote(server, name="ann", width=1280, **options):
        page = open_window(f"{server.url}/vote/{name}", width, **options)
        page.wait_for_function("ready")
        return page

    return open_vote


def sides_on(page):
    """Colours in the middle of both pictures, as the browser shows them."""
    colors = []
    for side in ("left", "right"):
        shot = Image.open(io.BytesIO(page.locator(f"#{side}").screenshot())).convert("RGB")
        colors.append(shot.getpixel((shot.width // 2, shot.height // 2)))
    return tuple(colors)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("way", WAYS)
def test_votes_by(label_server, open_vote, width, way):
    """Every choice is recorded for what was on the screen."""
    server = label_server("ann", plan=Plan(repeats=0))
    page = open_vote(server, width=width, has_touch=True)
    on_screen = []
    for done, choice in enumerate(("left", "right", "tie", "both_bad")):
        on_screen.append(sides_on(page))
        WAYS[way](page, choice)
        wait_until_ready(page, done + 1)
    page.get_by_role("heading", name="Thank you").wait_for()
    found = server.votes()
    assert [vote[1] for vote in found] == ["left", "right", "tie", "both_bad"]
    by_name = {"red": (255, 0, 0), "darkred": (139, 0, 0), "orange": (255, 165, 0)}
    by_name |= {"blue": (0, 0, 255), "navy": (0, 0, 128)}
    assert [(by_name[left], by_name[right]) for _, _, left, right in found] == on_screen


@pytest.mark.parametrize("way", ["mouse", "touch"])
def test_a_picture_is_a_button(label_server, open_vote, way):
    server = label_server("ann")
    page = open_vote(server, width=390, has_touch=True)
    for done, side in enumerate(("right", "left")):
        picture = page.locator(f"#{side}")
        picture.tap() if way == "touch" else picture.click()
        wait_until_ready(page, done + 1)
    assert [vote[1] for vote in server.votes()] == ["right", "left"]


@pytest.mark.parametrize("way", WAYS)
def test_skip_and_undo(label_server, open_vote, way):
    server = label_server("ann")
    page = open_vote(server, width=390, has_touch=True)
    before = sides_on(page)
    assert page.locator("#undo").is_disabled()
    WAYS[way](page, "left")
    wait_until_ready(page, 1)
    if way == "keyboard":
        page.keyboard.press("u")
    else:
        page.locator("#undo").tap() if way == "touch" else page.locator("#undo").click()
    wait_until_ready(page, 0)
    assert sides_on(page) == before
    assert server.votes() == []
    WAYS[way](page, "skip")
    wait_until_ready(page, 1)
    assert [vote[1] for vote in server.votes()] == ["skip"]


def test_undo_after_the_last_pair(label_server, open_vote):
    server = label_server("ann", plan=Plan(repeats=0, goal=1))
    page = open_vote(server)
    page.keyboard.press("ArrowLeft")
    page.get_by_role("heading", name="Thank you").wait_for()
    page.locator("#undo-last").click()
    page.locator("#prompt").wait_for()
    assert server.votes() == []


def test_a_key_held_down_and_shortcuts_do_not_vote_again(label_server, open_vote):
    server = label_server("ann")
    page = open_vote(server)
    page.keyboard.press("Control+ArrowLeft")
    for _ in range(4):  # the browser sends repeats while a key stays down
        page.keyboard.down("ArrowRight")
        page.wait_for_timeout(150)
    wait_until_ready(page, 1)
    assert len(server.votes()) == 1


def test_progress_and_time_left(label_server, open_vote):
    page = open_vote(label_server("ann"))
    assert page.locator("#progress").inner_text() == "0 of 4"
    page.keyboard.press("ArrowUp")
    wait_until_ready(page, 1)
    assert page.locator("#progress").inner_text() == "1 of 4 · less than a minute left"
    page.evaluate("state.seconds = 600; show(state)")
    assert page.locator("#progress").inner_text() == "1 of 4 · about 10 min left"


def test_two_windows_of_one_annotator(label_server, open_vote):
    """The second answer to a pair does not count, and its window says so and goes on."""
    server = label_server("ann")
    first, second = open_vote(server), open_vote(server)
    assert sides_on(first) == sides_on(second)
    first.keyboard.press("ArrowLeft")
    wait_until_ready(first, 1)
    second.keyboard.press("ArrowRight")
    wait_until_ready(second, 1)
    assert "already answered in another window" in second.locator("#note").inner_text()
    assert [vote[1] for vote in server.votes()] == ["left"]
    second.keyboard.press("ArrowRight")
    wait_until_ready(second, 2)
    assert second.locator("#note").inner_text() == ""
    assert [vote[1] for vote in server.votes()] == ["left", "right"]


def test_two_annotators_at_one_time(label_server, open_vote):
    server = label_server("ann", "bob b")
    ann, bob = open_vote(server), open_vote(server, "bob%20b")
    assert bob.locator("#name").inner_text() == "bob b"
    ann.keyboard.press("ArrowUp")
    bob.keyboard.press("ArrowDown")
    wait_until_ready(ann, 1)
    wait_until_ready(bob, 1)
    assert {vote[:2] for vote in server.votes()} == {("ann", "tie"), ("bob b", "both_bad")}


def test_pictures_of_unlike_sizes_are_whole_in_equal_frames(label_server, open_vote):
    server = label_server("ann")
    for width in WIDTHS:
        page = open_vote(server, width=width)
        left, right = (page.locator(f".frame[data-choice={side}]").bounding_box() for side in ("left", "right"))
        assert (left["width"], left["height"], left["y"]) == (right["width"], right["height"], right["y"])
        assert left["width"] == pytest.approx(left["height"], abs=1)
        assert all(
            page.locator(f"#{side}").evaluate("i => getComputedStyle(i).objectFit") == "contain"
            for side in ("left", "right")
        )


def test_how_it_looks(label_server, open_vote):
    """Takes screenshots, wide and narrow, light and dark. The page fits its window, and at the usual heights nothing
    has to be scrolled."""
    server = label_server("ann", "bob b", plan=Plan(repeats=0))
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    for width, height, scheme in ((1280, 800, "light"), (1280, 800, "dark"), (390, 780, "light"), (390, 780, "dark")):
        page = open_vote(server, width=width, has_touch=width < 500, is_mobile=width < 500)
        page.set_viewport_size({"width": width, "height": height})
        page.emulate_media(color_scheme=scheme)
        page.screenshot(path=SCREENSHOTS / f"label-{width}-{scheme}.png")
        assert page.evaluate("document.documentElement.scrollWidth") == width
        undo = page.locator("#undo").bounding_box()
        assert undo["y"] + undo["height"] <= height
        # Large enough for a finger.
        for button in page.locator(".choices button:visible").all():
            assert button.bounding_box()["height"] >= 44
    for name, url in (("links", "/"), ("finished", "/vote/ann")):
        if name == "finished":
            for done in range(4):
                page.screenshot(path=SCREENSHOTS / f"label-pair-{done}.png")
                page.keyboard.press("ArrowLeft")
                wait_until_ready(page, done + 1)
        else:
            page.goto(f"{server.url}{url}")
            page.screenshot(path=SCREENSHOTS / f"label-{name}.png")
            page.goto(f"{server.url}/vote/ann")
            page.wait_for_function("ready")
    page.screenshot(path=SCREENSHOTS / "label-finished.png")
