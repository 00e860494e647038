"""The page in a real browser: every tab, what it refuses, and how it looks; see `SCREENSHOTS`."""

import io
import itertools
import re

import pytest
from PIL import Image

from judge import MAX_FILE_BYTES
from tests.space.places import EXAMPLES, SCREENSHOTS
from views import headline, signed

pytestmark = pytest.mark.slow

# The first is the one that the tabs are operated at.
WIDTHS = (390, 1280)
SCHEMES = ("light", "dark")


def open_tab(page, name):
    """Some tabs of a narrow page are behind a button."""
    tab = page.get_by_role("tab", name=name, exact=True)
    if not tab.is_visible():
        page.get_by_label("More tabs").click()
        tab = page.get_by_role("button", name=name, exact=True)
    tab.click()


def put(page, place, path):
    """Replaces a picture of the first tab by a file."""
    frame = page.locator(".dina-pair .image-container:visible").nth(place)
    frame.get_by_label("Remove Image").click()
    frame.locator("input[type=file]").set_input_files(path)
    frame.get_by_label("Remove Image").wait_for()


def write_prompt(page, text):
    page.get_by_label("Prompt").locator("visible=true").fill(text)


def test_two_uploaded_files_are_compared(open_page, judge, pair):
    prompt, paths = pair
    page = open_page()
    write_prompt(page, prompt)
    put(page, 0, paths[0])
    put(page, 1, paths[1])
    page.click("#compare-button")
    expected = judge.scorer.compare(prompt=prompt, images=paths, num_draws=4)
    page.get_by_role("heading", name=headline(expected.win_probability)).wait_for()
    verdict = page.locator("#compare-verdict").inner_text()
    assert f"A {expected.win_probability:.2f}" in verdict
    assert f"{signed(expected.scores[0].item())} ± {expected.spread[0]:.3f}" in verdict
    assert f"{signed(expected.scores[1].item())} ± {expected.spread[1]:.3f}" in verdict
    assert "coin toss" in verdict
    figure = page.get_by_role("img", name=re.compile("^Rewards of both images .* at 0.1 A .* at 0.2 A .* at 0.4 A "))
    figure.wait_for()
    assert page.locator("#compare-slider img").count() == 2
    # The note of the example is gone.
    assert "Ground truth" not in page.locator("body").inner_text()


def test_a_picture_is_pasted(open_page, pair):
    page = open_page()
    write_prompt(page, pair[0])
    frame = page.locator(".dina-pair .image-container:visible").first
    frame.get_by_label("Remove Image").click()
    put_on_clipboard = """async bytes => {
        const picture = new Blob([new Uint8Array(bytes)], {type: "image/png"});
        await navigator.clipboard.write([new ClipboardItem({"image/png": picture})]);
    }"""
    page.evaluate(put_on_clipboard, list(pair[1][0].read_bytes()))
    frame.get_by_label("Paste from clipboard").click()
    frame.get_by_label("Remove Image").wait_for()
    page.click("#compare-button")
    page.get_by_role("heading", name=re.compile("^Image A is .* preferred$")).wait_for()


def test_examples_answer_at_one_click(open_page, judge, examples):
    page = open_page()
    for example in examples["pairs"][1:3]:
        page.get_by_role("button", name=example["title"]).first.click()
        images = [EXAMPLES / name for name in example["images"]]
        expected = judge.scorer.compare(prompt=example["prompt"], images=images).win_probability
        verdict = page.locator("#compare-verdict")
        verdict.get_by_role("img", name=f"A is preferred with probability {expected:.2f}").wait_for()
        assert verdict.get_by_role("heading").first.inner_text() == headline(expected)
        page.get_by_text(example["note"]).first.wait_for()


def test_uploaded_files_are_ranked(open_page, judge, pair):
    paths = [EXAMPLES / name for name in ("clear_2.png", "subtle_1.png", "subtle_2.png")]
    page = open_page()
    open_tab(page, "Rank")
    write_prompt(page, pair[0])
    page.locator("#rank-gallery").get_by_label("Clear").click()
    page.locator("#rank-gallery input[type=file]").set_input_files(paths)
    page.wait_for_function("document.querySelectorAll('#rank-gallery img').length == 3")
    page.click("#rank-button")
    page.locator("#rank-matrix table").wait_for()
    expected = judge.scorer.rank(prompt=pair[0], images=paths, num_draws=4)
    places = page.locator("#rank-result li strong").all_inner_texts()
    assert places == [f"Picture {index + 1}" for index in expected.order]
    assert page.locator("#rank-result .dina-number").first.inner_text() == signed(expected.scores.max().item())
    first, second = expected.order[:2]
    assert page.locator("#rank-matrix td").nth(2).inner_text() == f"{expected.win_probability[first, second]:.2f}"


NOTE_PROGRESS = """() => {
    window.shownProgress = [];
    new MutationObserver(() => {
        for (const bar of document.querySelectorAll("progress")) {
            window.shownProgress.push(bar.getAttribute("aria-label"));
        }
    }).observe(document.body, {subtree: true, childList: true, attributes: true});
}"""


