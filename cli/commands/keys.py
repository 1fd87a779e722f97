"""`embedmill keys …`: made and revoked on the database itself, so that they work without a running server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from cli.commands.options import JsonOption

if TYPE_CHECKING:
    from engine.config.settings import Settings
    from engine.storage.database import Database

T = TypeVar("T")
DAY_S = 86_400.0

app = typer.Typer(help="Make, list and revoke API keys (on the database, not through the API).", no_args_is_help=True)


@app.command()
def create(
    name: Annotated[str, typer.Option(help="A note for people: who or what uses it.")] = "",
    project: Annotated[
        str, typer.Option(help="Jobs and usage belong to a project; another's are invisible.")
    ] = "default",
    scope: Annotated[
        list[str] | None,
        typer.Option("--scope", help="embeddings, jobs, usage or admin; repeatable. Default: all but admin."),
    ] = None,
    expires_in_days: Annotated[
        float | None, typer.Option(min=0.001, help="Valid so long; default: until revoked.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key and print it: it is shown this once and kept nowhere."""
    import time

    import msgspec

    from cli.errors import UsageError
    from cli.output.terminal import err, out, print_json
    from engine.access.keys import create_key, load_pepper
    from models.key import Scope

    scope_names = [str(each) for each in Scope]
    for each in scope or ():
        if each not in scope_names:
            raise UsageError(f"there is no scope {each!r}", f"--scope is one of {', '.join(scope_names)}")
    scopes = scope or [each for each in scope_names if each != Scope.ADMIN]
    expires_at = time.time() + expires_in_days * DAY_S if expires_in_days else None

    async def insert_key(database: Database, settings: Settings) -> tuple[str, str]:
        pepper = load_pepper(settings.key_pepper, settings.data_dir)
        return await create_key(database, pepper, project=project, name=name, scopes=scopes, expires_at=expires_at)

    key_id, key = with_database(insert_key)
    if as_json:
        print_json(msgspec.json.encode({"id": key_id, "key": key, "project": project, "scopes": scopes}))
        return
    err.print(
        f"key {key_id} for project {project} ({', '.join(scopes)}); keep it, it is not shown again:", markup=False
    )
    out.print(key, markup=False)


@app.command("list")
def list_(as_json: JsonOption = False) -> None:
    """List all keys, newest first; never the keys themselves."""
    import msgspec

    from cli.output.terminal import out, print_json, table, time_text
    from engine.access.keys import list_keys

    keys = with_database(lambda database, _: list_keys(database))
    if as_json:
        fields = ("id", "project", "name", "scopes", "created_at", "expires_at", "last_used_at", "revoked_at")
        print_json(msgspec.json.encode([{field: getattr(key, field) for field in fields} for key in keys]))
        return
    rows = [
        [
            key.id,
            key.project,
            key.name,
            ", ".join(key.scopes),
            time_text(key.created_at),
            time_text(key.last_used_at) or "never",
            "revoked " + time_text(key.revoked_at) if key.revoked_at else time_text(key.expires_at) or "until revoked",
        ]
        for key in keys
    ]
    out.print(table("id", "project", "name", "scopes", "created", "last used", "valid", rows=rows))


@app.command()
def revoke(key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id, or the key itself.")]) -> None:
    """Refuse a key from now on; says when every running process does."""
    from cli.errors import CliError, Failure
    from cli.output.terminal import out
    from engine.access.keys import CACHE_S, revoke_key

    parts = key_id.split("_")
    bare_id = parts[1] if len(parts) == 3 else key_id
    if not with_database(lambda database, _: revoke_key(database, bare_id)):
        fix = "`embedmill keys list` shows them"
        raise CliError(f"there is no valid key {bare_id}", fix, failure=Failure.GONE)
    out.print(f"key {bare_id} is revoked: every process refuses it within {CACHE_S:g} seconds", markup=False)


def with_database(work: Callable[[Database, Settings], Awaitable[T]]) -> T:
    """Run `work` on the configured database, and close it again. Raises CliError where it was never migrated."""
    from cli.errors import CliError, Failure
    from engine.config.settings import Settings
    from engine.storage.database import Database, schema_revision

    settings = Settings.from_environment()
    file = settings.sqlalchemy_url.removeprefix("sqlite+aiosqlite:///")
    if file != settings.sqlalchemy_url and not Path(file).is_file():
        fix = "run `embedmill up` once, or set EMBEDMILL_DATA_DIR"
        raise CliError(f"there is no database at {file}", fix, failure=Failure.NOT_SET_UP)

    async def run() -> T:
        database = Database(settings.sqlalchemy_url)
        try:
            if (await schema_revision(database))[0] is None:
                fix = "run `embedmill migrate`, or `embedmill up` once"
                raise CliError("the database has no tables yet", fix, failure=Failure.NOT_SET_UP)
            return await work(database, settings)
        finally:
            await database.close()

    return asyncio.run(run())
