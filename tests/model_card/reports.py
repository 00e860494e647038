"""The committed reports of the studies, held against their results."""

import json
import re
from pathlib import Path

RESULTS = Path(__file__).parents[2] / "model_card" / "results"


def assert_report_is_of_results(name, write_report, folder):
    """What `write_report` makes of the committed results is the committed page, its figures are there, and every
    decimal number of the conclusions, which are written by hand, is on that page."""
    committed = RESULTS / name
    write_report(json.loads((committed / "results.json").read_text()), folder)
    page = (folder / "tables.md").read_text()
    assert page == (committed / "tables.md").read_text()
    for picture in re.findall(r"\]\((\w+\.png)\)", page):
        assert (committed / picture).is_file()
    numbers = re.compile(r"(?<![\w.])\d+\.\d+(?!\.\d)")
    assert set(numbers.findall((committed / "conclusions.md").read_text())) <= set(numbers.findall(page))
