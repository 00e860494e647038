"""The command `dina serve`. It imports its extra only when it runs."""

import os
from typing import Annotated

import typer

from modeling_dina import options
from modeling_dina.options import error_console
from modeling_dina.serving import TOKEN_VARIABLE

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@options.with_option_groups
def serve(
    *,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="TCP port to listen on; 0 takes any free port.")] = 8000,
    model: options.SourceOptions,
    device: Annotated[
        list[str] | None,
        typer.Option(
            help="Device of a worker; repeat it for several workers. Default: cuda if available.", show_default=False
        ),
    ] = None,
    dtype: options.DtypeOption = None,
    latents_only: Annotated[
        bool, typer.Option("--latents-only", help="Do not load VAE and text encoders, and do not serve /v1/compare.")
    ] = False,
    max_batch_size: Annotated[
        int, typer.Option(min=1, help="Largest number of samples scored at a time; 1 switches batching off.")
    ] = 32,
    max_wait_ms: Annotated[
        float, typer.Option(min=0, help="Milliseconds that a sample may wait for others to fill a batch.")
    ] = 5,
    max_queue: Annotated[
        int, typer.Option(min=1, help="Largest number of waiting samples; more are refused with status 429.")
    ] = 1024,
    max_body_mb: Annotated[
        int, typer.Option(min=1, help="Largest request in MiB; larger ones are refused with status 413.")
    ] = 64,
    max_total_mb: Annotated[
        int,
        typer.Option(min=1, help="Largest total of all waiting requests in MiB; more are refused with status 429."),
    ] = 1024,
    body_timeout: Annotated[
        float,
        typer.Option(
            min=0.1, help="Seconds within which a request must arrive; slower ones are refused with status 408."
        ),
    ] = 30,
) -> None:
    """Serve rewards over HTTP: POST /v1/score (latents), POST /v1/compare (images), GET /v1/info (the model). If
    DINA_SERVER_TOKEN is set, clients must send it as a bearer token."""
    import torch

    options.quieten_libraries()
    from modeling_dina.serving.bodies import BodyLimits
    from modeling_dina.serving.engine import RewardEngine
    from modeling_dina.serving.server import serve_engines

    chosen: list[str | None] = [*device] if device else [None]
    devices = [options.usable_device(each) for each in chosen]
    token = os.environ.get(TOKEN_VARIABLE) or None
    if token is None and host not in LOOPBACK:
        error_console.print(
            f"Anyone who reaches {host} can send requests: {TOKEN_VARIABLE} is not set.", style="yellow"
        )
    model.check()
    with options.loading("model", model.model):
        engines = [
            RewardEngine.from_pretrained(
                model.model,
                device=each,
                dtype=None if dtype is None else getattr(torch, dtype),
                latents_only=latents_only,
                max_batch_size=max_batch_size,
                **model.loading_arguments(),
            )
            for each in devices
        ]
    serve_engines(
        engines,
        host=host,
        port=port,
        max_batch_size=max_batch_size,
        max_wait=max_wait_ms / 1000,
        max_queue=max_queue,
        limits=BodyLimits(max_body_mb * 2**20, max_total_mb * 2**20, body_timeout),
        token=token,
    )
