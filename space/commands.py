"""The command that this package adds to `dina`. It imports what its extra brings only when it runs."""

from typing import Annotated

import typer

from modeling_dina.cli import EMBEDDED_MODEL


def demo(
    model: Annotated[
        str,
        typer.Option(
            envvar="DINA_MODEL",
            help="A folder or a Hub id. Default: the small model in the package.",
            show_default=False,
        ),
    ] = EMBEDDED_MODEL,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 7860,
) -> None:
    """Serve a page on which pictures are compared, ranked and generated."""
    from space.demo.serving import serve

    serve(model, host, port)