def test_pictures_are_generated_and_scored_during_sampling(open_page):
    page = open_page()
    open_tab(page, "Generate")
    page.get_by_label("number input for Pictures").fill("3")
    page.get_by_role("button", name="Sampling").click()
    page.get_by_label("number input for Steps").fill("12")
    # Twelve steps may be over before a locator looks: the page itself notes every state of the bar.
    page.evaluate(NOTE_PROGRESS)
    page.click("#generate-button")
    page.get_by_role("heading", name="Before and after").wait_for()
    shown = page.evaluate("window.shownProgress")
    assert any(re.fullmatch(r"Step, noise level 0\.\d\d: \d+ of 12", label) for label in shown), set(shown)
    assert page.get_by_role("progressbar", name="Done: 12 of 12").count() == 1
    assert page.locator("#generate-pictures img").count() == 3
    scores = [
        float(text.replace("\u2212", "-"))
        for text in page.locator("#generate-pictures li span:last-child").all_inner_texts()
    ]
    best = 1 + scores.index(max(scores))
    assert page.locator("#generate-pictures .dina-best img").get_attribute("alt") == f"Picture {best}"
    assert f"picture {best}" in page.locator("#generate-verdict").inner_text()
    page.get_by_role("img", name=f"picture {best} is marked").wait_for()


def test_draws_are_added_one_after_another(open_page):
    page = open_page()
    open_tab(page, "Draws")
    page.get_by_label("8", exact=True).check()
    page.click("#draws-button")
    page.get_by_role("progressbar", name="Draws: 8 of 8").wait_for()
    page.get_by_role("img", name="Scores and win probability after 1, 2, 4, 8 draws").wait_for()


def test_refusals_stand_where_the_result_would(open_page, tmp_path):
    page = open_page()
    refusal = page.locator("#compare-verdict [role=alert]")

    def ask_and_read():
        page.click("#compare-button")
        page.wait_for_timeout(300)
        refusal.wait_for()
        return refusal.inner_text()

    write_prompt(page, "a <b>red</b> circle " * 5)
    assert re.search(r"Prompt: expected .* 14 tokens.*, got \d\d", ask_and_read())
    write_prompt(page, "a red circle")
    (tmp_path / "note.png").write_text("hello")
    put(page, 1, tmp_path / "note.png")
    assert "Image B (note.png): expected a picture" in ask_and_read()
    page.get_by_label("Remove Image").first.click()
    assert "Image A: expected a picture, got none." in ask_and_read()
    page.locator(".dina-pair input[type=file]").first.set_input_files(EXAMPLES / "clear_1.png")
    put(page, 1, EXAMPLES / "clear_2.png")
    page.get_by_role("button", name="Noise levels and draws").first.click()
    for level in ("0.1", "0.2", "0.4"):
        page.get_by_label(level, exact=True).first.uncheck()
    assert "Noise levels: expected 1 to 10 numbers in [0, 1], got []." in ask_and_read()
    page.get_by_label("0.4", exact=True).first.check()
    page.click("#compare-button")
    page.get_by_role("heading", name=re.compile("preferred|near tie")).wait_for()
    assert refusal.count() == 0


def test_a_file_too_large_is_refused(open_page, tmp_path):
    page = open_page()
    (tmp_path / "huge.png").write_bytes(bytes(MAX_FILE_BYTES + 1))
    frame = page.locator(".dina-pair .image-container:visible").first
    frame.get_by_label("Remove Image").click()
    frame.locator("input[type=file]").set_input_files(tmp_path / "huge.png")
    page.get_by_text("exceed the maximum allowed size of 8").wait_for()


def test_the_keyboard_is_enough(open_page):
    page = open_page()

    def reach(name):
        for _ in range(40):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.innerText") == name:
                return
        raise AssertionError(f"{name} is not reached")

    reach("A near tie")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="A near tie").wait_for()
    write_prompt(page, " ")
    reach("Compare")
    page.keyboard.press("Enter")
    page.locator("#compare-verdict [role=alert]").wait_for()


def test_how_it_looks(open_page):
    """Takes screenshots of every tab, wide and narrow, light and dark. The page fits its window, and every picture has
    an alternative text."""
    page = open_page(WIDTHS[0])
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)

    def take(name):
        for width, color_scheme in itertools.product(WIDTHS, SCHEMES):
            page.set_viewport_size({"width": width, "height": 900})
            page.emulate_media(color_scheme=color_scheme)
            page.locator("body.dark" if color_scheme == "dark" else "body:not(.dark)").wait_for()
            path = SCREENSHOTS / f"{width}-{color_scheme}-{name}.png"
            shot = page.screenshot(path=path, full_page=True, animations="disabled")
            assert Image.open(io.BytesIO(shot)).width == width
            assert page.evaluate("document.documentElement.scrollWidth") == width
        page.set_viewport_size({"width": WIDTHS[0], "height": 900})
        for image in page.locator("img:visible").all():
            # Empty for those of a slider, which are described elsewhere.
            assert image.get_attribute("alt") is not None

    take("1-start")
    page.click("#compare-button")
    page.locator("#compare-figure svg").wait_for()
    take("2-compare")
    write_prompt(page, "a red circle " * 10)
    page.click("#compare-button")
    page.locator("#compare-verdict [role=alert]").wait_for()
    take("3-refusal")
    open_tab(page, "Rank")
    page.click("#rank-button")
    page.locator("#rank-matrix table").wait_for()
    take("4-rank")
    open_tab(page, "Generate")
    page.click("#generate-button")
    page.get_by_role("heading", name="Before and after").wait_for()
    assert page.get_by_role("progressbar", name="Done: 28 of 28").count() == 1
    assert page.locator("#generate-pictures img").count() == 6
    take("5-generate")
    open_tab(page, "Draws")
    page.get_by_label("8", exact=True).check()
    page.click("#draws-button")
    page.get_by_role("progressbar", name="Draws: 8 of 8").wait_for()
    take("6-draws")
