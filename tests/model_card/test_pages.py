"""The generated parts of README.md and docs/ are what the committed results and the code make."""

import pytest

from model_card import pages


@pytest.mark.parametrize("page", pages.pages(), ids=lambda page: page.name)
def test_pages_are_up_to_date(page):
    """If this fails after results, options or help changed: `make pages`."""
    text = page.read_text()
    assert pages.update(text) == text


def test_every_part_is_on_a_page():
    named = {name for page in pages.pages() for _, name, _ in pages.PART.findall(page.read_text())}
    assert set(pages.PARTS) <= named
    assert {f"fields {name}" for name in pages.ARGUMENTS} <= named


def test_an_unknown_part_is_an_error():
    with pytest.raises(ValueError, match=r"generated: .*no such"):
        pages.update("<!-- generated: no such -->\n<!-- end -->")
