"""`dina` as a module that `python -m` runs."""

from modeling_dina.cli import app

app()
