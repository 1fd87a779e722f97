"""The pieces that `embedmill up` runs as children, and that production runs by themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NoReturn

import typer

from cli.data_dir import DataDir

app = typer.Typer()

PIECES = "Pieces (what `up` runs; production runs them one by one)"
GRACEFUL_STOP_S = 20


@app.command(rich_help_panel=PIECES)
def migrate(
    revision: Annotated[str, typer.Option(help="head, base, a revision, or -1 for one back.")] = "head",
) -> None:
    """Bring the database's tables up to date (or back)."""
    from cli.terminal import err
    from engine import failpoints
    from engine.database import migrate as bring_to
    from engine.settings import Settings

    settings = Settings.from_environment()
    failpoints.arm(settings.failpoints)
    DataDir(settings.data_dir).make()
    bring_to(settings.sqlalchemy_url, revision)
    err.print(f"migrated: {revision}", markup=False)


@app.command(hidden=True)
def prepare() -> None:
    """Check the configuration, migrate, and make the first key where there is none. Prints that key, and only that."""
    from cli.first_key import make_first_key
    from engine import configuration, failpoints
    from engine.database import migrate as bring_to
    from engine.settings import Settings
    from engine.telemetry import configure_logging

    settings = Settings.from_environment()
    configure_logging(settings.log_level, settings.log_format)
    failpoints.arm(settings.failpoints)
    configuration.load(settings.config)
    place = DataDir(settings.data_dir)
    place.make()
    bring_to(settings.sqlalchemy_url)
    if key := make_first_key(settings, place):
        print(key)


@app.command(rich_help_panel=PIECES)
def api(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on.")] = 8080,
) -> None:
    """Serve the HTTP API."""
    import uvicorn

    from engine.settings import Settings
    from engine.telemetry import configure_logging

    settings = Settings.from_environment()
    configure_logging(settings.log_level, settings.log_format)
    uvicorn.run(
        "api.app:create_app",
        factory=True,
        host=host,
        port=port,
        loop="uvloop",
        http="httptools",
        proxy_headers=False,
        access_log=False,
        server_header=False,
        log_config=None,
        timeout_graceful_shutdown=GRACEFUL_STOP_S,
    )


@app.command(rich_help_panel=PIECES)
def worker(
    concurrency: Annotated[int, typer.Option(min=1, help="Processes; each works on one shard at a time.")] = 2,
) -> None:
    """Work on bulk jobs (a Celery worker)."""
    _become("workers", "--concurrency", str(concurrency))


@app.command(rich_help_panel=PIECES)
def scheduler() -> None:
    """Dispatch, sweep and expire jobs. More than one may run; they share the work."""
    _become("workers.scheduler")


def _become(module: str, *arguments: str) -> NoReturn:
    """Go on as another edge's process: the edges do not import each other.

    -P keeps the current directory off the path, where a folder of the same name could stand in for ours.
    """
    import os
    import sys

    root = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    os.execve(  # noqa: S606  # no shell is wanted
        sys.executable, [sys.executable, "-P", "-m", module, *arguments], os.environ | {"PYTHONPATH": path}
    )


@app.command("fake-upstream", rich_help_panel=PIECES)
def fake_upstream(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 for any free one, printed.")] = 0,
    width: Annotated[int, typer.Option(min=1, help="Numbers in a vector.")] = 1536,
    latency_ms: Annotated[float, typer.Option(min=0, help="Time that every answer takes.")] = 0.0,
    script: Annotated[Path | None, typer.Option(help="Faults to play: JSON or TOML rules.")] = None,
    log: Annotated[Path | None, typer.Option(help="Append one line of JSON per billed call.")] = None,
) -> None:
    """Serve an OpenAI-compatible provider that invents its vectors, for tests and benches."""
    from cli.fake_upstream import serve

    serve(host, port, script_path=script, latency_ms=latency_ms, log_path=log, width=width)
