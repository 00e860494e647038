"""`dina evaluate` with the small world as another benchmark, which needs no data:
`python -m model_card.evaluate_preferences --benchmark world --out FILE`."""

import typer

from model_card.world_benchmark import WORLD
from modeling_dina.cli.evaluation import evaluate as main
from modeling_dina.evaluation.benchmarks import BENCHMARKS

BENCHMARKS["world"] = WORLD

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(main)

if __name__ == "__main__":
    app()
