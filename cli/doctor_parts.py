"""The doctor's looks at single parts: the machine, the secret of the keys, and each provider's account."""

from __future__ import annotations

import asyncio
import resource
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from cli.causes import explain
from cli.data_dir import DataDir
from engine.access.keys import load_pepper
from engine.config.settings import Settings
from engine.ledger import usage_rows
from engine.planning import tokens
from engine.runtime import Runtime
from engine.storage.database import DATABASE_ERRORS
from engine.upstream.call import CallContext
from models.embedding import Alias, Batch, Call, Options, Route
from models.errors import EmbedmillError, UpstreamError
from models.usage import OPERATOR_PROJECT

FEW_DESCRIPTORS = 4096  # an API with a thousand callers and its upstream calls
PROBE = "Is this account well?"
PROBE_S = 20.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. `fix` is empty where nothing needs doing."""

    check: str
    status: str  # ok | warn | fail
    detail: str
    fix: str = ""


def machine(place: DataDir) -> Iterator[Finding]:
    """The data directory and the temporary folder take files; there are descriptors enough."""
    folder = place.path.absolute()
    while not folder.exists():
        folder = folder.parent
    yield _takes_files("data directory", str(folder), "make it writable for this user, or set EMBEDMILL_DATA_DIR")
    try:
        where = tempfile.gettempdir()
    except OSError:
        yield Finding("temporary folder", "fail", "none is writable", "set TMPDIR to one that is")
    else:
        yield _takes_files("temporary folder", where, "set TMPDIR to a writable folder")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # The pieces raise their soft limit to the hard one themselves.
    status = "ok" if hard == resource.RLIM_INFINITY or hard >= FEW_DESCRIPTORS else "warn"
    fix = "" if status == "ok" else f"`ulimit -Hn {FEW_DESCRIPTORS}` or more, or LimitNOFILE= of the service"
    yield Finding("descriptors", status, f"{soft:,} open files (up to {hard:,})", fix)


def _takes_files(check: str, folder: str, fix: str) -> Finding:
    try:
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            file.write(b"x")
            file.flush()
    except OSError as error:
        return Finding(check, "fail", str(explain(error)), fix)
    return Finding(check, "ok", folder)


def pepper(settings: Settings) -> Finding:
    """The secret that keys are hashed under, as the API reads it; looking makes none."""
    if not settings.key_pepper and not (settings.data_dir / "pepper").exists():
        return Finding("pepper", "warn", "none is made yet", "`embedmill up` makes one; keep it when you move the data")
    try:
        load_pepper(settings.key_pepper, settings.data_dir)
    except EmbedmillError as error:
        return Finding("pepper", "fail", error.message, "without it no key is taken, and the API does not start")
    return Finding("pepper", "ok", "of EMBEDMILL_KEY_PEPPER" if settings.key_pepper else "in the data directory")


def account_routes(aliases: Mapping[str, Alias]) -> dict[str, tuple[Alias, Route]]:
    """For each account the cheapest route to try it on."""
    chosen: dict[str, tuple[Alias, Route]] = {}
    for alias in aliases.values():
        for route in alias.routes:
            best = chosen.get(route.provider)
            if best is None or route.usd_per_million_tokens < best[1].usd_per_million_tokens:
                chosen[route.provider] = (alias, route)
    return chosen


def cost_of_probes(aliases: Mapping[str, Alias]) -> str:
    """What trying each account costs, before it is done."""
    routes = account_routes(aliases)
    count = tokens.estimate(PROBE)
    usd = sum(float(route.usd_per_million_tokens) * count / 1_000_000 for _, route in routes.values())
    calls = "1 call" if len(routes) == 1 else f"{len(routes)} calls"
    return f"{calls} of {count} tokens, about ${usd:.8f}".rstrip("0").rstrip(".")


def accounts(settings: Settings, aliases: Mapping[str, Alias]) -> list[Finding]:
    """One small call to each account, written to the ledger like any other of the operator's."""
    routes = account_routes(aliases)

    async def probe_all() -> list[Finding]:
        runtime = Runtime.open(settings)
        try:
            found = await asyncio.gather(*(_probe(runtime, name, *route) for name, route in routes.items()))
            with suppress(EmbedmillError, *DATABASE_ERRORS):  # then it is kept in the spool
                await runtime.usage.flush()
            return list(found)
        finally:
            await runtime.close()

    return asyncio.run(probe_all())


async def _probe(runtime: Runtime, name: str, alias: Alias, route: Route) -> Finding:
    check, calls, began = f"account {name}", list[Call](), time.monotonic()
    batch = Batch([PROBE], [0], tokens.estimate(PROBE), route.width, Options())
    deadline = began + min(PROBE_S, route.account.timeout_s)
    try:
        rows, _ = await runtime.upstream.embed(batch, route, CallContext(deadline, calls, purpose="doctor"))
    except UpstreamError as error:
        advice = (error.advice or "see docs/providers.md").replace("{account}", name)
        return Finding(check, "fail", error.message, advice)
    except EmbedmillError as error:
        return Finding(check, "fail", error.message, "see docs/providers.md")
    finally:
        runtime.usage.add(
            usage_rows.of_calls(calls, project=OPERATOR_PROJECT, key_id="", lane="interactive", alias=alias.name)
        )
    took_ms = (time.monotonic() - began) * 1000
    return Finding(check, "ok", f"{route.upstream_model}: {rows.shape[1]} numbers in {took_ms:.0f} ms")


def shown_url(url: str) -> str:
    """The URL without its password, to be printed."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "(no URL)"
    if "://" not in url and "@" in url:
        return f"…@{url.rpartition('@')[2]}"
    if parts.password is None:
        return url
    return parts._replace(netloc=f"{parts.username or ''}:***@{parts.netloc.rpartition('@')[2]}").geturl()
