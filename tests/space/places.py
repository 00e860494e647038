"""Where the tests of the Space find things, and leave them."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "space" / "examples"
# What the browser saw, to be looked at. Not in the repository.
SCREENSHOTS = ROOT / "runs" / "screenshots"
