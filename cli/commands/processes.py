"""The pieces that `embedmill up` runs as children, and that production runs by themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NoReturn

import typer

from cli.data_dir import DataDir

app = typer.Typer()

Migrated = Annotated[bool, typer.Option("--migrated", hidden=True, help="The tables are known to be there.")]
OpsPort = Annotated[
    int | None,
    typer.Option(min=0, max=65535, help="Port of /healthz and /metrics; 0: none. Default: EMBEDMILL_OPS_PORT."),
]
TABLES_EVERY_S = 2.0
TABLES_ANSWER_S = 5.0
COMPONENTS = "Pieces (what `up` runs; production runs them one by one)"


@app.command(rich_help_panel=COMPONENTS)
def migrate(
    revision: Annotated[str, typer.Option(help="head, base, a revision, or -1 for one back.")] = "head",
) -> None:
    """Bring the database's tables up to date (or back)."""
    from cli.output.terminal import err
    from engine.config import config_file
    from engine.config.settings import Settings
    from engine.observability import failpoints
    from engine.storage.database import migrate as migrate_database

    settings = Settings.from_environment()
    # A deployment learns of a fault in it here, before anything is changed.
    config_file.load(settings.config, data_dir=settings.data_dir)
    failpoints.arm(settings.failpoints)
    DataDir(settings.data_dir).make()
    migrate_database(settings.sqlalchemy_url, revision)
    err.print(f"migrated: {revision}", markup=False)


@app.command(hidden=True)
def prepare() -> None:
    """Check the configuration, migrate, and make the first key where there is none. Prints that key, and only that."""
    from cli.up.bootstrap_key import create_bootstrap_key
    from engine.config import config_file
    from engine.config.settings import Settings
    from engine.observability import failpoints
    from engine.observability.telemetry import configure_logging
    from engine.storage.database import migrate as migrate_database

    settings = Settings.from_environment()
    configure_logging(settings.log_level, settings.log_format, service="prepare")
    failpoints.arm(settings.failpoints)
    config_file.load(settings.config, data_dir=settings.data_dir)
    data_dir = DataDir(settings.data_dir)
    data_dir.make()
    migrate_database(settings.sqlalchemy_url)
    if key := create_bootstrap_key(settings, data_dir):
        print(key)


@app.command(rich_help_panel=COMPONENTS)
def api(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on.")] = 8080,
    migrated: Migrated = False,
) -> None:
    """Serve the HTTP API."""
    wait_for_tables("api", waits=False, migrated=migrated)
    _exec_module("api", "--host", host, "--port", str(port))


@app.command(rich_help_panel=COMPONENTS)
def worker(
    concurrency: Annotated[int, typer.Option(min=1, help="Processes; each works on one shard at a time.")] = 2,
    migrated: Migrated = False,
    ops_port: OpsPort = None,
) -> None:
    """Work on bulk jobs (a Celery worker)."""
    import tempfile

    from cli.errors import CliError

    try:
        tempfile.gettempdir()
    except OSError as error:  # Celery would restart its processes for ever
        raise CliError("no temporary folder is writable", "set TMPDIR to one that is") from error
    wait_for_tables("worker", waits=True, migrated=migrated)
    _exec_module("workers", "--concurrency", str(concurrency), *_ops_port(ops_port))


@app.command(rich_help_panel=COMPONENTS)
def scheduler(migrated: Migrated = False, ops_port: OpsPort = None) -> None:
    """Dispatch, sweep and expire jobs. More than one may run; they share the work."""
    wait_for_tables("scheduler", waits=True, migrated=migrated)
    _exec_module("workers.scheduler", *_ops_port(ops_port))


def _ops_port(port: int | None) -> list[str]:
    return [] if port is None else ["--ops-port", str(port)]


def wait_for_tables(component: str, *, waits: bool, migrated: bool) -> None:
    """Print one line when the database has no tables; a component that needs them then waits for them.

    An unreachable database is left to the component. Raises ConfigError, also for a data directory that cannot be
    made: the default database is in it.
    """
    import time

    from cli.output.terminal import err
    from engine.config.settings import Settings
    from engine.process.data_folder import make_data_folder

    settings = Settings.from_environment()
    make_data_folder(settings.data_dir)
    if migrated or _has_tables(settings.sqlalchemy_url):
        return
    from engine.config import config_file

    # A fault in it is reported now, not after the wait for tables.
    config_file.load(settings.config, data_dir=settings.data_dir)
    outcome = f"the {component} starts when it has" if waits else "until then every request that needs them is refused"
    err.print(f"the database has no tables yet: run `embedmill migrate`; {outcome}", markup=False)
    while waits and not _has_tables(settings.sqlalchemy_url):
        time.sleep(TABLES_EVERY_S)


def _has_tables(url: str) -> bool:
    """False where the database answers and was never migrated."""
    import asyncio

    from alembic.util import CommandError

    from engine.storage.database import DATABASE_ERRORS, Database, schema_revision

    file = url.removeprefix("sqlite+aiosqlite:///")
    if file != url and not Path(file).is_file():
        return False  # connecting would make an empty one

    async def read_revision() -> bool:
        database = Database(url, pool_size=1)
        try:
            async with asyncio.timeout(TABLES_ANSWER_S):
                return (await schema_revision(database))[0] is not None
        finally:
            await database.close()

    try:
        return asyncio.run(read_revision())
    except (*DATABASE_ERRORS, CommandError, OSError):  # the component itself waits for it and logs that
        return True


def _exec_module(module: str, *arguments: str) -> NoReturn:
    """Go on as another edge's process: the edges do not import each other.

    -P keeps the current directory off the path, where a folder of the same name could stand in for ours.
    """
    import os
    import sys

    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    os.execve(  # noqa: S606  # no shell is wanted
        sys.executable, [sys.executable, "-P", "-m", module, *arguments], os.environ | {"PYTHONPATH": path}
    )


@app.command("fake-upstream", rich_help_panel=COMPONENTS)
def fake_upstream(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 for any free one, printed.")] = 0,
    width: Annotated[int, typer.Option(min=1, help="Numbers in a vector.")] = 1536,
    latency_ms: Annotated[float, typer.Option(min=0, help="Time that every answer takes.")] = 0.0,
    script: Annotated[Path | None, typer.Option(help="Faults to play: JSON or TOML rules.")] = None,
    log: Annotated[Path | None, typer.Option(help="Append one line of JSON per billed call.")] = None,
    kind: Annotated[str, typer.Option(help="Provider in whose wire format it answers: cohere, voyage, …")] = "openai",
    oddity: Annotated[list[str] | None, typer.Option(help="What this vendor does only sometimes; repeatable.")] = None,
    space: Annotated[
        str | None, typer.Option(help="Vectors depend on this name in place of the model's: one space for many fakes.")
    ] = None,
) -> None:
    """Serve a provider that invents its vectors, for tests and benches: OpenAI, or another with --kind."""
    from cli.errors import CliError
    from cli.fake_upstream.command import serve
    from providers.fake.formats import FAKE_KINDS, fake_format

    if kind not in FAKE_KINDS:
        raise CliError(f"there is no fake of the kind {kind!r}", f"name one of: {', '.join(sorted(FAKE_KINDS))}")
    wire = fake_format(kind, frozenset(oddity or ()))
    serve(host, port, script_path=script, latency_ms=latency_ms, log_path=log, width=width, wire=wire, space=space)
