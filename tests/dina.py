"""`dina` as a module that `python -m` runs."""

from modeling_dina.cli.app import app

app()
