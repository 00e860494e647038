"""`dina` as a module that `python -m` runs."""

from modeling_dina.cli.app import app

if __name__ == "__main__":  # not in worker processes
    app()
