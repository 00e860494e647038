"""`dina evaluate` with two more benchmarks, of the small world, which need no data:
`python -m model_card.evaluate_preferences --benchmark world --out FILE`, and `world_flaws`."""

import typer

from model_card.world_benchmark import WORLD, WORLD_FLAWS
from modeling_dina.cli.evaluation import evaluate as main
from modeling_dina.evaluation.benchmarks import BENCHMARKS

BENCHMARKS |= {"world": WORLD, "world_flaws": WORLD_FLAWS}

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(main)

if __name__ == "__main__":
    app()
