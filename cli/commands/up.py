"""`embedmill up`: the whole system on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def up(
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 for any free one.")] = 8080,
    data_dir: Annotated[
        Path, typer.Option(envvar="EMBEDMILL_DATA_DIR", help="Database, keys and the embedded Valkey live here.")
    ] = Path(".embedmill"),
    workers: Annotated[int, typer.Option(min=1, help="Worker processes for bulk jobs.")] = 2,
    config: Annotated[
        Path | None,
        typer.Option(
            envvar="EMBEDMILL_CONFIG",
            help="Accounts and models. Default: embedmill.toml here, else the built-in local model.",
        ),
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Keep the processes' lines in DATA_DIR/logs instead.")
    ] = False,
) -> None:
    """Start everything on this machine and keep it running until Ctrl-C.

    Needs nothing else installed: it uses SQLite unless EMBEDMILL_DATABASE_URL is set, and a Valkey of its own unless
    EMBEDMILL_REDIS_URL or EMBEDMILL_BROKER_URL is.
    """
    from cli.up.start import up as start

    raise typer.Exit(start(host=host, port=port, data_dir=data_dir, workers=workers, config=config, quiet=quiet))
